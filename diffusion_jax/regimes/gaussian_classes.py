"""The Bayes criterion for two Gaussian classes, N(m_1, C_1) and N(m_2, C_2), in closed form.

At time t the classes are N(e^-t m_c, S_c) with S_c = I + e^-2t (C_c - I), and the mean D and the
variance V of the free-entropy difference u are sums over the eigenvalues of S_2^-1 S_1: see
`gaussian_moments`, and `regimes.speciation` for the criterion D^2 = V. The formulas are this
project's.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, eigh
from scipy.optimize import brentq

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.measures import SPECIATION_LEVEL
from diffusion_jax.regimes.speciation import signal_to_noise

_SMALLEST_TIME = 1e-3
_STEP = 0.2


@dataclass(frozen=True)
class Gaussian:
    """The law N(mean, covariance) of one class at t = 0.

    Attributes:
      mean: (d,).
      covariance: symmetric and positive semi-definite (d, d), or its diagonal (d,) where it has
        nothing else: that form costs O(d).
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        """Checks the shapes."""
        d = len(self.mean)
        if self.mean.ndim != 1 or self.covariance.shape not in ((d,), (d, d)):
            raise UserError(
                f"a mean of shape {self.mean.shape} needs a covariance of shape ({d},) or "
                f"({d}, {d}), not {self.covariance.shape}"
            )

    def at(self, time: float) -> "Gaussian":
        """The law of x_t: N(e^-t mean, I + e^-2t (covariance - I))."""
        one = np.ones(len(self.mean)) if self.covariance.ndim == 1 else np.eye(len(self.mean))
        covariance = one + np.exp(-2 * time) * (self.covariance - one)
        return Gaussian(np.exp(-time) * self.mean, covariance)

    def sample(self, noise: np.ndarray) -> np.ndarray:
        """Samples (N, d) from standard normal noise (N, d)."""
        if self.covariance.ndim == 1:
            return self.mean + np.sqrt(self.covariance) * noise
        return self.mean + noise @ cholesky(self.covariance, lower=True).T

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Log density at x (N, d), without the constant -d/2 log(2 pi); shape (N,)."""
        centred = x - self.mean
        if self.covariance.ndim == 1:
            return -0.5 * (centred**2 @ (1 / self.covariance) + np.sum(np.log(self.covariance)))
        factor = cho_factor(self.covariance, lower=True)
        squared = np.sum(centred * cho_solve(factor, centred.T).T, axis=1)
        return -0.5 * squared - np.sum(np.log(np.diag(factor[0])))


def _alike(first: Gaussian, second: Gaussian) -> tuple[Gaussian, Gaussian]:
    """Both classes with covariances of one form."""
    if len(first.mean) != len(second.mean):
        raise UserError(f"the classes have {len(first.mean)} and {len(second.mean)} dimensions")
    if first.covariance.ndim == second.covariance.ndim:
        return first, second
    full = [
        c.covariance if c.covariance.ndim == 2 else np.diag(c.covariance) for c in (first, second)
    ]
    return Gaussian(first.mean, full[0]), Gaussian(second.mean, full[1])


def _minus_log1p(x: np.ndarray) -> np.ndarray:
    """The value of x - log(1 + x), near x^2/2 for small x, without the loss of digits there."""
    series = x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x / 5)))
    return np.where(np.abs(x) < 1e-3, series, x - np.log1p(x))


def gaussian_moments(first: Gaussian, second: Gaussian, time: float) -> tuple[float, float]:
    """Mean and variance of u under the first of two Gaussian classes.

    S_c = I + e^-2t (C_c - I),  delta = e^-t (m_1 - m_2),  r_i = eigenvalues of S_2^-1 S_1:
    D_1 = 1/2 sum_i (r_i - 1 - log r_i) + 1/2 delta' S_2^-1 delta
    V_1 = 1/2 sum_i (r_i - 1)^2 + delta' S_2^-1 S_1 S_2^-1 delta

    The r_i - 1 are found directly, as the generalized eigenvalues of (S_1 - S_2, S_2), so that
    large times lose no digits.

    Args:
      first: the class over which the average is taken. For class 2 exchange the two.
      second: the other one.
      time: Ornstein-Uhlenbeck time, positive.

    Returns:
      D_1 and V_1, in nats and nats squared.
    """
    first, second = _alike(first, second)
    difference = np.exp(-2 * time) * (first.covariance - second.covariance)
    one, two = first.at(time), second.at(time)
    delta = one.mean - two.mean
    if difference.ndim == 1:
        excess = difference / two.covariance
        pulled = delta / two.covariance
        spread = pulled**2 @ one.covariance
    else:
        excess = eigh(difference, two.covariance, eigvals_only=True)
        pulled = cho_solve(cho_factor(two.covariance), delta)
        spread = pulled @ one.covariance @ pulled
    mean = 0.5 * np.sum(_minus_log1p(excess)) + 0.5 * delta @ pulled
    return float(mean), float(0.5 * np.sum(excess**2) + spread)


def _time_of(log_snr: float) -> float:
    """The time t at which log(e^-2t/(1 - e^-2t)) has the given value."""
    return 0.5 * float(np.logaddexp(0, -log_snr))


def gaussian_speciation_time(first: Gaussian, second: Gaussian, log_odds: float = 0.0) -> float:
    """t_rs of the first of two Gaussian classes: the largest root of D_1^2 = V_1.

    Sought from a time above which D_1 < 1/2, downwards in steps of 0.2 in log(e^-2t/Delta_t), and
    then with Brent's method; two roots closer than a step are missed. For means +-m and covariance
    sigma^2 I it is 1/2 log(|m|^2 + 1 - sigma^2).

    Args:
      first: the class whose time is sought. For class 2 exchange the two, and the sign of log_odds.
      second: the other one.
      log_odds: log(pi_1/pi_2) where the classes' weights are to count.

    Returns:
      An Ornstein-Uhlenbeck time. NaN where there is no root above t = 0.001: the fluctuation of u
      exceeds its mean all the way (a single direction in which only the variance differs, say, has
      D_1^2 < V_1/2 for the wider class), and the class is told from the other with certainty at no
      time.
    """
    first, second = _alike(first, second)

    def excess(log_snr: float) -> float:
        mean, variance = gaussian_moments(first, second, _time_of(log_snr))
        return float(signal_to_noise(np.array(mean + log_odds), np.array(variance))) - 1

    # Every r_i - 1 is at most e^-2t |C_1 - C_2|, and nearly all of Delta_t is 1.
    distance = np.sum((first.mean - second.mean) ** 2)
    norm = np.sum((first.covariance - second.covariance) ** 2)
    start = 1 + max(np.log1p(distance) / 2, np.log1p(norm) / 4)
    log_snr = -float(np.log(np.expm1(2 * start)))
    before = excess(log_snr)
    while _time_of(log_snr) > _SMALLEST_TIME:
        now = excess(log_snr + _STEP)
        if before < 0 <= now:
            return _time_of(brentq(excess, log_snr, log_snr + _STEP, xtol=1e-10))
        log_snr, before = log_snr + _STEP, now
    return float("nan")


def asymptotic_time(first: Gaussian, second: Gaussian) -> float:
    """t_rs of two classes of one mean where it is large: 1/4 log(tr (C_1 - C_2)^2 / 8).

    At large t both D and V/2 tend to e^-4t tr (C_1 - C_2)^2 / 4, and D^2 = V is D = 2. It grows by
    1/4 log 4 = 0.3466 as d grows fourfold, as long as no mode dominates the trace.

    Raises:
      UserError: the means differ; there 1/2 log of a fourth of their squared distance is larger.
    """
    first, second = _alike(first, second)
    if not np.array_equal(first.mean, second.mean):
        raise UserError("the formula 1/4 log(tr (C_1 - C_2)^2 / 8) is for classes of one mean")
    return float(np.log(np.sum((first.covariance - second.covariance) ** 2) / 8) / 4)


def gaussian_log_ratio(
    first: Gaussian, second: Gaussian, time: float, noise: np.ndarray
) -> np.ndarray:
    """Exact samples of u = log P_t(x|1) - log P_t(x|2) under the first class.

    Args:
      first: the class that x_t is drawn from.
      second: the other one.
      time: Ornstein-Uhlenbeck time, positive.
      noise: standard normal (N, d), from which x_t is made.

    Returns:
      u at the N samples, in nats.
    """
    one, two = first.at(time), second.at(time)
    x = one.sample(noise)
    return one.log_density(x) - two.log_density(x)


def same_class_probability(log_ratio: np.ndarray) -> float:
    """The phi of two balanced classes, from samples of u under one of them.

    phi = E[p(1|x)^2 + p(2|x)^2] is the mean of E_1[p(1|x)] and E_2[p(2|x)], and these are equal:
    their difference is int (P_1^2 - P_2^2)/(P_1 + P_2) = int (P_1 - P_2) = 0. So phi is the mean
    of 1/(1 + exp(-u)) over class 1 alone, for any two laws.

    Args:
      log_ratio: u at samples of class 1 (N,), in nats.
    """
    return float(np.mean(0.5 * (1 + np.tanh(log_ratio / 2))))


def same_class_crossing(first: Gaussian, second: Gaussian, noise: np.ndarray) -> Estimate:
    """The time at which phi of two balanced Gaussian classes falls to 0.7752, from exact samples.

    The same noise serves every time, so that the sampled phi is smooth in t and its root is found
    with Brent's method; the 95 % interval is 1.96 standard errors of phi over its slope.

    Args:
      first: the class that x_t is drawn from.
      second: the other one.
      noise: standard normal (N, d).

    Returns:
      Time and interval; NaN where phi stays below 0.7752 down to t = 0.001.
    """
    level = (1 + SPECIATION_LEVEL) / 2

    def samples(log_snr: float) -> np.ndarray:
        u = gaussian_log_ratio(first, second, _time_of(log_snr), noise)
        return 0.5 * (1 + np.tanh(u / 2))

    low, high = -30.0, -float(np.log(np.expm1(2 * _SMALLEST_TIME)))
    if samples(high).mean() < level:
        return Estimate(np.nan, np.nan, np.nan)
    root = brentq(lambda v: samples(v).mean() - level, low, high, xtol=1e-8)
    time, below = _time_of(root), _time_of(root + 1e-3)
    slope = (samples(root + 1e-3).mean() - level) / (time - below)
    half = 1.96 * samples(root).std(ddof=1) / np.sqrt(len(noise)) / slope
    return Estimate(time, time - half, time + half)
