"""What `experiments.theories` prints and writes: tables, result.json, figures and report.html."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.comparing.cells import Found
from diffusion_jax.comparing.summary import Row, Summary, along, row, summarize, to_nearest
from diffusion_jax.data.images import ImageSet
from diffusion_jax.plots import panel
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.measures import level_of
from diffusion_jax.regimes.resemblance import Closest, Resemblance
from diffusion_jax.regimes.theories import Theory
from diffusion_jax.regimes.transitions import Regimes
from experiments.marked import Marked

# What the network's own samples are called.
NETWORK = "network"
TIMES = ("t_S_phi", "t_C_phi", "t_C_entropy")


@dataclass(frozen=True)
class TwoNetworks:
    """The comparison with another run.

    Attributes:
      folder: of the other run.
      table: cells of the other network.
      sources: names of those that both were asked on.
      points: the other run's training images, in the first one's units (n, ...).
    """

    folder: Path
    table: Found
    sources: list[str]
    points: np.ndarray


@dataclass(frozen=True)
class Findings(Marked):
    """Everything that was measured.

    Attributes:
      settings: what was asked for.
      images: the training images.
      points: the same, mean removed (n, height, width, channels).
      steps: of the schedule (T,), increasing.
      times: of the steps (T,).
      theories: the theories.
      sources: names.
      tables: cells of each theory by its name.
      samples: from one seed, by what drew them, `network` first.
      choices: the theory that took each step of the sampler.
      exact: curves and times of the training set's exact score.
      two_moments: those of its classes with no more than their first two moments, if it has any.
      two: the comparison with another run, if any.
      warnings: one sentence each.
    """

    settings: dict[str, Any]
    images: ImageSet
    points: np.ndarray
    steps: list[int]
    times: np.ndarray
    theories: list[Theory]
    sources: list[str]
    tables: dict[str, Found]
    samples: dict[str, np.ndarray]
    choices: dict[str, list[str]]
    exact: Regimes
    two_moments: Regimes | None
    two: TwoNetworks | None
    warnings: list[str]

    @property
    def seed(self) -> int:
        """Of the bootstrap."""
        return int(self.settings["seed"])

    @cached_property
    def summary(self) -> Summary:
        """What all cells say together."""
        return summarize(self.tables, self.theories, self.sources, self.steps, self.seed)

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Samples beside the network's, by what drew them."""
        if not self.samples:
            return {}
        network = self.samples[NETWORK]
        return {
            name: row(network, samples, self._points_of(name), self.seed)
            for name, samples in self.samples.items()
        }

    def _points_of(self, name: str) -> np.ndarray:
        return self.two.points if name == "other" and self.two is not None else self.points

    @cached_property
    def nearest(self) -> dict[str, tuple[np.ndarray, Estimate, Estimate]]:
        """The training image nearest to each sample of a network, see `to_nearest`."""
        return {
            name: to_nearest(samples, self._points_of(name), self.seed)
            for name, samples in self.samples.items()
            if name in (NETWORK, "other")
        }

    @cached_property
    def others(self) -> dict[str, list[Resemblance]]:
        """Of the two networks, by source."""
        if self.two is None:
            return {}
        table = self.two.table
        return {name: along(table, name, self.steps, self.seed) for name in self.two.sources}


def sides(closest: Closest) -> tuple[int, int, int]:
    """The best patch, and the least and largest that cannot be ruled out."""
    best, *rivals = (int(name.rpartition("_")[2]) for name in (closest.name, *closest.rivals))
    return best, min(best, *rivals, best), max(best, *rivals, best)


def _along(found: list[Resemblance]) -> dict[str, Any]:
    """A theory's numbers along time, as JSON has them."""
    names = ("r_squared", "cosine", "image_r_squared", "network_loss", "theory_loss", "excess")
    return {name: [asdict(getattr(each, name)) for each in found] for name in names} | {
        "images": found[0].images
    }


def _curve(curve: Curve) -> dict[str, Any]:
    low, high = curve.interval
    return {"time": curve.times, "mean": curve.mean, "low": low, "high": high}


def to_json(findings: Findings) -> dict[str, Any]:
    """All numbers as JSON has them."""
    summary, exact = findings.summary, findings.exact
    found: dict[str, Any] = {
        "settings": findings.settings,
        "warnings": findings.warnings,
        "times": findings.times,
        "steps": findings.steps,
        "t_S_spectrum": findings.t_S,
        **{name: asdict(exact.times[name]) for name in TIMES if name in exact.times},
        "two_moments": None
        if findings.two_moments is None
        else {
            "t_S_phi": asdict(findings.two_moments.times["t_S_phi"]),
            "phi": _curve(findings.two_moments.curves["phi"]),
            "exact_phi": _curve(exact.curves["phi"]),
        },
        "theories": {each.name: asdict(each) for each in findings.theories},
        "sources": {
            source: {
                "resemblance": {name: _along(each) for name, each in theories.items()},
                "closest": [asdict(each) for each in summary.closest[source]],
                "patches": {
                    family: [
                        dict(zip(("patch", "least", "largest"), sides(each), strict=True))
                        | {"r_squared": asdict(each.r_squared), "images": each.images}
                        for each in row
                    ]
                    for family, row in summary.patches[source].items()
                },
            }
            for source, theories in summary.resemblance.items()
        },
        "samples": {name: asdict(each) for name, each in findings.rows.items()},
        "sampled_with": findings.choices,
    }
    if findings.two is not None:
        found["other"] = {
            "run_dir": findings.two.folder,
            "sources": {name: _along(each) for name, each in findings.others.items()},
            "to_nearest_training_image": {
                name: {"correlation": asdict(correlation), "cosine": asdict(cosine)}
                for name, (_, correlation, cosine) in findings.nearest.items()
            },
        }
    return found


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"


def _text(estimate: Estimate, digits: int = 2) -> str:
    if not math.isfinite(estimate.value):
        return "none"
    text = f"{estimate.value:.{digits}f}"
    if math.isfinite(estimate.low):
        text += f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return text


def header(times: np.ndarray) -> list[str]:
    """A table's header: one column per time."""
    return ["t", *(f"{t:.2g}" for t in times)]


def r_squared_rows(findings: Findings, source: str) -> list[list[str]]:
    """R^2 of each theory at each time."""
    return [
        [panel.label(name), *(_number(each.r_squared.value) for each in found)]
        for name, found in findings.summary.resemblance[source].items()
    ]


def closest_header(findings: Findings, source: str) -> list[str]:
    """The columns of `closest_rows`: of patches, the best ones."""
    best = (f"patch, {name}" for name in findings.summary.patches[source])
    return ["t", "closest", "R² [95 %]", "not ruled out", *best]


def closest_rows(findings: Findings, source: str) -> list[list[str]]:
    """The closest theory at each time, what it leaves, and the best patches."""
    patches = findings.summary.patches[source]
    rows = []
    for i, (t, best) in enumerate(
        zip(findings.times, findings.summary.closest[source], strict=True)
    ):
        rivals = ", ".join(map(panel.label, best.rivals)) or "none"
        own = [_side_text(row[i]) for row in patches.values()]
        rows.append([f"{t:.3g}", panel.label(best.name), _text(best.r_squared), rivals, *own])
    return rows


def _side_text(closest: Closest) -> str:
    best, low, high = sides(closest)
    return str(best) if low == high else f"{best} ({low} to {high})"


def loss_rows(findings: Findings, source: str) -> list[list[str]]:
    """Noise losses of the network and of each theory, at each time."""
    theories = findings.summary.resemblance[source]
    widest = max(theories.values(), key=lambda found: found[0].images)
    rows = [["network", *(f"{each.network_loss.value:.3g}" for each in widest)]]
    return rows + [
        [panel.label(name), *(f"{each.theory_loss.value:.3g}" for each in found)]
        for name, found in theories.items()
    ]


def sample_rows(findings: Findings) -> list[list[str]]:
    """What samples from one seed say of each theory: `SAMPLES_HEADER` names the columns."""
    rows = []
    for name, each in findings.rows.items():
        beside = [
            _text(each.correlation),
            _number(each.squared.value),
            _text(each.image_r_squared),
        ]
        if name == NETWORK:  # beside itself
            beside = [""] * len(beside)
        own = [_number(each.neighbour_ratio), f"{100 * each.memorised:.0f} %"]
        rows.append([name, *beside, *own])
    return rows


SAMPLES_HEADER = ["", "correlation", "squared", "R² over pixels", "distance ratio", "memorised"]


def time_rows(findings: Findings) -> list[list[str]]:
    """t_S and t_C of the training set."""
    exact = findings.exact
    t_S = Estimate(findings.t_S, math.nan, math.nan)
    rows = [["t_S = 1/2 log Lambda", _text(t_S, 3)]]
    for name in TIMES:
        if name in exact.times:
            meaning = level_of(name)[1].described({exact.levels[name][1]})
            rows.append([f"{name[:3]}: {meaning}", _text(exact.times[name], 3)])
    if findings.two_moments is not None:
        time = findings.two_moments.times["t_S_phi"]
        rows.append(["t_S: the same, of two moments per class", _text(time, 3)])
    return rows


def other_rows(findings: Findings) -> list[list[str]]:
    """R^2 and cosine of the two networks, at each time."""
    rows = []
    for source, found in findings.others.items():
        rows.append([f"R², {source}", *(_number(each.r_squared.value) for each in found)])
        rows.append([f"cosine, {source}", *(_number(each.cosine.value) for each in found)])
    return rows


def with_noise(findings: Findings) -> list[str]:
    """The sources whose noise is known."""
    return [
        source
        for source, theories in findings.summary.resemblance.items()
        if math.isfinite(next(iter(theories.values()))[0].network_loss.value)
    ]
