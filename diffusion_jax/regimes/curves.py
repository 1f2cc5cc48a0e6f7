"""Averages over draws along time, their intervals, and the times at which they cross a level."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator, PPoly

REPLICATES = 400
_BLOCK = 4096
ON_THE_LEVEL = 1e-5
# A peak is smoothed where it is over so much of its largest value, by a polynomial of this degree.
_TOP_SHARE, _TOP_DEGREE = 0.7, 4
# Halvings of an interval, after which it is a rounding wide.
_HALVINGS = 54


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """An average over draws at each time.

    Attributes:
      times: increasing Ornstein-Uhlenbeck times (T,).
      mean: average (T,).
      standard_error: of the mean, over draws (T,).
      replicates: the average in each bootstrap replicate of the draws (R, T). The same draws serve
        all times, so errors are correlated along a curve; a replicate is a whole curve.
    """

    times: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray
    replicates: np.ndarray

    @cached_property
    def interval(self) -> np.ndarray:
        """Lower and upper end of the 95 % interval at each time (2, T); NaN without replicates."""
        return interval(self.replicates)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Curve":
        """The curve of a monotone function of the average.

        Its standard error is half of how far the function moves from one standard error below to
        one above.
        """
        above = function(self.mean + self.standard_error)
        below = function(self.mean - self.standard_error)
        error = np.abs(above - below) / 2
        return Curve(self.times, function(self.mean), error, function(self.replicates))

    def crossing(self, level: float) -> Estimate:
        """The time at which the curve crosses a level: the largest, if there are several.

        Between the times the curve is a monotone cubic (PCHIP) in log t. Where it is within 1e-5 of
        the level it counts as on it, and it crosses only if it leaves on the other side. The
        interval is that of the replicates' crossings; where more than one in forty has none, its
        ends are NaN.

        Args:
          level: the level.

        Returns:
          Time and interval; NaN throughout where the curve does not cross.
        """
        log_times = np.log(self.times)
        value = _last_crossings(log_times, self.mean[None], level)[0]
        return _estimate(float(value), _last_crossings(log_times, self.replicates, level))

    def peak(self) -> Estimate:
        """The time at which the curve is largest.

        The curve is smoothed about its largest value: where it is over 0.7 of that, and at two
        times on either side at least, by a polynomial of degree 4 in log t. The interval is that of
        the replicates' peaks; where more than one in forty has none, its ends are NaN.

        Returns:
          Time and interval; NaN throughout where the curve is largest at its first or last time, or
          nowhere positive.
        """
        log_times = np.log(self.times)
        peaks = np.array([_top(log_times, values) for values in self.replicates])
        return _estimate(_top(log_times, self.mean), peaks)


def interval(replicates: np.ndarray) -> np.ndarray:
    """Lower and upper end of the 95 % interval of replicates (R, ...), (2, ...).

    Replicates that are NaN are left out; the interval is NaN where all are.
    """
    some = ~np.isnan(replicates).all(axis=0)
    ends = np.nanpercentile(np.where(some, replicates, 0), [2.5, 97.5], axis=0)
    return np.where(some, ends, np.nan)


def _estimate(value: float, replicates: np.ndarray) -> Estimate:
    """A time with the interval of its replicates, NaN where one of them has none."""
    found = replicates[np.isfinite(replicates)]
    if len(found) < 0.975 * len(replicates):
        return Estimate(value, np.nan, np.nan)
    return Estimate(value, *map(float, np.percentile(found, [2.5, 97.5])))


def _last_crossings(log_times: np.ndarray, curves: np.ndarray, level: float) -> np.ndarray:
    """The time at which each of (R, T) curves crosses for the last time, see `Curve.crossing`."""
    result = np.full(len(curves), np.nan)
    patterns, which = np.unique(np.isfinite(curves), axis=0, return_inverse=True)
    for pattern, taken in enumerate(patterns):
        if taken.sum() < 2:
            continue
        rows = np.flatnonzero(which == pattern)
        x, y = log_times[taken], curves[rows][:, taken]
        off = np.abs(y - level) > ON_THE_LEVEL
        places = np.maximum.accumulate(np.where(off, np.arange(len(x)), 0), axis=1)
        before = places[:, :-1]  # of each time but the first: the last one off the level before it
        # Where there is none it is the first time, which is on the level and so on no side.
        side = np.where(off, np.sign(y - level), 0)
        changes = side[:, 1:] * np.take_along_axis(side, before, axis=1) < 0
        rows_of, last = np.flatnonzero(changes.any(axis=1)), changes.shape[1]
        right = last - np.argmax(changes[rows_of, ::-1], axis=1)
        left = before[rows_of, right - 1]
        if len(rows_of) == 0:
            continue
        cubics = PchipInterpolator(x, y[rows_of], axis=1).c
        direct = right == left + 1
        result[rows[rows_of[direct]]] = np.exp(
            x[left[direct]]
            + _root(cubics[:, left[direct], direct], np.diff(x)[left[direct]], level)
        )
        for index in np.flatnonzero(~direct):
            # One curve at a time: SciPy leaves out a root that the curve before it had too.
            part = slice(left[index], right[index])
            between = PPoly(cubics[:, part, index], x[part.start : part.stop + 1])
            roots = between.solve(level, extrapolate=False)
            roots = roots[np.isfinite(roots)]
            if len(roots):
                result[rows[rows_of[index]]] = np.exp(roots[-1])
    return result


def _root(cubics: np.ndarray, length: np.ndarray, level: float) -> np.ndarray:
    """Where cubics (4, R), monotone from 0 to a length (R,), take a value between their ends.

    By halving: a monotone cubic may be as flat at its root as s^3.
    """

    def above(s: np.ndarray) -> np.ndarray:
        return np.asarray(((cubics[0] * s + cubics[1]) * s + cubics[2]) * s + cubics[3] > level)

    low, high = np.zeros_like(length), length.copy()
    falls = above(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        first = above(middle) == falls
        low, high = np.where(first, middle, low), np.where(first, high, middle)
    return (low + high) / 2


def _top(log_times: np.ndarray, values: np.ndarray) -> float:
    """The time of a curve's peak, see `Curve.peak`."""
    taken = np.isfinite(values)
    x, y = log_times[taken], values[taken]
    top = int(np.argmax(y)) if len(y) else 0
    if top in (0, len(y) - 1) or y[top] <= 0:
        return np.nan
    low = np.flatnonzero(y < _TOP_SHARE * y[top]).tolist()
    first = min(max((i for i in low if i < top), default=-1) + 1, top - 2)
    last = max(min((i for i in low if i > top), default=len(y)) - 1, top + 2)
    around = slice(max(first, 0), last + 1)
    place = x[around] - x[top]
    degree = min(_TOP_DEGREE, len(place) - 1)
    smooth = np.polynomial.Polynomial.fit(place, y[around], degree)
    roots = smooth.deriv().roots()
    roots = roots[np.isreal(roots)].real
    inside = roots[(roots > place[0]) & (roots < place[-1])]
    if len(inside) == 0:
        return np.nan
    return float(np.exp(x[top] + inside[np.argmax(smooth(inside))]))


def average(
    times: np.ndarray, values: Iterable[np.ndarray], seed: int = 0, num_replicates: int = REPLICATES
) -> list[Curve]:
    """Averages several per-draw quantities over the same draws, with one Poisson bootstrap for all.

    In a replicate each draw counts a Poisson(1) number of times. The draws are resampled as if
    independent; since they are spread evenly over the training points, the intervals are on the
    wide side. Where hardly any draw differs from the others, as for a probability within a
    thousandth of 0 or 1, they are too narrow. NaN where no draw was taken.

    Args:
      times: Ornstein-Uhlenbeck times (T,).
      values: quantities (N, T), NaN where a draw was not taken at a time.
      seed: of the bootstrap.
      num_replicates: number R of replicates.

    Returns:
      One curve per quantity.
    """
    tables = list(values)
    rng = np.random.default_rng(seed)
    n = len(tables[0])
    sums = np.zeros((len(tables), num_replicates, len(times)))
    counts = np.zeros_like(sums)
    for start in range(0, n, _BLOCK):
        block = slice(start, start + _BLOCK)
        weight = rng.poisson(1.0, (num_replicates, len(tables[0][block]))).astype(np.float32)
        taken: np.ndarray = np.zeros(0)
        count: np.ndarray = taken
        for i, table in enumerate(tables):
            before, taken = taken, ~np.isnan(table[block])
            if not np.array_equal(before, taken):
                count = weight @ taken.astype(np.float32)
            sums[i] += weight @ np.where(taken, table[block], 0).astype(np.float32)
            counts[i] += count
    curves = []
    for table, total, count in zip(tables, sums, counts, strict=True):
        number = np.sum(~np.isnan(table), axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.nansum(table, axis=0, dtype=np.float64) / number
            squares = np.nansum((table - mean) ** 2, axis=0, dtype=np.float64)
            error = np.sqrt(squares / (number - 1) / number)
            curves.append(Curve(np.asarray(times), mean, error, total / count))
    return curves
