"""U-turns in numbers: how much of an image comes back, and which of its pixels change together.

An image x goes up to time t with noise and comes back as x' by a backward process, R times with
noise of its own each time (`cloning.u_turns`). Averages <.> are over the returns of one image, both
ways; E is over images. After Sclocchi, Favero, Levi & Wyart (arXiv:2410.13770), whose tokens are
pixels here,

    s_i = |x'_i - x_i|                        (the change of a pixel, a norm over its channels)
    C_ij = E[<s_i s_j> - <s_i><s_j>]          (which change together)
    chi = sum_ij C_ij / sum_i C_ii            (how many: 1 where each changes alone, d if all do)

and C(r) is the mean of C_ij over the pairs at a distance r, over that at r = 0. An image has too
few returns for its own C_ij, but with R - 1 in place of R their covariance is unbiased for any
R >= 2, and so is its average over images. No matrix of pairs is formed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft

from diffusion_jax.regimes.curves import Curve, average, interval
from diffusion_jax.regimes.resemblance import cosines

# Where a pixel's change varies by less than this, in the root mean square over pixels, images of
# [0, 1] come back as they were except for rounding: a fortieth of a grey level.
LEAST_CHANGE = 1e-4
# Of so few images, or of all where there are no more, changes are told.
LEAST_IMAGES = 5


def overlap(before: np.ndarray, after: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The overlap of each return, q = (x - m).(x' - m)/(|x - m| |x' - m|).

    Of images; or of what a layer of a classifier makes of them, with its mean over a data set.

    Args:
      before: x (N, ...).
      after: x' (N, R, ...).
      mean: m (...).

    Returns:
      float64 (N, R); NaN where x or x' is the mean itself.
    """
    returns = after.shape[1]
    own = np.repeat(before - mean[None], returns, axis=0)
    back = (after - mean[None, None]).reshape(own.shape)
    return cosines(own, back).reshape(len(before), returns)


def changes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """s, how far each pixel moved (N, R, height, width), the Euclidean norm over its channels.

    Args:
      before: images (N, height, width, channels).
      after: their returns (N, R, height, width, channels).
    """
    difference = after.astype(np.float64) - before[:, None]
    return np.asarray(np.sqrt(np.sum(difference**2, axis=-1)))


@dataclass(frozen=True)
class Distances:
    """The distances of pairs of pixels: k = 0 for a pixel and itself, then all about k pixels.

    Attributes:
      mean: of the distances that round to k (K,), in pixels.
      pairs: how many ordered pairs have these (K,).
      index: k of each displacement, those of a discrete Fourier transform of (2 height, 2 width).
    """

    mean: np.ndarray
    pairs: np.ndarray
    index: np.ndarray


@lru_cache(maxsize=8)
def distances(height: int, width: int) -> Distances:
    """The distances of images of this shape."""
    rows, columns = (np.abs(np.rint(n * fft.fftfreq(n))) for n in (2 * height, 2 * width))
    distance = np.hypot(rows[:, None], columns[None])
    pairs = np.outer(height - rows, width - columns)
    index = np.where(pairs > 0, np.rint(distance), 0).astype(np.int64)
    count = np.bincount(index.ravel(), pairs.ravel())
    total = np.bincount(index.ravel(), (pairs * distance).ravel())
    return Distances(total / count, count, index)


def pair_sums(change: np.ndarray) -> np.ndarray:
    """The sum over all ordered pairs at each distance of an image's own C_ij.

    By the theorem of Wiener and Khinchin, from transforms of (2 height, 2 width) in which nothing
    wraps around.

    Args:
      change: s (N, R, height, width), R >= 2.

    Returns:
      (N, K): at k = 0 sum_i C_ii; all together are sum_ij C_ij. See `distances`.
    """
    count, returns, height, width = change.shape
    own = distances(height, width)
    deviation = change - change.mean(axis=1, keepdims=True)
    spectrum = fft.rfft2(deviation, s=(2 * height, 2 * width))
    power = np.sum(spectrum.real**2 + spectrum.imag**2, axis=1) / (returns - 1)
    correlation = fft.irfft2(power, s=(2 * height, 2 * width)).reshape(count, -1)
    bins = len(own.pairs)
    flat = (own.index.ravel()[None] + bins * np.arange(count)[:, None]).ravel()
    return np.bincount(flat, correlation.ravel(), count * bins).reshape(count, bins)


def length(function: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The integral length, int C(r)/C(0) dr, by the trapezoidal rule.

    For exp(-r/l) it is l, for exp(-r^2/(2 l^2)) sqrt(pi/2) l, 0.6 pixels where each pixel changes
    alone, and the largest distance where all do together. (2410.13770 reads off at which distance
    C(r) is cut off, and gives no formula.)

    Args:
      function: C(r)/C(0) (..., K), NaN throughout where there is none.
      distance: r (K,), increasing from 0.

    Returns:
      (...), in pixels.
    """
    return np.asarray(np.trapezoid(function, distance, axis=-1))


@dataclass(frozen=True)
class Correlated:
    """Which pixels change together, at T times.

    NaN where fewer than `LEAST_IMAGES` images have a `LEAST_CHANGE`: one alone would have no
    interval.

    Attributes:
      susceptibility: chi.
      length: the correlation length in pixels, see `length`.
      distance: r of the correlation function (K,), in pixels.
      function: C(r)/C(0) (T, K).
      interval: lower and upper end of its 95 % interval (2, T, K).
    """

    susceptibility: Curve
    length: Curve
    distance: np.ndarray
    function: np.ndarray
    interval: np.ndarray


def correlated(
    times: np.ndarray, sums: np.ndarray, shape: Sequence[int], seed: int = 0
) -> Correlated:
    """Susceptibility, correlation function and length, from averages over images.

    Sums are averaged before they are divided: an image counts by how much of it changes. Intervals
    are a bootstrap over whole images.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing.
      sums: of each image and time, see `pair_sums` (N, T, K).
      shape: (height, width) of an image.
      seed: of the bootstrap.
    """
    own = distances(shape[0], shape[1])
    least = LEAST_CHANGE**2 * own.pairs[0]
    changed = np.sum(sums[..., :1] >= least, axis=0) >= min(LEAST_IMAGES, len(sums))
    averages = average(times, np.moveaxis(sums, 2, 0), seed)
    means = np.stack([each.mean for each in averages], axis=-1)
    replicates = np.stack([each.replicates for each in averages], axis=-1)

    def normalised(sums: np.ndarray) -> np.ndarray:
        some = changed & (sums[..., :1] >= least)
        own_share = np.full_like(sums, np.nan)
        return np.divide(own.pairs[0] * sums, sums[..., :1] * own.pairs, out=own_share, where=some)

    function, each = normalised(means), normalised(replicates)
    pairs, lengths = own.pairs / own.pairs[0], length(each, own.mean)
    return Correlated(
        Curve(times, function @ pairs, _spread(each @ pairs), each @ pairs),
        Curve(times, length(function, own.mean), _spread(lengths), lengths),
        own.mean,
        function,
        interval(each),
    )


def _spread(replicates: np.ndarray) -> np.ndarray:
    """Standard deviation over the replicates (R, T); NaN where all are NaN."""
    some = ~np.isnan(replicates).all(axis=0)
    return np.asarray(np.where(some, np.nanstd(np.where(some, replicates, 0), axis=0), np.nan))


@dataclass(frozen=True)
class Overlaps:
    """How much of an image comes back, at T times.

    Attributes:
      mean: E<q>.
      susceptibility: d E[<q^2> - <q>^2], d the components of an image: of the order of 1 where they
        come back or not one by one, of d where they do so together.
    """

    mean: Curve
    susceptibility: Curve


def overlaps(times: np.ndarray, overlap: np.ndarray, dimension: int, seed: int = 0) -> Overlaps:
    """Mean and susceptibility of the overlap.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing.
      overlap: of each image, time and return (N, T, R).
      dimension: number d of components of an image.
      seed: of the bootstrap.
    """
    variance = dimension * overlap.var(axis=2, ddof=1)
    return Overlaps(*average(times, [overlap.mean(axis=2), variance], seed))
