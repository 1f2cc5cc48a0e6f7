"""What `experiments.modes` prints and writes, as numbers and text: tables and result.json."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion_jax.comparing.modes import Found, Measured, Stop
from diffusion_jax.data.images import ImageSet
from diffusion_jax.plots import panel
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.learned_modes import LearnedModes
from diffusion_jax.regimes.measures import level_of
from diffusion_jax.regimes.open_modes import Losses, curves, local_dimension, opening_times
from diffusion_jax.regimes.transitions import Regimes
from experiments.marked import Marked

# What the run's own denoiser is called.
NETWORK = "network"
TIMES = ("t_S_phi", "t_C_phi", "t_C_entropy")


@dataclass(frozen=True)
class Along:
    """The numbers of one denoiser on one source at each time, averaged over the draws.

    Attributes:
      draws: how many.
      curves: see `open_modes.curves`; with the noise, `stein` has |noise|^2 in place of its mean d,
        which takes most of its chance away.
      at_least: where all modes that were looked for are open in a draw, so that the number of open
        ones is a lower bound (T,).
      clear: share of the draws that have a local dimension (T,).
      eigenvalues: the mean (T, k).
      residual: the largest of all eigenvalues at each time (T,).
      trace_error: root mean square of the traces' standard errors over probes (T,).
    """

    draws: int
    curves: dict[str, Curve]
    at_least: np.ndarray
    clear: np.ndarray
    eigenvalues: np.ndarray
    residual: np.ndarray
    trace_error: np.ndarray


def along(cells: Sequence[Measured], times: np.ndarray, seed: int) -> Along:
    """The numbers of the cells of some times; see `Along`.

    Args:
      cells: of each time, with as many draws each.
      times: increasing (T,).
      seed: of the bootstrap.
    """
    spectra = [cell.spectra for cell in cells]
    compared = None
    if np.isfinite(cells[0].loss).all():
        compared = [Losses(c.loss, 2 * c.spectra.trace + c.excess) for c in cells]
    dimensions = [local_dimension(each)[0] for each in spectra]
    return Along(
        len(cells[0]),
        curves(times, spectra, compared, seed),
        np.array([bool(each.at_least.any()) for each in spectra]),
        np.array([float(np.isfinite(each).mean()) for each in dimensions]),
        np.stack([each.eigenvalues.mean(axis=0) for each in spectra]),
        np.array([float(each.residual.max()) for each in spectra]),
        np.array([float(np.sqrt(np.mean(each.trace_error**2))) for each in spectra]),
    )


def estimates(curve: Curve) -> list[Estimate]:
    """A curve's values with their 95 % intervals, one per time; NaN where no draw has one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = curve.interval
    return [Estimate(*map(float, each)) for each in zip(curve.mean, low, high, strict=True)]


@dataclass(frozen=True)
class Findings(Marked):
    """Everything that was measured.

    Attributes:
      settings: what was asked for.
      images: the training images.
      steps: of the schedule (T,), increasing.
      times: of the steps (T,).
      sources: names.
      cells: of each denoiser by its name, the network first.
      eigenvalues: the training set's leading variances (k,), decreasing.
      whose: name of the denoiser of the stops.
      stops: what opens along one of its trajectories, from large t down.
      learned: in which order the run learned the modes, if that is known.
      exact: curves and times of the training set's exact score.
      warnings: one sentence each.
    """

    settings: dict[str, Any]
    images: ImageSet
    steps: list[int]
    times: np.ndarray
    sources: list[str]
    cells: dict[str, Found]
    eigenvalues: np.ndarray
    whose: str
    stops: list[Stop]
    learned: LearnedModes | None
    exact: Regimes
    warnings: list[str]

    @cached_property
    def table(self) -> dict[str, dict[str, Along]]:
        """The numbers by source and denoiser."""
        seed = int(self.settings["seed"])
        return {
            source: {
                name: along([found[source, step] for step in self.steps], self.times, seed)
                for name, found in self.cells.items()
            }
            for source in self.sources
        }

    @property
    def leading(self) -> int:
        """How many modes were looked for."""
        return int(self.settings["modes"])

    @property
    def mode_times(self) -> np.ndarray:
        """At which the training set's Gaussian opens its modes (k,)."""
        return opening_times(self.eigenvalues)

    @property
    def with_noise(self) -> list[str]:
        """The sources whose noise is known."""
        return [
            source
            for source, own in self.table.items()
            if "noise_loss" in next(iter(own.values())).curves
        ]


def _numbers(found: Along) -> dict[str, Any]:
    """The numbers of a denoiser on a source, as JSON has them."""
    plain = ("draws", "at_least", "clear", "eigenvalues", "residual", "trace_error")
    along_time = {
        name: [asdict(each) for each in estimates(curve)] for name, curve in found.curves.items()
    }
    return {name: getattr(found, name) for name in plain} | along_time


def _learned(found: LearnedModes) -> dict[str, Any]:
    return {
        "updates": found.curves[0].times,
        "modes": [
            {
                "variance": variance,
                "ratio": [asdict(each) for each in estimates(curve)],
                "learned_at": asdict(update),
                "from_the_first_checkpoint": bool(at_once),
            }
            for variance, curve, update, at_once in zip(
                found.eigenvalues, found.curves, found.learned, found.at_once, strict=True
            )
        ],
    }


def to_json(findings: Findings) -> dict[str, Any]:
    """All numbers as JSON has them."""
    exact = findings.exact
    return {
        "settings": findings.settings,
        "warnings": findings.warnings,
        "times": findings.times,
        "steps": findings.steps,
        "t_S_spectrum": findings.t_S,
        **{name: asdict(exact.times[name]) for name in TIMES if name in exact.times},
        "variances": findings.eigenvalues,
        "mode_times": findings.mode_times,
        "sources": {
            source: {name: _numbers(found) for name, found in own.items()}
            for source, own in findings.table.items()
        },
        "trajectory": None
        if not findings.stops
        else {
            "denoiser": findings.whose,
            "stops": [
                {
                    "time": time_of(findings, stop),
                    "open_modes": stop.open_modes,
                    "newly_open": stop.eigenvalues,
                }
                for stop in findings.stops
            ],
        },
        "learned": None if findings.learned is None else _learned(findings.learned),
    }


def time_of(findings: Findings, stop: Stop) -> float:
    """The time of a stop."""
    return float(findings.times[findings.steps.index(stop.step)])


def header(findings: Findings) -> list[str]:
    """A table's header: one column per time."""
    return ["t", *(f"{t:.2g}" for t in findings.times)]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def open_rows(own: Mapping[str, Along]) -> list[list[str]]:
    """The number of open modes of each denoiser, and its trace, at each time."""
    rows = []
    for name, found in own.items():
        marks = np.where(found.at_least, "≥", "")
        values = zip(marks, found.curves["open_modes"].mean, strict=True)
        rows.append([panel.label(name), *(f"{mark}{_number(value)}" for mark, value in values)])
    return rows + [
        [f"trace, {panel.label(name)}", *map(_number, found.curves["trace"].mean)]
        for name, found in own.items()
    ]


def identity_rows(own: Mapping[str, Along]) -> list[list[str]]:
    """The noise loss of each denoiser beside what its trace says it is, at each time."""
    rows = []
    for name, found in own.items():
        label = panel.label(name)
        rows.append([f"loss, {label}", *map(_number, found.curves["noise_loss"].mean)])
        if name == "exact":
            rows.append([f"E tr M, {label}", *map(_number, found.curves["trace"].mean)])
        rows.append(
            [f"2 E tr M + E(|ε|² - |z|²), {label}", *map(_number, found.curves["stein"].mean)]
        )
    return rows


LEARNED_HEADER = ["mode", "variance", "ratio at the end [95 %]", "half learned at update [95 %]"]


def text(estimate: Estimate, digits: int, none: str = "none") -> str:
    """An estimate with its interval, where it has one."""
    if not math.isfinite(estimate.value):
        return none
    found = f"{estimate.value:.{digits}f}"
    if math.isfinite(estimate.low):
        found += f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return found


def learned_rows(found: LearnedModes) -> list[list[str]]:
    """When each mode was learned: `LEARNED_HEADER` names the columns."""
    rows = []
    for i, (variance, curve) in enumerate(zip(found.eigenvalues, found.curves, strict=True)):
        none = "before the first checkpoint" if found.at_once[i] else "not reached"
        last = estimates(curve)[-1]
        rows.append([str(i + 1), _number(variance), text(last, 2), text(found.learned[i], 0, none)])
    return rows


def time_rows(findings: Findings) -> list[list[str]]:
    """t_S and t_C of the training set, and the times of the Gaussian's first modes."""
    exact = findings.exact
    rows = [["t_S = 1/2 log Lambda", text(Estimate(findings.t_S, math.nan, math.nan), 3)]]
    for name in TIMES:
        if name in exact.times:
            meaning = level_of(name)[1].described({exact.levels[name][1]})
            rows.append([f"{name[:3]}: {meaning}", text(exact.times[name], 3)])
    first = ", ".join(f"{t:.3f}" for t in findings.mode_times[:5])
    return [*rows, ["1/2 log(1 + variance) of the first modes", first]]
