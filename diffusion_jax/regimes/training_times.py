"""When, in updates, a training reaches something, and how that time grows with the training set.

Two times are distinguished (Bonnaire, Urfin, Biroli and Mezard 2025, arXiv:2505.17638): tau_gen,
from which on samples are as good as they become, and tau_mem, from which on they are copies. The
first hardly depends on the number n of training images; the second grows with n, so that the curves
of many n fall together against tau/n.
"""

from dataclasses import dataclass

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import Estimate


def reached(updates: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """The update from which on values are at a level or above, to the last.

    Between two evaluations values are linear in the logarithm of the update.

    Args:
      updates: of the evaluations (T,), increasing, from 1 on.
      values: (..., T).
      level: the level.

    Returns:
      (...): NaN where the last value is below the level; the first update where none is.

    Raises:
      UserError: no update, or some that do not increase.
    """
    updates = np.asarray(updates, np.float64)
    if not len(updates) or updates[0] < 1 or (np.diff(updates) <= 0).any():
        raise UserError(f"the updates {updates.tolist()} must increase from 1 on")
    excess = np.asarray(values, np.float64) - level
    below = ~(excess >= 0)  # NaN is below
    count = below.shape[-1]
    last = count - 1 - np.argmax(below[..., ::-1], axis=-1)  # the last evaluation below
    before = np.where(below.any(axis=-1), last, 0)
    after = np.minimum(before + 1, count - 1)
    low, high = (np.take_along_axis(excess, i[..., None], -1)[..., 0] for i in (before, after))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(np.isfinite(low) & (high > low), -low / (high - low), 1)
    logs = np.log(updates)
    found = np.exp(logs[before] + part * (logs[after] - logs[before]))
    found = np.where(below.any(axis=-1), found, updates[0])
    return np.where(below[..., -1], np.nan, found)


@dataclass(frozen=True)
class Reached:
    """When a training reaches something.

    Attributes:
      update: NaN where it does not within the training.
      replicates: of bootstrap replicates (R,), NaN likewise.
      from_start: whether the first evaluation is there already: the update is a bound from above.
    """

    update: float
    replicates: np.ndarray
    from_start: bool

    @property
    def estimate(self) -> Estimate:
        """The update with its 95 % interval; ends that lie beyond the training are NaN."""
        beyond = np.where(np.isnan(self.replicates), np.inf, self.replicates)
        ends = np.percentile(beyond, [2.5, 97.5], method="inverted_cdf")
        low, high = (float(end) if np.isfinite(end) else np.nan for end in ends)
        return Estimate(self.update, low, high)


def when(updates: np.ndarray, values: np.ndarray, replicates: np.ndarray, level: float) -> Reached:
    """`reached`, with the replicates of a curve (R, T)."""
    update = float(reached(updates, values, level))
    return Reached(update, reached(updates, replicates, level), update == updates[0])


def _within(replicates: np.ndarray) -> np.ndarray:
    """Replicates that do not reach it put at the latest that does."""
    return np.where(np.isnan(replicates), np.nanmax(replicates), replicates)


@dataclass(frozen=True)
class PowerLaw:
    """tau = c n^b, a least-squares line of log tau against log n.

    Attributes:
      exponent: b with its 95 % interval.
      prefactor: c.
      sizes: the n that it rests on, with repeats where a size has several trainings.
    """

    exponent: Estimate
    prefactor: float
    sizes: list[int]


def power_law(sizes: list[int], times: list[Reached]) -> PowerLaw | None:
    """The power of n with which a time grows.

    Its interval is that of the replicates of all times together: of what was drawn to see them, and
    not of another training with other images or another start. Trainings that do not reach it, or
    did from the start, are left out; a replicate in which one of the others does not counts it at
    the latest that does, and one in which it did from the start at the first evaluation, so that
    the interval is rather too narrow there.

    Args:
      sizes: n of each training.
      times: its time.

    Returns:
      None with fewer than two sizes.
    """
    used = [
        (size, each)
        for size, each in zip(sizes, times, strict=True)
        if np.isfinite(each.update) and not each.from_start
    ]
    if len({size for size, _ in used}) < 2:
        return None
    logs = np.log([size for size, _ in used])
    centred = logs - logs.mean()

    def slope(updates: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(updates) @ centred / (centred @ centred))

    values = np.array([each.update for _, each in used])
    drawn = np.stack(
        [_within(each.replicates) for _, each in used],
        1,
    )
    exponent = float(slope(values))
    low, high = np.percentile(slope(drawn), [2.5, 97.5])
    prefactor = float(np.exp(np.log(values).mean() - exponent * logs.mean()))
    estimate = Estimate(exponent, float(low), float(high))
    return PowerLaw(estimate, prefactor, [size for size, _ in used])
