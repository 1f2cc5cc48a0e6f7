"""What `experiments.uturns` prints and writes: tables, result.json, figures and report.html."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from diffusion_jax.comparing.returns import Measured
from diffusion_jax.data.images import ImageSet
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.plots import page, panel
from diffusion_jax.plots import uturns as plots
from diffusion_jax.plots.uturns import Row
from diffusion_jax.regimes import uturns
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.measures import level_of
from diffusion_jax.regimes.transitions import Regimes
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.runtime.text import shown
from experiments.cloning_report import printed
from experiments.marked import Marked

TRAINING = "training"
POSTERIOR = "posterior"
# Columns of the pictures of changes.
MOST_COLUMNS = 10
TIMES = ("t_S_phi", "t_C_phi", "t_C_entropy")


@dataclass(frozen=True)
class Findings(Marked):
    """Everything that was measured.

    Attributes:
      settings: what was asked for.
      images: the training images.
      times: Ornstein-Uhlenbeck times (T,), increasing.
      scores: names.
      sources: the images that took U-turns by their name, mean removed.
      measured: of each score and source.
      exact: curves and times of the training set's exact score, from the posterior.
      judge: the classifier, if any.
      warnings: one sentence each.
    """

    settings: dict[str, Any]
    images: ImageSet
    times: np.ndarray
    scores: list[str]
    sources: dict[str, np.ndarray]
    measured: dict[tuple[str, str], Measured]
    exact: Regimes
    judge: TrainedClassifier | None
    warnings: list[str]

    def of(self, curve: Callable[[Measured], Curve | None]) -> dict[str, dict[str, Curve]]:
        """A curve of each source and score, by the names that figures have."""
        found: dict[str, dict[str, Curve]] = {source: {} for source in self.sources}
        for (score, source), each in self.measured.items():
            if (own := curve(each)) is not None:
                found[source][_name(score)] = own
        return found

    @cached_property
    def peaks(self) -> dict[tuple[str, str], dict[str, Estimate]]:
        """The times of the peaks of each score and source, by what peaks."""
        return {key: _peaks(each) for key, each in self.measured.items()}

    @property
    def layers(self) -> list[str]:
        """Names of the classifier's layers."""
        count = len(next(iter(self.measured.values())).layers)
        inner = [f"convolution {i + 1}" for i in range(count - 2)]
        return [*inner, "features", "logits"] if count else []

    def posterior(self, name: str) -> dict[str, Curve]:
        """The posterior's curve of a return under the exact score, where it has one."""
        own = {"class_return": "phi", "point_return": "phi_C"}[name]
        return {TRAINING: self.exact.curves[own]} if own in self.exact.curves else {}


def _name(score: str) -> str:
    """What a score is called in figures and tables."""
    return "network" if score == "trained" else score


_CURVES: dict[str, tuple[str, Callable[[Measured], Curve | None]]] = {
    "class_return": ("returns in the image's class", lambda each: each.class_return),
    "point_return": ("returns to the same training image", lambda each: each.point_return),
    "overlap": ("overlap q of image and return", lambda each: each.overlaps.mean),
    "overlap_susceptibility": ("d Var(q)", lambda each: each.overlaps.susceptibility),
    "susceptibility": (
        "susceptibility χ of the changes",
        lambda each: each.correlated.susceptibility,
    ),
    "length": ("correlation length (pixels)", lambda each: each.correlated.length),
}
# Those whose peaks are told.
_PEAKS = {
    "susceptibility": "χ",
    "length": "the correlation length",
    "overlap_susceptibility": "d Var(q)",
}


def _curve(curve: Curve | None) -> dict[str, Any] | None:
    if curve is None:
        return None
    low, high = curve.interval
    return {"mean": curve.mean, "low": low, "high": high, "standard_error": curve.standard_error}


def _measured(findings: Findings, each: Measured) -> dict[str, Any]:
    correlated = each.correlated
    return {
        **{name: _curve(of(each)) for name, (_, of) in _CURVES.items()},
        "layers": {
            name: _curve(curve) for name, curve in zip(findings.layers, each.layers, strict=True)
        },
        "correlation": {
            "distance": correlated.distance,
            "mean": correlated.function,
            "low": correlated.interval[0],
            "high": correlated.interval[1],
        },
    }


def _peaks(each: Measured) -> dict[str, Estimate]:
    found = {}
    for name in _PEAKS:
        curve = _CURVES[name][1](each)
        assert curve is not None
        found[name] = curve.peak()
    return found


def to_json(findings: Findings) -> dict[str, Any]:
    """All numbers as JSON has them."""
    exact, judge = findings.exact, findings.judge
    there = np.searchsorted(next(iter(exact.curves.values())).times, findings.times)
    posterior = {}
    for name in ("class_return", "point_return"):
        for curve in findings.posterior(name).values():
            posterior[name] = {
                "mean": curve.mean[there],
                "standard_error": curve.standard_error[there],
            }
    return {
        "settings": findings.settings,
        "warnings": findings.warnings,
        "times": findings.times,
        "images": {name: len(images) for name, images in findings.sources.items()},
        "t_S_spectrum": findings.t_S,
        **{name: asdict(exact.times[name]) for name in TIMES if name in exact.times},
        "posterior": posterior,
        "sources": {
            source: {
                score: _measured(findings, findings.measured[score, source])
                | {"peaks": {n: asdict(t) for n, t in findings.peaks[score, source].items()}}
                for score in findings.scores
            }
            for source in findings.sources
        },
        "classifier": None
        if judge is None
        else {"accuracy": judge.accuracy, "interval": judge.interval, "held_out": judge.held_out},
    }


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"


def _text(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "none"
    text = f"{estimate.value:.3f}"
    if math.isfinite(estimate.low):
        text += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return text


def rows_of(findings: Findings, source: str) -> list[list[str]]:
    """Every curve of a source at each time."""
    rows = []
    there = np.searchsorted(next(iter(findings.exact.curves.values())).times, findings.times)
    for name, (_, of) in _CURVES.items():
        word = name.replace("_", " ")
        for score, curve in findings.of(of)[source].items():
            rows.append([f"{word}, {panel.label(score)}", *map(_number, curve.mean)])
        if name.endswith("return") and source in (own := findings.posterior(name)):
            rows.append([f"{word}, {POSTERIOR}", *map(_number, own[source].mean[there])])
    return rows


def peak_rows(findings: Findings) -> list[list[str]]:
    """The times of the data, and those of the peaks of each score and source."""
    rows = [["t_S = 1/2 log Lambda", _text(Estimate(findings.t_S, math.nan, math.nan))]]
    for name in TIMES:
        if name in findings.exact.times:
            meaning = level_of(name)[1].described({findings.exact.levels[name][1]})
            rows.append([f"{name[:3]}: {meaning}", _text(findings.exact.times[name])])
    for source in findings.sources:
        for score in findings.scores:
            for name, peak in findings.peaks[score, source].items():
                what = f"peak of {_PEAKS[name]}, {panel.label(_name(score))}, {source}"
                rows.append([what, _text(peak)])
    return rows


def _row(findings: Findings, name: str, limits: tuple[float, float] | None = None) -> Row:
    label, of = _CURVES[name]
    beside: Mapping[str, tuple[str, Curve]] = {}
    if name.endswith("return"):
        own = findings.posterior(name).items()
        beside = {source: ("exact score, from the posterior", curve) for source, curve in own}
    return Row(label, findings.of(of), beside, limits)


def figures(findings: Findings) -> Iterator[page.Picture]:
    """The figures, each with its caption."""
    names, marks = list(findings.sources), findings.marks
    rows = [_row(findings, name, (-0.03, 1.03)) for name in ("class_return", "point_return")]
    yield page.Picture.of(
        "returns.png",
        plots.draw_rows(names, [row for row in rows if any(row.curves.values())], marks),
        "Share of the images that come back from time t in their class, and nearest to the same "
        "training image. Dotted: what the posterior says of the exact score, E p(c | x_t) and "
        "E p(a | x_t). Upright lines are the training set's t_S and t_C.",
    )
    yield page.Picture.of(
        "overlap.png",
        plots.draw_rows(
            names,
            [_row(findings, "overlap"), _row(findings, "overlap_susceptibility")],
            marks,
        ),
        "Overlap of image and return, the cosine of the two minus the mean image; and its variance "
        "over the returns of an image, times the number of components.",
    )
    if findings.layers:
        yield _layers(findings)
    yield page.Picture.of(
        "susceptibility.png",
        plots.draw_rows(names, [_row(findings, "susceptibility"), _row(findings, "length")], marks),
        "How many pixels change together, χ = Σ C_ij/Σ C_ii, and how far from one another, "
        "∫ C(r) dr/C(0). C_ij is the covariance of the changes of two pixels over the returns of "
        f"an image, averaged over images; nothing is drawn where fewer than {uturns.LEAST_IMAGES} "
        "images change.",
    )
    functions = {
        source: {
            panel.label(_name(score)): findings.measured[score, source].correlated.function
            for score in findings.scores
        }
        for source in names
    }
    distance = next(iter(findings.measured.values())).correlated.distance
    yield page.Picture.of(
        "correlation.png",
        plots.draw_correlation(functions, distance, findings.times),
        "Correlation function of the changes at each time.",
    )
    yield from _pictures(findings)


def _layers(findings: Findings) -> page.Picture:
    layers: dict[str, dict[str, list[Curve]]] = {source: {} for source in findings.sources}
    for (score, source), each in findings.measured.items():
        layers[source][panel.label(_name(score))] = each.layers
    return page.Picture.of(
        "layers.png",
        plots.draw_layers(layers, findings.layers, findings.marks),
        "Cosine of what each layer of the classifier makes of an image and of its return, minus "
        "the layer's mean over the training images.",
    )


def _pictures(findings: Findings) -> Iterator[page.Picture]:
    times, images = findings.times, findings.sources[TRAINING]
    columns = np.unique(np.linspace(0, len(times) - 1, min(len(times), MOST_COLUMNS)).astype(int))
    for score in findings.scores if images.shape[3] in (1, 3) else ():
        returned = findings.measured[score, TRAINING].shown[:, columns]
        own = images[: len(returned)]
        yield page.Picture.of(
            f"changes_{score}.png",
            plots.draw_changes(
                *(own, returned, uturns.changes(own, returned), times[columns]),
                findings.images.mean,
            ),
            f"Training images, what they come back as by {_bringer(score)}, and below that how far "
            f"each pixel moved.",
        )
    for source in findings.sources:
        maps = {
            _name(score): findings.measured[score, source].change[columns]
            for score in findings.scores
        }
        yield page.Picture.of(
            f"maps_{source}.png",
            plots.draw_maps(maps, times[columns]),
            f"How far pixels move in the mean over all images and returns, {source}.",
        )


def _bringer(score: str) -> str:
    return "the network" if score == "trained" else f"the score {panel.label(score)}"


def _texts(findings: Findings) -> list[str]:
    settings, judge = findings.settings, findings.judge
    counts = ", ".join(f"{len(images)} {name}" for name, images in findings.sources.items())
    texts = [
        f"Images go up to time t with noise and come back by the backward process, "
        f"{settings['returns']} times each ({counts}; {settings['sampler']}, "
        f"{settings['process']}). The noise going up is the same for all scores and times. "
        f"Intervals are 95 % bootstrap intervals over whole images; they cover neither the choice "
        f"of the training set nor that of a network's seed.",
        "Under the exact score a return is a draw from the posterior of the training images given "
        "x_t: of its class return and its return to the same image the posterior gives the exact "
        "values. Where images come back to the same training image, hardly any pixel changes, and "
        "χ and the correlation length are those of the few images that do not.",
        "Changes, s = |x' - x| of each pixel, are correlated over the returns of an image, the "
        "noise going up and coming back its own in each, and then averaged over images "
        "(2410.13770, with pixels in place of its tokens). In that paper a peak of χ and of the "
        "correlation length at the loss of the class is the mark of a hierarchy; in a Gaussian "
        "field with a power-law spectrum both only grow with t. A flip between two classes alone "
        "moves many pixels at once too: compare the network with the scores beside it.",
    ]
    if judge is not None:
        low, high = judge.interval
        texts.append(
            f"Classes of images and of returns are judged by a classifier with an accuracy of "
            f"{100 * judge.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] on {judge.held_out} "
            f"images that it was not trained on."
        )
    return texts


def write(out: Path, findings: Findings, console: Console) -> None:
    """Prints the tables and writes result.json, the figures and report.html."""
    header = ["t", *(f"{t:.2g}" for t in findings.times)]
    for source in findings.sources:
        console.print(f"On {source} images:", highlight=False)
        print_table(console, printed(header, rows_of(findings, source)))
    print_table(console, printed(["", "t"], peak_rows(findings)))
    for text in findings.warnings:
        console.print(f"warning: {shown(text)}", style="yellow", highlight=False, markup=False)
    write_json(out / "result.json", to_json(findings))
    pictures = list(figures(findings))
    for picture in pictures:
        picture.save(out)
    parts: list[page.Part] = [page.Paragraph(text) for text in _texts(findings)]
    parts += [page.Paragraph(f"Warning: {text}.", warning=True) for text in findings.warnings]
    parts.append(page.Table(["", "t"], peak_rows(findings)))
    for source in findings.sources:
        parts.append(page.Paragraph(f"On {source} images."))
        parts.append(page.Table(header, rows_of(findings, source)))
    name = findings.settings.get("run_dir") or findings.settings["data"]
    page.save(out / "report.html", f"U-turns of {Path(name).name}", [*parts, *pictures])
