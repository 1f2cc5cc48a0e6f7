"""What a denoiser's losses say of its training set, in nats and without a sample.

With L(s) the noise loss summed over components and lambda = log(alpha_bar/(1 - alpha_bar)) the
log-SNR, the information that a denoiser has down to the time t is

    U(t) = 1/2 int_{lambda(T)}^{lambda(t)} L dlambda + L(T)/2,

where the last term stands for all times above T, the schedule's last. For the exact score of n
training images and noised training images U(t) = I(a; x_t), which is log n where x_t tells its
image for certain (Guo, Shamai and Verdu 2005; Kong et al., arXiv:2302.03792). So

    G(t) = U_held-out(t) - U_training(t)          nats per image by which it knows its own images
    K(t) = U_training(t) - I(a; x_t) >= 0         those by which it falls short of the exact score
    M(t) = G/(G + K)                              its memory share: 1 for the exact score

A learned denoiser is the score of no law, and then U is not a code length but a bound on one; G is
a gap between such bounds. While a model generalises G is near (fitted parameters)/n plus the chance
difference of the two sets, which is nats where these are small: what tells is the change of G from
a reference on the same images and noise. All three grow as t falls, so they are given with their t.

The steps are drawn evenly in log-SNR, one in each of some strata for every image, from the same
keys for every set and denoiser: sums over strata estimate the integral without bias, and what two
denoisers' losses differ by is not hidden by the noise.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Self

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import REPLICATES, Estimate, interval
from diffusion_jax.schedule import NoiseSchedule

# What the exact score knows at the default time, of all that there is to know.
_KNOWN = 0.99
# Below so many nats a share says nothing.
_LEAST_NATS = 0.1


@dataclass(frozen=True)
class Strata:
    """Parts of a schedule's log-SNR that weigh alike in U, by increasing time.

    The steps s weigh what the trapezoidal rule gives them, (lambda_{s-1} - lambda_{s+1})/4, and the
    last one 1/2 more, for the times above its own.

    Attributes:
      schedule: of L steps.
      count: how many strata.
      first: the least step that is taken: 1 where step 0 was never trained.
    """

    schedule: NoiseSchedule
    count: int = 20
    first: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.schedule.num_steps < self.first + 2:
            raise UserError(
                f"{self.count} strata of {self.schedule.num_steps} steps, from step {self.first} "
                f"on: there must be one stratum and two steps at least"
            )

    @cached_property
    def _readings(self) -> np.ndarray:
        time = np.asarray(self.schedule.time, np.float64)[self.first :]
        return np.asarray(log_snr_of(time))

    @cached_property
    def weights(self) -> np.ndarray:
        """The weight of each step in U (L,), 0 below `first`; they sum to `total`."""
        middle = (self._readings[:-1] + self._readings[1:]) / 2
        bounds = np.concatenate([self._readings[:1], middle, self._readings[-1:]])
        own = -np.diff(bounds) / 2
        own[-1] += 0.5
        return np.concatenate([np.zeros(self.first), own])

    @property
    def total(self) -> float:
        """Sum of all weights: 1/2 (lambda_first - lambda_last + 1)."""
        return float(self._readings[0] - self._readings[-1] + 1) / 2

    @property
    def weight(self) -> float:
        """Weight of each stratum: nats per unit of a loss that is summed over components."""
        return self.total / self.count

    @property
    def times(self) -> np.ndarray:
        """Lower edge of each stratum, an Ornstein-Uhlenbeck time (count,), increasing.

        The last stratum goes on to infinity; where it is narrow, its edge is the schedule's end.
        """
        return self.time_of(self.total - self.weight * np.arange(self.count))

    def time_of(self, above: float | np.ndarray) -> np.ndarray:
        """The time above which the strata weigh a given total, at most the schedule's end."""
        log_snr = self._readings[-1] + np.maximum(2 * np.asarray(above) - 1, 0)
        return np.asarray(np.log1p(np.exp(-log_snr)) / 2)

    def steps(self, places: np.ndarray) -> np.ndarray:
        """The steps at places in [0, 1) of each stratum, (..., count), int32."""
        depth = self.weight * (np.arange(self.count) + places)
        ends = np.cumsum(self.weights)
        found = np.searchsorted(ends, depth, side="right")
        return np.clip(found, self.first, len(ends) - 1).astype(np.int32)

    def above(self, time: float | np.ndarray) -> np.ndarray:
        """What a draw of each step adds to U(t), nats per unit of its loss (..., L), times (...).

        The weight of a stratum; 0 for steps below t, and a part of it for the step at whose weight
        t lies. Below the first step's time t is that.
        """
        log_snr = log_snr_of(np.asarray(time, np.float64))[..., None]
        above = np.clip((log_snr - self._readings[-1] + 1) / 2, 0, self.total)
        upper = self.total - np.cumsum(self.weights)
        own = np.maximum(self.weights, np.finfo(np.float64).tiny)
        return np.asarray(self.weight * np.clip((above - upper) / own, 0, 1))

    @property
    def bands(self) -> np.ndarray:
        """What a draw of each step adds to the part of U that is each stratum's (count, L)."""
        above = self.above(self.times)
        return above - np.concatenate([above[1:], np.zeros_like(above[:1])])


def log_snr_of(time: np.ndarray) -> np.ndarray:
    """log(alpha_bar/(1 - alpha_bar)) = -log(e^2t - 1)."""
    return np.asarray(-np.log(np.expm1(2 * time)))


@dataclass(frozen=True)
class Losses:
    """Losses of one denoiser on one set of images, or differences of such.

    Attributes:
      image: which image each row is of (rows,); one may have several rows, of other noise.
      steps: one of each stratum (rows, strata).
      losses: at these, summed over components (rows, strata).
    """

    image: np.ndarray
    steps: np.ndarray
    losses: np.ndarray

    def __sub__(self, other: Self) -> "Losses":
        """By how much a denoiser's losses exceed another's, on the same images and noise."""
        same = (np.array_equal(self.image, other.image), np.array_equal(self.steps, other.steps))
        if not all(same):
            raise UserError("losses of different images or steps cannot be compared row by row")
        return Losses(self.image, self.steps, self.losses - other.losses)

    def per_image(self, above: np.ndarray) -> np.ndarray:
        """Nats of each image (images, ...), for weights (..., L); see `Strata.above`."""
        _, place = np.unique(self.image, return_inverse=True)
        weighted = above[..., self.steps] * self.losses.astype(np.float64)
        rows = np.moveaxis(weighted.sum(axis=-1), -1, 0)
        total = np.zeros((place.max() + 1, *rows.shape[1:]))
        np.add.at(total, place, rows)
        count = np.bincount(place).reshape(-1, *[1] * (rows.ndim - 1))
        return np.asarray(total / count)


@lru_cache(maxsize=16)
def _shares(n: int, seed: int) -> np.ndarray:
    """How much each of n images counts in each replicate (R, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), REPLICATES) / n


@dataclass(frozen=True)
class Resampled:
    """A mean over images, and that of bootstrap replicates: each image counts as often as drawn.

    Attributes:
      value: (...).
      replicates: (R, ...).
    """

    value: np.ndarray
    replicates: np.ndarray = field(repr=False)

    @classmethod
    def mean(cls, per_image: np.ndarray, seed: int) -> "Resampled":
        """The mean of numbers (images, ...); a seed draws the same whole images for all numbers."""
        shares = _shares(len(per_image), seed)
        return cls(per_image.mean(axis=0), np.tensordot(shares, per_image, 1))

    def __add__(self, other: Self) -> "Resampled":
        return Resampled(self.value + other.value, self.replicates + other.replicates)

    def __sub__(self, other: Self) -> "Resampled":
        return Resampled(self.value - other.value, self.replicates - other.replicates)

    def __truediv__(self, other: Self) -> "Resampled":
        """NaN where the divisor is below 0.1 nats, or a replicate of it is not positive."""
        tells = other.value >= _LEAST_NATS
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(tells, self.value / other.value, np.nan)
            fits = tells & (other.replicates > 0)
            replicates = np.where(fits, self.replicates / other.replicates, np.nan)
        return Resampled(value, replicates)

    @property
    def interval(self) -> np.ndarray:
        """Ends of the 95 % interval (2, ...)."""
        return interval(self.replicates)

    def within(self, errors: float) -> Estimate:
        """A single number, and a given number of standard errors to either side."""
        value, reach = float(self.value), errors * float(np.std(self.replicates, ddof=1))
        return Estimate(value, value - reach, value + reach)

    @property
    def estimate(self) -> Estimate:
        """The estimate of a single number."""
        low, high = self.interval
        return Estimate(float(self.value), float(low), float(high))


# Of the two sets, which are resampled apart.
_TRAINING_SEED, _HELD_OUT_SEED = 0, 1


@dataclass(frozen=True)
class Information:
    """U, G, K and M at some times, or of some bands; see the module.

    Attributes:
      training: U_training.
      held_out: U_held-out.
      gap: G.
      short: K; None without the exact score's losses.
      share: M, NaN where G + K is below 0.1 nats; None likewise.
    """

    training: Resampled
    held_out: Resampled
    gap: Resampled
    short: Resampled | None
    share: Resampled | None


def information(
    training: Losses, held_out: Losses, above: np.ndarray, exact: Losses | None = None
) -> Information:
    """What losses on the two sets say, with intervals by bootstrap of the two apart.

    Where rows of the two sets share their noise, as an evaluation's do, the interval of G is on the
    wide side; that of a change of G is not.

    Args:
      training: on training images.
      held_out: on others. Of differences of losses (`Losses.__sub__`) they are changes.
      above: weights of the steps (..., L): `Strata.above` of times, or `Strata.bands` for what each
        stratum has of U, G and so on.
      exact: the exact score's losses on the same noised training images.
    """
    own = Resampled.mean(training.per_image(above), _TRAINING_SEED)
    other = Resampled.mean(held_out.per_image(above), _HELD_OUT_SEED)
    gap = other - own
    if exact is None:
        return Information(own, other, gap, None, None)
    short = Resampled.mean((training - exact).per_image(above), _TRAINING_SEED)
    return Information(own, other, gap, short, gap / (gap + short))


def known_time(strata: Strata, exact: Losses) -> float:
    """The time of the last step at which the exact score knows 99 % of what it knows at the first.

    From there down x_t tells its training image, and the exact score's G only grows by how far the
    held-out images lie from the training ones.

    Args:
      strata: of the losses.
      exact: losses of the exact score on noised training images.
    """
    known = np.zeros(strata.schedule.num_steps)
    np.add.at(known, exact.steps, exact.losses.astype(np.float64))
    down_to = np.cumsum(known[::-1])[::-1]
    enough = np.flatnonzero(down_to >= _KNOWN * down_to[0])[-1]
    return float(np.asarray(strata.schedule.time, np.float64)[enough])
