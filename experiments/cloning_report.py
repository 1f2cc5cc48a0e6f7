"""What `experiments.cloning` prints and writes: a table, result.json, figures and report.html."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffusion_jax.data.images import ImageSet
from diffusion_jax.judging import quality
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.plots import cloning as plots
from diffusion_jax.plots import page
from diffusion_jax.regimes import spectrum
from diffusion_jax.regimes.cloning import Cloning
from diffusion_jax.regimes.commitment import Commitment, Outcomes, fraction
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.measures import level_of
from diffusion_jax.regimes.transitions import Regimes
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.runtime.text import shown
from experiments.paper.published import speciation_curve

# Columns of the picture of forks, and samples shown beside their nearest training images.
MOST_COLUMNS = 10
NEIGHBOURS_SHOWN = 12
# Of the kernel distance, at most: of few images there are fewer, of two each.
SUBSETS = 10
# Which neighbour sets the radius of precision and recall.
NEIGHBOUR = 3


@dataclass(frozen=True)
class Findings:
    """Everything that was measured.

    Attributes:
      name: of what was forked.
      settings: what was asked for.
      images: the training images.
      points: the same, mean removed (n, height, width, channels).
      outcomes: what the trunks and clones ended in.
      shown: ends of the forks of the first trunks (rows, B, 2, height, width, channels).
      commitment: their curves and times.
      exact: those of the exact score.
      judge: the classifier; None where there is one class.
      calls: of the denoiser, for a trunk and its clones.
      separate_calls: where every fork is generated from pure noise.
      published: data set whose published curve is laid over phi.
      warnings: one sentence each.
    """

    name: str
    settings: dict[str, Any]
    images: ImageSet
    points: np.ndarray
    outcomes: Outcomes
    shown: np.ndarray
    commitment: Commitment
    exact: Regimes
    judge: TrainedClassifier | None
    calls: int
    separate_calls: int
    published: str | None
    warnings: list[str]

    @cached_property
    def t_S(self) -> Estimate:
        """1/2 log Lambda of the first channel; no interval."""
        value = spectrum.speciation_time(spectrum.largest_eigenvalue(self.images.images))
        return Estimate(value, math.nan, math.nan)


def _quality(findings: Findings) -> tuple[dict[str, Any] | None, list[str]]:
    """Samples against training images in the features of the classifier; and what is missing."""
    judge, trunk = findings.judge, findings.outcomes.trunk
    if judge is None:
        return None, []
    shift = findings.images.mean - judge.mean
    real, fake = (judge.features(x + shift) for x in (findings.points, trunk))
    fewest = min(len(real), len(fake))
    subsets = min(SUBSETS, fewest // 2)
    missing = []
    if subsets > 1:
        distance = quality.kid(real, fake, subsets, fewest // subsets, seed=0)
    else:
        distance = quality.KernelDistance(quality.mmd2(real, fake), math.nan)
        missing.append(f"the kernel distance of {fewest} images has no standard error")
    cover = None
    if fewest > NEIGHBOUR:
        cover = quality.precision_recall(real, fake, NEIGHBOUR)
    else:
        missing.append(f"precision and recall need more than {NEIGHBOUR} images, not {fewest}")
    return {
        "features": "of the project's own classifier of these classes, not Inception's",
        "kernel_distance": distance.mean,
        "kernel_distance_standard_error": distance.standard_error,
        "precision": None if cover is None else cover.precision,
        "recall": None if cover is None else cover.recall,
    }, missing


def _counted(cloning: Cloning, exact: Curve) -> dict[str, Any]:
    """Fractions at the forks beside the exact score's, with the p-value of their being equal."""
    low, high = cloning.interval().T
    expected = exact.mean[np.searchsorted(exact.times, cloning.times)]
    return {
        "exact": expected,
        "p_value": cloning.p_values(expected),
        "time": cloning.times,
        "mean": cloning.phi,
        "low": low,
        "high": high,
        "pairs": cloning.pairs,
    }


def _class_fractions(findings: Findings) -> dict[str, float] | None:
    """Share of the trunks that end in each class; None where classes are not known."""
    names, counts = findings.images.class_names, findings.commitment.class_counts
    if len(names) > 1 and findings.judge is None:
        return None
    return dict(zip(names, counts / counts.sum(), strict=False))


def to_json(findings: Findings, quality: dict[str, Any] | None) -> dict[str, Any]:
    """All numbers as JSON has them."""
    found, exact, judge = findings.commitment, findings.exact, findings.judge
    exact_curves = {
        name: {"time": curve.times, "mean": curve.mean, "standard_error": curve.standard_error}
        for name, curve in exact.curves.items()
        if name in ("phi", "phi_C")
    }
    return {
        "settings": findings.settings,
        "warnings": findings.warnings,
        "phi": None if found.phi is None else _counted(found.phi, exact.curves["phi"]),
        "phi_C": _counted(found.phi_C, exact.curves["phi_C"]),
        "t_S_spectrum": findings.t_S.value,
        **{name: asdict(time) for name, time in found.times.items()},
        "phi_level": found.level,
        "t_C_hat": {
            "mean": asdict(found.mean_change),
            "standard_deviation": found.changes.std() if len(found.changes) else None,
            "quantiles_5_25_50_75_95": np.percentile(found.changes, [5, 25, 50, 75, 95])
            if len(found.changes)
            else None,
            "trajectories": len(found.changes),
            "unchanged": found.unchanged,
            "phi_C_at_the_mean": found.phi_C_there,
            "each": found.changes,
        },
        "memorised_fraction": asdict(found.memorised),
        "neighbour_ratio_median": float(np.median(findings.outcomes.neighbours.ratio)),
        "class_fractions": _class_fractions(findings),
        "exact_score": {
            **{name: asdict(time) for name, time in exact.times.items()},
            "curves": exact_curves,
        },
        "classifier": None
        if judge is None
        else {"accuracy": judge.accuracy, "interval": judge.interval, "held_out": judge.held_out},
        "quality": quality,
        "denoiser_calls": {
            "a_trunk": findings.calls,
            "a_trunk_if_separate": findings.separate_calls,
            "share": findings.calls / findings.separate_calls,
        },
    }


def _text(estimate: Estimate, none: str = "not crossed") -> str:
    if not math.isfinite(estimate.value):
        return none
    text = f"{estimate.value:.3f}"
    if math.isfinite(estimate.low):
        text += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return text


def _quality_rows(quality: dict[str, Any]) -> list[list[str]]:
    error = quality["kernel_distance_standard_error"]
    distance = f"{quality['kernel_distance']:.4g}"
    if math.isfinite(error):
        distance += f" (s.e. {error:.2g})"
    rows = [["kernel distance (classifier features)", distance, ""]]
    if quality["precision"] is not None:
        cover = f"{quality['precision']:.3f}, {quality['recall']:.3f}"
        rows.append(["precision, recall", cover, ""])
    return rows


def table_of(findings: Findings, quality: dict[str, Any] | None) -> list[list[str]]:
    """Rows of what, this denoiser's value and the exact score's."""
    found, exact = findings.commitment, findings.exact
    rows = [["t_S = 1/2 log Lambda", "", _text(findings.t_S, "none: Lambda <= 1")]]
    for name in ("t_S_phi", "t_C_phi", "t_C_entropy"):
        if name in exact.times:
            meaning = level_of(name)[1].described({exact.levels[name][1]})
            own = _text(found.times[name]) if name in found.times else ""
            rows.append([f"{name[:3]}: {meaning}", own, _text(exact.times[name])])
    rows += [
        ["mean of t_C_hat", _text(found.mean_change, "no change seen"), ""],
        ["memorised fraction", _text(found.memorised), ""],
    ]
    if len(found.class_counts) > 1:
        total = int(found.class_counts.sum())
        for name, count in zip(findings.images.class_names, found.class_counts, strict=True):
            rows.append([f"samples of class {name}", _text(fraction(int(count), total)), ""])
    return rows if quality is None else rows + _quality_rows(quality)


def _figures(findings: Findings) -> Iterator[page.Picture]:
    if findings.commitment.phi is not None:
        yield _phi(findings)
    found, exact = findings.commitment, findings.exact
    yield page.Picture.of(
        "collapse.png",
        plots.draw_collapse(
            found,
            exact.curves["phi_C"],
            {
                f"exact {level_of(name)[1].symbol}": exact.times[name]
                for name in ("t_C_phi", "t_C_entropy")
            },
            findings.name,
        ),
        "Above: probability that two clones end nearest to the same training image. Below: when "
        "each trunk changed its nearest training image for the last time.",
    )
    if findings.points.shape[3] in (1, 3):
        yield _forks(findings)
        yield _neighbours(findings)


def _phi(findings: Findings) -> page.Picture:
    found, exact = findings.commitment, findings.exact
    assert found.phi is not None
    published = None
    if findings.published is not None:
        times, phi, t_S = speciation_curve(findings.published)
        scaled = times * findings.t_S.value / t_S
        keep = scaled <= found.phi.times.max()
        label = f"published, {findings.published}, time rescaled by t$_S$"
        published = (scaled[keep], phi[keep], label)
    exact_time = exact.times.get("t_S_phi", Estimate(math.nan, math.nan, math.nan))
    figure = plots.draw_phi(
        *(found, exact.curves["phi"], findings.t_S, exact_time),
        *(exact.floor, findings.name, published),
    )
    return page.Picture.of(
        "phi.png",
        figure,
        "Probability that two clones forked at time t end in the same class. Points: trajectories, "
        "with Wilson's 95 % intervals; grey: the exact score of the training set, from the "
        "posterior. Horizontal: the level at which phi defines t_S, and the floor, what phi "
        "tends to for large t.",
    )


def _forks(findings: Findings) -> page.Picture:
    times = findings.commitment.phi_C.times
    columns = np.unique(np.linspace(0, len(times) - 1, min(len(times), MOST_COLUMNS)).astype(int))
    return page.Picture.of(
        "forks.png",
        plots.draw_forks(findings.shown[:, columns], times[columns], findings.images.mean),
        "A row is one trunk, a column one branch time; the two clones stand side by side.",
    )


def _neighbours(findings: Findings) -> page.Picture:
    outcomes, first = findings.outcomes, slice(NEIGHBOURS_SHOWN)
    figure = plots.draw_neighbours(
        outcomes.trunk[first],
        findings.points[outcomes.index[first]],
        outcomes.neighbours.ratio[first],
        findings.images.mean,
    )
    return page.Picture.of(
        "neighbours.png",
        figure,
        "Samples (above) and their nearest training images (below); the number is the distance to "
        "it over that to the second nearest. Under 1/3 counts as memorised.",
    )


def printed(header: list[str], rows: list[list[str]]) -> Table:
    """The table as rich prints it; no text in it is markup."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in header:
        table.add_column(Text(shown(name)))
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table


def write(out: Path, findings: Findings, console: Console) -> None:
    """Prints the table and writes result.json, the figures and report.html."""
    quality, missing = _quality(findings)
    findings.warnings.extend(missing)
    rows = table_of(findings, quality)
    header = ["", findings.name, "exact score"]
    print_table(console, printed(header, rows))
    for text in findings.warnings:
        console.print(f"warning: {shown(text)}", style="yellow", highlight=False, markup=False)
    result = to_json(findings, quality)
    write_json(out / "result.json", result)
    pictures = list(_figures(findings))
    for picture in pictures:
        picture.save(out)
    share = findings.calls / findings.separate_calls
    judge = findings.judge
    texts = [
        f"{len(findings.outcomes.trunk)} trunks, each forked at {len(findings.shown[0])} times. "
        f"A trunk and its clones took {findings.calls} calls of the denoiser, {100 * share:.0f} % "
        f"of what generating every fork from pure noise takes. Sampler: "
        f"{findings.settings['sampler']}, {findings.settings['backward_process']}.",
        "Times are Ornstein-Uhlenbeck times. Forks of one trunk are correlated; the interval at "
        "each fork is binomial, those of crossing times are a bootstrap over trunks. The exact "
        "score's intervals cover its draws.",
    ]
    if judge is not None:
        low, high = judge.interval
        texts.append(
            f"Classes are judged by a classifier with an accuracy of {100 * judge.accuracy:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}] on {judge.held_out} images that it was not "
            f"trained on. Kernel distance, precision and recall are taken between its features of "
            f"the samples and of the training images: they are not comparable with published ones."
        )
    page.save(
        out / "report.html",
        f"Forks of {Path(findings.settings['run_dir']).name}",
        [
            *(page.Paragraph(text) for text in texts),
            *(page.Paragraph(f"Warning: {text}.", warning=True) for text in findings.warnings),
            page.Table(header, rows),
            *pictures,
        ],
    )
