"""Speciation and collapse of a data set under its exact score: the curves and their times."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from jax import Array
from scipy.interpolate import PchipInterpolator

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import ON_THE_LEVEL, Curve, Estimate, average
from diffusion_jax.regimes.measures import OBSERVABLES, known
from diffusion_jax.regimes.observables import Ensemble, Observable, time_at
from diffusion_jax.regimes.posterior import Draws, draw_from
from diffusion_jax.regimes.training_set import TrainingSet, training_set
from diffusion_jax.symmetry import Group

TIMES = np.geomspace(1e-3, 10, 96)
MAX_DRAWS = 50_000
_FIRST_ROUND = 1024


@dataclass(frozen=True)
class Regimes:
    """Curves and times of a data set, or of the draws that start from one of its classes.

    `measures.OBSERVABLES` says what each curve is, and which level of it defines which time.

    Attributes:
      curves: the curves by name; phi and what else is of classes need them.
      times: the times by name; NaN where a curve does not cross its level.
      levels: the curve and the level that define each time.
      floor: what phi tends to at large t: sum_c pi_c^2, or pi_c for a single class.
      num_draws: draws taken at each time (T,).
    """

    curves: dict[str, Curve]
    times: dict[str, Estimate]
    levels: dict[str, tuple[str, float]]
    floor: float
    num_draws: np.ndarray

    def beyond(self, name: str) -> str:
        """Where a time is that the curve does not show: before or after its times, or never."""
        curve, level = self.levels[name]
        if np.isnan(level):
            return "none"
        times, mean = self.curves[curve].times, self.curves[curve].mean
        if not np.isfinite(mean).all():
            return "no draws"
        excess = (mean - level) * (-1 if OBSERVABLES[curve].falls else 1)
        if excess[0] > ON_THE_LEVEL:
            return f"< {times[0]:.3g}"
        return f"> {times[-1]:.3g}" if excess[-1] < -ON_THE_LEVEL else "never"


def summarize(draws: Draws, num_points: float, class_weights: np.ndarray, seed: int = 0) -> Regimes:
    """Averages draws into curves, and finds the times; see `Regimes`.

    Args:
      draws: from the posterior engine; NaN marks what was not taken.
      num_points: number n of training points, see `TrainingSet.num_points`.
      class_weights: pi_c (C,).
      seed: of the bootstrap.
    """
    ensemble = Ensemble(draws, num_points, class_weights)
    return summarize_some(ensemble, known(len(class_weights)), seed)


def summarize_class(
    draws: Draws, num_points: float, class_weights: np.ndarray, label: int, seed: int = 0
) -> Regimes:
    """The same over the draws that start from one class."""
    chosen = draws.labels == label
    tables = {
        field.name: table if field.name == "times" else table[chosen]
        for field in fields(draws)
        for table in [getattr(draws, field.name)]
    }
    ensemble = Ensemble(Draws(**tables), num_points, class_weights, label)
    observables = known(len(class_weights)).items()
    return summarize_some(
        ensemble, {name: each for name, each in observables if not each.of_all}, seed
    )


def summarize_some(
    ensemble: Ensemble, observables: Mapping[str, Observable], seed: int = 0
) -> Regimes:
    """The curves and times of some observables alone, by their names."""
    draws = ensemble.draws
    # Those that average the same values share the average.
    values = {each.values: each.values(ensemble) for each in observables.values()}
    averages = dict(zip(values, average(draws.times, values.values(), seed), strict=True))
    curves: dict[str, Curve] = {}
    levels: dict[str, tuple[str, float]] = {}
    for name, each in observables.items():
        curve, link = averages[each.values], each.link
        curves[name] = curve if link is None else curve.map(partial(link, ensemble))
        levels |= {time: (name, level.of(ensemble)) for time, level in each.times.items()}
    times = {time: time_at(curves[name], level) for time, (name, level) in levels.items()}
    num_draws = np.sum(~np.isnan(draws.log_evidence[..., 0]), axis=0)
    return Regimes(curves, times, levels, ensemble.floor, num_draws)


def _combine(rounds: list[Draws], times: np.ndarray) -> Draws:
    """One set of draws at all times, NaN at those that a round left out."""

    def stack(name: str) -> np.ndarray:
        tables = []
        for part in rounds:
            table = getattr(part, name)
            wide = np.full((len(table), len(times), *table.shape[2:]), np.nan, table.dtype)
            wide[:, np.searchsorted(times, part.times)] = table
            tables.append(wide)
        return np.concatenate(tables)

    return Draws(
        times,
        np.concatenate([part.index for part in rounds]),
        np.concatenate([part.labels for part in rounds]),
        *(stack(field.name) for field in fields(Draws)[3:]),
    )


def check_accuracy(accuracy: float, max_draws: int) -> None:
    """Refuses what `measure` cannot aim at.

    Raises:
      UserError: an accuracy that is not positive and finite, or fewer than 100 draws.
    """
    if not 0 < accuracy < np.inf or max_draws < 100:
        raise UserError(
            f"accuracy = {accuracy} must be positive and finite, max_draws = {max_draws} at least "
            f"100"
        )


def measure(
    points: np.ndarray,
    labels: np.ndarray | None,
    key: Array,
    accuracy: float = 2e-3,
    max_draws: int = MAX_DRAWS,
    times: np.ndarray = TIMES,
    progress: Callable[[int, float], None] = lambda num_draws, error: None,
    group: Group | None = None,
) -> Draws:
    """Draws from the posterior engine until the curves are accurate, most where they are not yet.

    A first round takes every time; each further round doubles the draws, at the times alone where
    the standard error of phi, phi_C or f^e/alpha (`Observable.accurate`) is still over what is
    asked for.

    Args:
      points: training points (n, ...), see `posterior.draw`.
      labels: classes 0..C-1 (n,), or None.
      key: typed PRNG key.
      accuracy: largest standard error of phi, phi_C and f^e/alpha.
      max_draws: most draws at any time, reached where the accuracy is too much to ask.
      times: increasing Ornstein-Uhlenbeck times (T,).
      progress: called after each round with the draws so far and the largest standard error.
      group: symmetries, see `training_set`.

    Returns:
      The draws; NaN at the times that a round left out.

    Raises:
      UserError: see `training_set` and `check_accuracy`.
    """
    check_accuracy(accuracy, max_draws)
    training = training_set(points, labels, group)
    return measure_from(training, key, accuracy, max_draws, times, progress)


def measure_from(
    training: TrainingSet,
    key: Array,
    accuracy: float,
    max_draws: int,
    times: np.ndarray = TIMES,
    progress: Callable[[int, float], None] = lambda num_draws, error: None,
) -> Draws:
    """The draws of `measure` from points that are on the devices already."""
    times, weights = np.asarray(times, np.float64), training.class_weights
    wanted = [each.values for each in known(len(weights)).values() if each.accurate]
    active = np.ones(len(times), bool)
    # Sums of these quantities and of their squares, and the draws, at each time.
    first, second = np.zeros((2, len(wanted), len(times)))
    count = np.zeros(len(times))
    rounds: list[Draws] = []
    taken = 0
    while active.any() and taken < max_draws:
        last = min(max_draws, max(_FIRST_ROUND, 2 * taken))
        draws = draw_from(training, times[active], key, taken, last)
        taken = last
        rounds.append(draws)
        ensemble = Ensemble(draws, training.num_points, weights)
        values = np.stack([each(ensemble) for each in wanted])
        first[:, active] += values.sum(1, dtype=np.float64)
        second[:, active] += (values.astype(np.float64) ** 2).sum(1)
        count[active] = taken
        # As if one more draw had been off by one: rare events must not go unseen.
        variance = np.maximum(second / count - (first / count) ** 2, 0) + 1 / count
        error = np.sqrt(variance / count).max(0)
        active &= error > accuracy
        progress(taken, float(error.max()))
    return _combine(rounds, times)


def of_points(
    points: np.ndarray,
    labels: np.ndarray | None,
    key: Array,
    accuracy: float,
    times: np.ndarray = TIMES,
) -> Regimes:
    """Curves and times of a data set's exact score: `measure`, then `summarize`.

    Args:
      points: training points (n, ...), see `posterior.draw`.
      labels: classes 0..C-1 (n,), or None.
      key: typed PRNG key.
      accuracy: see `measure`.
      times: increasing Ornstein-Uhlenbeck times (T,).

    Raises:
      UserError: see `measure`.
    """
    draws = measure(points, labels, key, accuracy, times=times)
    weights = np.ones(1) if labels is None else np.bincount(labels) / len(points)
    return summarize(draws, len(points), weights)


def tangent_intercept(curve: Curve) -> float:
    """Where the steepest tangent of an increasing curve meets zero."""
    cubic = PchipInterpolator(curve.times, curve.mean)
    fine = np.linspace(curve.times[0], curve.times[-1], 2000)
    steepest = fine[np.argmax(cubic(fine, 1))]
    return float(steepest - cubic(steepest) / cubic(steepest, 1))


def collapse_times(regimes: Regimes) -> dict[str, float]:
    """Candidates for t_C, to compare with the closed form of the Gaussian mixture.

    The threshold of f^e/alpha is not its zero: at finite n that zero is rounded, by a width set by
    log n, and f^e/alpha is about 0.12 at the t_C of the infinite system.
    """
    entropy, phi_C = regimes.curves["excess_entropy"], regimes.curves["phi_C"]
    return {
        **{f"f^e = {level} alpha": entropy.crossing(level).value for level in (0.01, 0.05, 0.12)},
        "tangent of f^e": tangent_intercept(entropy),
        "phi_C = 0.5": phi_C.crossing(0.5).value,
        "phi_C = 0.6": phi_C.crossing(0.6).value,
        "f_loo = 0": regimes.curves["leave_one_out"].crossing(0.0).value,
    }
