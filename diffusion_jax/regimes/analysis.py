"""Everything that can be said of a data set without training: its spectrum, t_S and t_C."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jax import Array

from diffusion_jax.covariance import Rows
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import class_information, spectrum
from diffusion_jax.regimes.adaptive import adaptive_times, data_density
from diffusion_jax.regimes.class_information import Partition
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.lipschitz import LipschitzCurve, lipschitz_curve
from diffusion_jax.regimes.measures import known
from diffusion_jax.regimes.posterior import Draws
from diffusion_jax.regimes.symmetric_spectrum import (
    MOST_EIGENVALUES,
    orbit_eigenvalues,
    orbit_spectrum,
)
from diffusion_jax.regimes.training_set import training_set
from diffusion_jax.regimes.transitions import (
    Regimes,
    check_accuracy,
    measure_from,
    summarize,
    summarize_class,
)
from diffusion_jax.runtime.files import plain
from diffusion_jax.symmetry import Group

NUM_MODES = 16
LIPSCHITZ_TIMES = np.geomspace(1e-2, 5, 16)
MOST_CLASSES = 20
SCHEDULE_STEPS = 1000
_LIPSCHITZ_WORK = 5e7


@dataclass(frozen=True)
class Spectrum:
    """Lambda of some channels, t_S = 1/2 log Lambda, and the first modes (k, d).

    `shift` tells of Lambda's bias, see `spectrum.speciation_estimate`.
    """

    Lambda: Estimate
    t_S: Estimate
    shift: float
    modes: np.ndarray


@dataclass(frozen=True)
class Symmetry:
    """A group whose maps of the images count as images too.

    Attributes:
      name: of the group.
      order: number of its maps.
      num_distinct: number of points of the orbit, those of each image counted apart.
      without: the regimes of the images alone, from the same draws of an image and of noise.
    """

    name: str
    order: int
    num_distinct: int
    without: "Analysis"


@dataclass(frozen=True)
class Analysis:
    """The regimes of a data set, or of its orbit under a group of symmetries.

    With a group everything but `lipschitz` is that of the orbit {g a} of the images minus their
    mean, as the process starts from them.

    Attributes:
      first_channel: Lambda and t_S of the first channel, as Biroli et al. (2024) publish them; t_S
        is NaN where Lambda is at most 1.
      all_channels: the same of all channels together.
      eigenvalues: of the covariance of all channels, decreasing: all of them where n or d is at
        most 2 500, else the first 16.
      norm: E|x_t|^2 along time.
      overall: curves and times of all draws.
      per_class: those of the draws from each class, by its name; empty without labels or with more
        than 20 classes.
      pairs: what x_t says of each two classes; of three to ten, else empty.
      partition: what it says of a user's own groups of classes; None where there are none.
      lipschitz: the constants of the empirical score.
      schedule: times of the 1 000 steps of the data's own noise schedule, see `adaptive`; None
        where it cannot be made.
      num_points: number n of images; of an orbit, see `TrainingSet.num_points`.
      warnings: what to know before trusting a number, one sentence each.
      symmetry: the group, and what is found without it; None where there is none.
    """

    first_channel: Spectrum
    all_channels: Spectrum
    eigenvalues: np.ndarray
    norm: spectrum.SquaredNorm
    overall: Regimes
    per_class: dict[str, Regimes]
    pairs: tuple[Partition, ...]
    partition: Partition | None
    lipschitz: LipschitzCurve
    schedule: np.ndarray | None
    num_points: float
    warnings: tuple[str, ...]
    symmetry: Symmetry | None = None

    @property
    def times(self) -> dict[str, Estimate]:
        """All times of the whole data set by name."""
        return {"t_S_spectrum": self.first_channel.t_S, **self.overall.times}


def _spectrum(images: np.ndarray, all_channels: bool, group: Group | None) -> Spectrum:
    if group is not None:
        values, modes, replicates = orbit_spectrum(images, group, all_channels, NUM_MODES)
    else:
        rows = Rows(images, all_channels)
        values, modes = spectrum.eigenmodes(rows, min(NUM_MODES, max(1, min(rows.d, rows.n) - 1)))
        if values[0] > 0:
            replicates = spectrum.bootstrap_largest_eigenvalue(rows, modes[0])
    if values[0] <= 0:
        return Spectrum(Estimate(0, 0, 0), Estimate(*(3 * (math.nan,))), 0.0, modes)
    return Spectrum(*spectrum.speciation_estimate(float(values[0]), replicates), modes)


def _eigenvalues(images: np.ndarray, group: Group | None) -> np.ndarray:
    """All eigenvalues of the covariance, or the first few where there are too many."""
    if group is not None:
        return orbit_eigenvalues(images, group, NUM_MODES)
    rows = Rows(images, True)
    if min(rows.n, rows.d) <= MOST_EIGENVALUES:
        return spectrum.full_spectrum(rows)
    return spectrum.eigenmodes(rows, NUM_MODES)[0]


def _norm(images: np.ndarray, scale: int, mean: np.ndarray) -> spectrum.SquaredNorm:
    squares = (np.sum((part / scale - mean) ** 2) for part in np.array_split(images, 64))
    return spectrum.SquaredNorm(math.prod(images.shape[1:]), float(sum(squares)) / len(images))


def _lipschitz(images: np.ndarray, scale: int, key: Array) -> LipschitzCurve:
    points = images.reshape(len(images), -1) / np.float32(scale)
    num_draws = int(np.clip(_LIPSCHITZ_WORK / points.size, 4, 32))
    return lipschitz_curve(points, LIPSCHITZ_TIMES, key, num_draws)


def _warnings(
    first: Spectrum, overall: Regimes, num_classes: int, accuracy: float
) -> Iterator[str]:
    has_time = first.Lambda.value > 1
    # NaN where there is none: then neither lies above the other.
    t_S, t_C = (
        overall.times[name].value if name in overall.times else math.nan
        for name in ("t_S_phi", "t_C_phi")
    )
    if first.shift > 1:
        too = ", and t_S_spectrum with it" * has_time
        quoted = "; t_S_phi is the time to quote" * (t_S > t_C)
        yield (
            f"Lambda is too large by more than its interval{too}: no mode stands out, or the "
            f"images are too few{quoted}"
        )
    if not has_time:
        yield "Lambda is at most 1, so that 1/2 log Lambda is no time: there is no t_S_spectrum"
    if t_S <= t_C:
        yield (
            "t_S_phi lies at or below t_C_phi: it tells training images apart, not classes; more "
            "images would lower t_C_phi"
        )
    errors = {
        name: float(np.max(overall.curves[name].standard_error))
        for name, each in known(num_classes).items()
        if each.accurate
    }
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > 1.05 * accuracy:
        yield (
            f"the accuracy asked for, {accuracy:g}, was not reached: the standard error of {worst} "
            f"goes up to {errors[worst]:.2g}; allow more draws"
        )
    if num_classes > MOST_CLASSES:
        yield f"curves of single classes are given for up to {MOST_CLASSES} classes"
    if num_classes > class_information.MOST_PAIRED:
        yield f"pairs of classes are given for up to {class_information.MOST_PAIRED} classes"


def _per_class(
    draws: Draws, num_points: float, weights: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, Regimes]:
    if not 1 < len(weights) <= MOST_CLASSES:
        return {}
    return {
        name: summarize_class(draws, num_points, weights, label)
        for label, name in enumerate(class_names)
    }


def _schedule(
    overall: Regimes, eigenvalues: np.ndarray, num_points: float, dimension: int
) -> np.ndarray | str:
    """The times of the data's own schedule, or why there is none."""
    try:
        density = data_density(overall, eigenvalues, num_points, dimension)
        return adaptive_times(overall.curves["phi_C"].times, density, SCHEDULE_STEPS)
    except UserError as error:
        return f"no schedule can be made from these images: {error}"


def measure(
    images: np.ndarray,
    labels: np.ndarray | None,
    class_names: tuple[str, ...],
    mean: np.ndarray,
    key: Array,
    accuracy: float,
    max_draws: int,
    progress: Callable[[int, float], None] = lambda num_draws, error: None,
    group: Group | None = None,
    partition: Sequence[Sequence[int]] | None = None,
    with_pairs: bool = True,
) -> Analysis:
    """Measures the regimes of a data set; with a group those of its orbit, and those without.

    Args:
      images: (n, height, width, channels); uint8 is scaled to [0, 1].
      labels: classes 0..C-1 (n,), or None.
      class_names: one name per class.
      mean: per-channel mean of the images on the scale of [0, 1], removed before the process
        starts.
      key: typed PRNG key.
      accuracy: largest standard error of phi, phi_C and f^e/alpha.
      max_draws: most draws.
      progress: see `transitions.measure`.
      group: symmetries of the images minus their mean, each of the class of its image.
      partition: labels of classes in groups, see `class_information.groups_named`.
      with_pairs: whether pairs of classes are measured, which takes a while where there are many.

    Raises:
      UserError: see `training_set`.
    """
    check_accuracy(accuracy, max_draws)
    without, scale = None, 255 if images.dtype == np.uint8 else 1
    if group is not None:
        plain = (images, labels, class_names, mean, key, accuracy, max_draws, progress)
        without = measure(*plain, with_pairs=False)
        images, mean, scale = images / np.float32(scale) - mean, np.zeros_like(mean), 1
    first = _spectrum(images, False, group)
    every = _spectrum(images, True, group) if images.shape[-1] > 1 else first
    eigenvalues = _eigenvalues(images, group)
    norm = _norm(images, scale, mean)

    training = training_set(images, labels, group)
    draws = measure_from(training, key, accuracy, max_draws, progress=progress)
    num_points, weights = training.num_points, training.class_weights
    symmetry = None
    if group is not None and without is not None:
        symmetry = Symmetry(group.name, group.order, sum(training.sizes), without)
    del training
    overall = summarize(draws, num_points, weights)
    per_class = _per_class(draws, num_points, weights, class_names)
    pairs = class_information.pairs(draws, weights, class_names) if with_pairs else ()
    parted = None
    if partition is not None:
        parted = class_information.part(draws, weights, class_names, partition)
    lipschitz = without.lipschitz if without else _lipschitz(images, scale, key)
    warnings = list(_warnings(first, overall, len(weights), accuracy))
    schedule = _schedule(overall, eigenvalues, num_points, norm.dimension)
    if isinstance(schedule, str):
        warnings.append(schedule)
    if without is not None:
        others = [text for text in without.warnings if text not in warnings]
        warnings += [f"without the symmetry, {text}" for text in others]
    return Analysis(
        first_channel=first,
        all_channels=every,
        eigenvalues=eigenvalues,
        norm=norm,
        overall=overall,
        per_class=per_class,
        pairs=pairs,
        partition=parted,
        lipschitz=lipschitz,
        schedule=None if isinstance(schedule, str) else schedule,
        num_points=num_points,
        warnings=tuple(warnings),
        symmetry=symmetry,
    )


def _curve(curve: Curve) -> dict[str, Any]:
    low, high = curve.interval
    return {
        "time": curve.times,
        "mean": curve.mean,
        "standard_error": curve.standard_error,
        "low": low,
        "high": high,
    }


def _regimes(regimes: Regimes) -> dict[str, Any]:
    found = {
        **{name: asdict(time) for name, time in regimes.times.items()},
        "phi_floor": regimes.floor,
        "num_draws": regimes.num_draws,
        "curves": {name: _curve(curve) for name, curve in regimes.curves.items()},
    }
    if "class_rate" in regimes.curves:
        peaks = class_information.peaks(regimes.curves["class_rate"])
        found["class_rate_peaks"] = {clock: asdict(time) for clock, time in peaks.items()}
    return found


def _partition(partition: Partition) -> dict[str, Any]:
    return {
        "groups": partition.groups,
        "weights": partition.weights,
        **_regimes(partition.regimes),
    }


def _pair(pair: Partition) -> dict[str, Any]:
    """The times of two classes and, of the curves, no more than the averages: there are many."""
    times, curves = pair.regimes.times, pair.regimes.curves
    return {
        "classes": [name for group in pair.groups for name in group],
        **{name: asdict(time) for name, time in times.items()},
        **{name: curves[name].mean for name in ("phi", "class_information", "class_rate")},
    }


def _times(analysis: Analysis) -> dict[str, Any]:
    return {
        "Lambda": asdict(analysis.first_channel.Lambda),
        "t_S_spectrum": asdict(analysis.first_channel.t_S),
        "Lambda_all_channels": asdict(analysis.all_channels.Lambda),
        "t_S_spectrum_all_channels": asdict(analysis.all_channels.t_S),
        **{name: asdict(time) for name, time in analysis.overall.times.items()},
    }


def _symmetry(symmetry: Symmetry) -> dict[str, Any]:
    return {
        "order": symmetry.order,
        "num_distinct": symmetry.num_distinct,
        "without_symmetry": _times(symmetry.without),
    }


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The numbers of an analysis as JSON has them; null where there is none."""
    result = {
        **_times(analysis),
        **_regimes(analysis.overall),
        **(_symmetry(analysis.symmetry) if analysis.symmetry is not None else {}),
        "num_points": analysis.num_points,
        "dimension": analysis.norm.dimension,
        "eigenvalues": analysis.eigenvalues,
        "mode_times": spectrum.mode_times(analysis.eigenvalues),
        "squared_norm": {
            "initial": analysis.norm.initial,
            "critical_point": analysis.norm.critical_point,
        },
        "lipschitz": {
            "time": analysis.lipschitz.times,
            **{
                f"{name}_{percent}": np.percentile(table, percent, axis=0)
                for name, table in (
                    ("local", analysis.lipschitz.local),
                    ("one_sided", analysis.lipschitz.one_sided),
                )
                for percent in (5, 50, 95)
            },
            "bound": analysis.lipschitz.bound,
        },
        "per_class": {name: _regimes(each) for name, each in analysis.per_class.items()},
        "pairs": [_pair(pair) for pair in analysis.pairs],
        "partition": None if analysis.partition is None else _partition(analysis.partition),
    }
    return plain(result)
