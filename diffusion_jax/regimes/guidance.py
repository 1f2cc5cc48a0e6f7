"""Classifier-free guidance towards one of two Gaussians, exact and in one dimension.

Of N(+-m, sigma^2 I), |m|^2 = d mu^2, the class + has the score s_+ = (e^-t m - x)/Gamma, and guided
towards it with weight w (`denoisers.GuidedDenoiser`)

    score_w(x) = s_+ + w (e^-t m/Gamma) (1 - tanh(e^-t m.x/Gamma)).

Guidance acts along m alone. With s the separation of `GaussianMixture`, u the projection
m.x/|m| = e^-t |m| + sqrt(Gamma) u in deviations of the class, and v = s + sqrt(s) u half the log
odds of the classes, the backward process dx = (x + 2 score_w) dtau + sqrt(2) dW and the flow
dx = (x + score_w) dtau become, on the clock k = 1/2 log s, dk = dtau/Gamma (derived here),

    du = (-u + 2 w sqrt(s) (1 - tanh v)) dk + sqrt(2) dW        (diffusion)
    du/d sqrt(s) = w (1 - tanh v)                                (flow)

from u ~ N(0, 1) at s = 0. So for a constant w the law at s is the same for all d, mu and sigma,
which only set where it ends, at s_0 = d mu^2/sigma^2. What follows (derived here):

- diffusion: sqrt(s) E u = w int_0^s E(1 - tanh v) ds', to first order in w 2 w I(c; x_t), which
  tends to a constant: the overshoot of the class's mean vanishes as d^-1/2 in deviations of the
  class and as 1/d of |m|, the loss of variance as 1/d. The noise forgets what guidance did, as
  Pavasovic et al. (2025, arXiv:2502.07849) find for high dimension.
- flow: u tends to a constant for each path, so the law along m stays distorted by a finite part of
  sigma in every dimension; of |m| it is d^-1/2. Nothing forgets.
- t_S(w) lies at one s(w): guidance moves it by -1/2 log s(w), at sigma = 1 whatever d is.
- w < -1 ends about (1 + 2 w) m, beyond the other class, except for a share that had parted towards
  +, where guidance is zero: 3 % at w = -3, whatever d is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import expit, wrightomega

from diffusion_jax.denoisers.guided import Weight, tabulated
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.measures import SPECIATION_LEVEL
from diffusion_jax.regimes.sampler_error import gaussian_sum
from diffusion_jax.schedule import NoiseSchedule

_REACH = 9.0  # standard deviations beyond which a Gaussian counts as zero
_NODES_PER_WIDTH = 3.0  # of the noise of a step: 3e-9 where a step stretches by 3, 1e-16 without
_NEGLIGIBLE = 1e-16
_FLOW_NODES = 4001
_FIRST = 1e-3  # sqrt(s) from which the diffusion is followed: the law is known there to 1e-5


@dataclass(frozen=True)
class GuidedLaw:
    """The law of guided x_t along m, and what it says of the classes, at each of T times.

    Attributes:
      mixture: the data.
      times: increasing Ornstein-Uhlenbeck times (T,).
      overshoot: E u = (E q - e^-t |m|)/sqrt(Gamma) for q = m.x_t/|m|: of the class's mean, in its
        deviations. Zero for x_t of the class.
      spread: Var q/Gamma, 1 for x_t of the class; smaller where variance is lost.
      positive: E p(+ | x_t), the probability that a run that goes on unguided ends in the class.
      phi: E sum_c p(c | x_t)^2, the probability that two clones forked at the guided x_t, which go
        on unguided, end in the same class.
      class_entropy: E H(c | x_t) over the guided x_t, in nats.
    """

    mixture: GaussianMixture
    times: np.ndarray
    overshoot: np.ndarray
    spread: np.ndarray
    positive: np.ndarray
    phi: np.ndarray
    class_entropy: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """E q, in the units of the data (T,)."""
        signal = np.exp(-self.times) * self.mixture.centre_norm
        return np.asarray(signal + np.sqrt(self.mixture.gamma(self.times)) * self.overshoot)

    @property
    def variance(self) -> np.ndarray:
        """Var q (T,)."""
        return np.asarray(self.mixture.gamma(self.times) * self.spread)

    @property
    def speciation_time(self) -> float:
        """t_S(w), the largest t at which phi crosses 0.7752, between the times by monotone cubics.

        That is (phi - 1/2)/(1 - 1/2) = 0.5504. NaN where it does not.
        """
        level = 0.5 * (1 + SPECIATION_LEVEL)
        roots = PchipInterpolator(self.times, self.phi - level).roots(extrapolate=False)
        return float(roots.max()) if len(roots) else math.nan


@dataclass(frozen=True)
class GuidedMixture:
    """Two Gaussians whose backward process is guided towards the class +; see the module.

    Attributes:
      mixture: the data; d mu^2 and sigma alone matter.
      weight: w, a number or a function of Ornstein-Uhlenbeck time, as for `GuidedDenoiser`.
    """

    mixture: GaussianMixture
    weight: Weight

    def diffusion(
        self, times: np.ndarray, start: float | None = None, step: float = 0.02
    ) -> GuidedLaw:
        """The law along the backward process in continuous time.

        Guidance and the rest, a stationary Ornstein-Uhlenbeck process, take turns (Strang), both
        exact: the first moves nodes, the second is a sum over Gaussians, by the trapezoidal rule.
        The error is of second order in the step, at the default below 1e-3 of sigma for w from 0 to
        8 and below 3e-3 of the law's own deviation for negative w; of first order at jumps of w,
        which are known to a step; and 1e-7 in the nodes.

        Args:
          times: at which the law is asked for, any order, t >= 0.
          start: the time T >= times at which the process starts from N(0, I); by default infinity.
          step: largest step of k = 1/2 log s.

        Raises:
          UserError: negative times, or later ones than the start; a step that is not positive; a
            weight that is not finite.
        """
        times = _checked(times, start, step)
        stops = 0.5 * np.log(self.mixture.separation(times)[::-1])
        begun = min(math.log(_FIRST), float(stops[0])) if start is None else self._clock(start)
        clock = _refined(begun, stops, step)
        root = np.exp(clock)
        weight = self._weights(root)
        mean, deviation = self._start(start, float(weight[0] * root[0]))
        u, mass = _gaussian_nodes(mean, deviation, math.sqrt(-math.expm1(-2 * step)))
        found, wanted = [], set(stops.tolist())
        if clock[0] in wanted:
            found.append(_moments(root[0] ** 2, u, mass))
        for i, length in enumerate(np.diff(clock)):
            u = _guided(u, root[i], weight[i] * length / 2)
            decay, noise = math.exp(-length), math.sqrt(-math.expm1(-2 * length))
            u, mass = _convolved(decay * u, mass, noise, noise)
            u = _guided(u, root[i + 1], weight[i + 1] * length / 2)
            if clock[i + 1] in wanted:
                found.append(_moments(root[i + 1] ** 2, u, mass))
        return GuidedLaw(self.mixture, times, *np.array(found)[::-1].T)

    def flow(self, times: np.ndarray, start: float | None = None, step: float = 0.01) -> GuidedLaw:
        """The law along the probability flow, which is the image of a Gaussian under a rising map.

        Paths from the nodes of a trapezoidal rule, by the classical Runge-Kutta method: the error
        is of fourth order in the step, of first order at jumps of w. For w < 0 the map may be too
        steep for the nodes where the classes part, which costs up to 2e-3 of a probability.

        Args:
          times: see `diffusion`.
          start: see there. What the start lacks of the data's law is never forgotten.
          step: largest step of arsinh sqrt(s).

        Raises:
          UserError: see `diffusion`.
        """
        times = _checked(times, start, step)
        stops = np.arcsinh(np.sqrt(self.mixture.separation(times)[::-1]))
        begun = 0.0 if start is None else math.asinh(math.exp(self._clock(start)))
        root = np.sinh(_refined(begun, stops, step))
        middle = (root[:-1] + root[1:]) / 2
        weight, between = self._weights(root), self._weights(middle)
        mean, deviation = self._start(start, 0.0)
        z = np.linspace(-_REACH, _REACH, _FLOW_NODES)
        u, mass = mean + deviation * z, np.exp(-z * z / 2)
        found, wanted = [], set(np.sinh(stops).tolist())
        if root[0] in wanted:
            found.append(_moments(root[0] ** 2, u, mass))

        def slope(root: float, u: np.ndarray, weight: float) -> np.ndarray:
            return 2 * weight * expit(-2 * root * (root + u))  # w (1 - tanh v)

        for i, h in enumerate(np.diff(root)):
            one = slope(root[i], u, weight[i])
            two = slope(middle[i], u + h / 2 * one, between[i])
            three = slope(middle[i], u + h / 2 * two, between[i])
            four = slope(root[i + 1], u + h * three, weight[i + 1])
            u = u + h / 6 * (one + 2 * two + 2 * three + four)
            if root[i + 1] in wanted:
                found.append(_moments(root[i + 1] ** 2, u, mass))
        return GuidedLaw(self.mixture, times, *np.array(found)[::-1].T)

    def ancestral(self, schedule: NoiseSchedule) -> GuidedLaw:
        """The exact law of `AncestralSampler` with these steps, from N(0, I), by quadrature.

        u' = c u + k (1 - tanh v) + sqrt(beta/Gamma') z,  z left out at step 0, with
        c = (1 - beta/Gamma) sqrt(Gamma)/sqrt((1 - beta) Gamma'),
        k = beta w sqrt(s)/sqrt(Gamma (1 - beta) Gamma')

        So a sampler's discretisation is no error of the theory: samples are compared with this, and
        this with `diffusion`.

        Returns:
          The law before each step, at the schedule's times, and after the last at t = 0.

        Raises:
          UserError: a weight that is not finite.
        """
        beta = np.asarray(schedule.beta, np.float64)
        times = np.concatenate([[0.0], -0.5 * np.cumsum(np.log1p(-beta))])
        gamma, root = self.mixture.gamma(times), np.sqrt(self.mixture.separation(times))
        weight = tabulated(self.weight, times[1:])
        scale = np.sqrt((1 - beta) * gamma[:-1])
        decay = (1 - beta / gamma[1:]) * np.sqrt(gamma[1:]) / scale
        push = beta * weight * root[1:] / np.sqrt(gamma[1:]) / scale
        noise = np.sqrt(beta / gamma[:-1])
        mean, deviation = self._start(times[-1], 0.0)
        u, mass = _gaussian_nodes(mean, deviation, noise[-1])
        found = [_moments(root[-1] ** 2, u, mass)]
        for s in range(len(beta) - 1, -1, -1):
            u = decay[s] * u + 2 * push[s] * expit(-2 * root[s + 1] * (root[s + 1] + u))
            if s > 0:
                u, mass = _convolved(u, mass, noise[s], min(noise[s], noise[s - 1]))
            found.append(_moments(root[s] ** 2, u, mass))
        return GuidedLaw(self.mixture, times, *np.array(found)[::-1].T)

    def _clock(self, time: float) -> float:
        """The clock k = 1/2 log s at a time."""
        return 0.5 * math.log(float(self.mixture.separation(time)))

    def _start(self, time: float | None, mean: float) -> tuple[float, float]:
        """Mean and deviation of u where x_T ~ N(0, I); the class's at s = 0, except for a mean."""
        if time is None:
            return mean, 1.0
        return -math.exp(self._clock(time)), 1 / math.sqrt(float(self.mixture.gamma(time)))

    def _weights(self, root: np.ndarray) -> np.ndarray:
        """The weight where sqrt(s) has these values: e^2t = d mu^2/s + 1 - sigma^2."""
        if not callable(self.weight):
            return tabulated(self.weight, root)
        with np.errstate(divide="ignore"):
            grown = (self.mixture.centre_norm / root) ** 2 + 1 - self.mixture.sigma**2
        times = 0.5 * np.log(np.maximum(grown, 1.0))
        return tabulated(self.weight, np.minimum(times, 1e3))


def _checked(times: np.ndarray, start: float | None, step: float) -> np.ndarray:
    times = np.unique(np.asarray(times, np.float64))
    last = math.inf if start is None else start
    if not len(times) or not np.all((times >= 0) & (times <= last) & np.isfinite(times)):
        raise UserError(
            f"guided laws are asked for at times from 0 to the start, {last:g}, not at "
            f"{times.tolist()}"
        )
    if not 0 < step < 1:
        raise UserError(f"the step of a guided law must lie between 0 and 1, not be {step}")
    return times


def _refined(start: float, stops: np.ndarray, step: float) -> np.ndarray:
    """Increasing values from the start over all stops, no two further apart than a step."""
    parts = [np.array([start])]
    for stop in stops.tolist():
        last = float(parts[-1][-1])
        if stop > last:
            count = math.ceil((stop - last) / step)
            inner = last + (stop - last) * np.arange(1, count) / count
            parts.append(np.append(inner, stop))
    return np.concatenate(parts)


def _gaussian_nodes(mean: float, deviation: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and masses of a Gaussian, dense enough for noise of a width."""
    spacing = min(width, deviation) / _NODES_PER_WIDTH
    z = np.arange(-_REACH, _REACH, spacing / deviation)
    return mean + deviation * z, np.exp(-z * z / 2)


def _convolved(
    centres: np.ndarray, mass: np.ndarray, noise: float, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and masses after Gaussian noise, dense enough for noise of a width to come."""
    order = np.argsort(centres)
    centres, mass = centres[order], mass[order] / mass.sum()
    spacing = width / _NODES_PER_WIDTH
    nodes = np.arange(centres[0] - _REACH * noise, centres[-1] + _REACH * noise, spacing)
    mass = spacing * gaussian_sum(nodes, centres, mass, noise)
    kept = mass > _NEGLIGIBLE * mass.max()
    return nodes[kept], mass[kept]


def _guided(u: np.ndarray, root: float, strength: float) -> np.ndarray:
    """The solution of du/dk = 2 w sqrt(s) (1 - tanh v) at fixed s after w k = strength.

    v' = 2 w s (1 - tanh v) has 2 v + e^2v = const + 8 w s k, solved by Wright's omega.
    """
    if strength == 0:
        return u
    twice = 2 * root * (root + u)  # 2 v
    far = twice > 30  # there 1 - tanh v < 2e-13
    total = twice + np.exp(np.minimum(twice, 30)) + 8 * strength * root * root
    omega = wrightomega(total)
    # log omega, which equals total - omega, in the form that keeps its digits.
    moved = np.where(total > 1, np.log(np.maximum(omega, 1e-300)), total - omega)
    return np.where(far, u, moved / (2 * root) - root)


def _moments(s: float, u: np.ndarray, mass: np.ndarray) -> list[float]:
    """Overshoot, spread, positive, phi and class entropy, of nodes and their masses."""
    share = mass / mass.sum()
    mean = float(share @ u)
    v = s + math.sqrt(s) * u
    odds = 2 * np.abs(v)
    entropy = np.log1p(np.exp(-odds)) + odds * expit(-odds)
    averages: tuple[Callable[[], np.ndarray], ...] = (
        lambda: (u - mean) ** 2,
        lambda: expit(2 * v),
        lambda: 0.5 * (1 + np.tanh(v) ** 2),
        lambda: entropy,
    )
    return [mean, *(float(share @ each()) for each in averages)]
