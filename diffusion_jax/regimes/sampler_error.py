"""What a schedule costs the ancestral sampler on a Gaussian mixture, without Monte-Carlo noise.

For the exact score of N(+-m, sigma^2 I) the sampler is linear in the directions orthogonal to m,
and the projection y = m.x/|m| moves by itself:

    y <- g_s(y) + sqrt(beta_s) z,    g_s(y) = (y + beta_s score_s(y))/sqrt(1 - beta_s),
    score_s(y) = (M e^-t tanh(M e^-t y/Gamma) - y)/Gamma,    M = |m|.

The law of y is therefore carried from step to step by quadrature. It is even in y, g_s never
decreases, and the trapezoidal rule has errors around 1e-12 on nodes as dense as the noise is wide.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.schedule import NoiseSchedule

_NODES_PER_WIDTH = 1.25
_REACH = 9.0  # standard deviations beyond which a Gaussian counts as zero
_NEGLIGIBLE = 1e-16
_CHUNK = 2**21


@dataclass(frozen=True)
class SamplerError:
    """What a schedule does to the samples of one mixture; lengths in the units of the data.

    Attributes:
      projection: Wasserstein-1 distance between the laws of |m.x|/|m|, sampled and exact.
      orthogonal: the same of one component orthogonal to m.
      times: Ornstein-Uhlenbeck times of the state before each step (L,).
      phi: probability that two clones forked then end on the same side of the plane m.x = 0 (L,).
      phi_exact: of the same Gaussian, in closed form (L,); the same thing where |m| is well over
        sigma.
    """

    projection: float
    orthogonal: float
    times: np.ndarray
    phi: np.ndarray
    phi_exact: np.ndarray

    @property
    def phi_bias(self) -> float:
        """Largest |phi - phi_exact| over the forks."""
        return float(np.max(np.abs(self.phi - self.phi_exact)))


@dataclass(frozen=True)
class _Law:
    """An even law of y on the nodes (k + 1/2) spacing, of which those with weight are kept."""

    nodes: np.ndarray  # positive
    density: np.ndarray
    spacing: float


@dataclass(frozen=True)
class _Step:
    """One backward step of the projection; see the module's docstring."""

    beta: float
    time: float
    mixture: GaussianMixture

    @property
    def _rates(self) -> tuple[float, float]:
        """Gamma_t and M e^-t/Gamma_t."""
        gamma = float(self.mixture.gamma(self.time))
        return gamma, self.mixture.centre_norm * math.exp(-self.time) / gamma

    def mean(self, y: np.ndarray) -> np.ndarray:
        """g_s(y), any shape."""
        gamma, rate = self._rates
        score = rate * np.tanh(rate * y) - y / gamma
        return np.asarray((y + self.beta * score) / math.sqrt(1 - self.beta))

    def slope(self, y: np.ndarray) -> np.ndarray:
        """g_s'(y), any shape."""
        gamma, rate = self._rates
        curvature = (rate / np.cosh(np.minimum(rate * y, 300))) ** 2 - 1 / gamma
        return np.asarray((1 + self.beta * curvature) / math.sqrt(1 - self.beta))


def gaussian_sum(
    places: np.ndarray, centres: np.ndarray, weights: np.ndarray, deviation: float
) -> np.ndarray:
    """sum_i weights_i N(place; centre_i, deviation^2) at increasing centres, from the near ones."""
    first = np.searchsorted(centres, places - _REACH * deviation)
    last = np.searchsorted(centres, places + _REACH * deviation)
    band = np.arange(max(1, int(np.max(last - first))))
    rows = max(1, _CHUNK // len(band))
    out = np.empty(len(places))
    for start in range(0, len(places), rows):
        part = slice(start, start + rows)
        index = first[part, None] + band
        inside = index < last[part, None]
        index = np.minimum(index, len(centres) - 1)
        z = (places[part, None] - centres[index]) / deviation
        out[part] = np.sum(np.where(inside, weights[index] * np.exp(-z * z / 2), 0), axis=1)
    return out / (deviation * math.sqrt(2 * math.pi))


def _both_sides(nodes: np.ndarray, values: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and values mirrored: even for sign +1, odd for -1."""
    return np.append(-nodes[::-1], nodes), np.append(sign * values[::-1], values)


def _nodes(low: float, high: float, spacing: float) -> np.ndarray:
    first, last = math.floor(max(low, 0) / spacing), math.ceil(high / spacing)
    return (np.arange(first, max(last, first + 1)) + 0.5) * spacing


def _advance(law: _Law, step: _Step, following: _Step) -> _Law:
    """The law after a step, on nodes fine enough for the step that follows."""
    deviation = math.sqrt(step.beta)
    centres, weights = _both_sides(step.mean(law.nodes), law.spacing * law.density, 1)
    middle = len(centres) // 2
    low, high = centres[middle] - _REACH * deviation, centres[-1] + _REACH * deviation
    nodes = _nodes(low, high, deviation)
    density = gaussian_sum(nodes, centres, weights, deviation)
    kept = nodes[density > _NEGLIGIBLE * density.max()]
    # What the following step integrates is this density times a Gaussian of width
    # sqrt(beta)/slope: their product is narrower than either.
    slope = float(np.max(following.slope(kept)))
    width = 1 / math.hypot(1 / deviation, slope / math.sqrt(following.beta))
    spacing = width / _NODES_PER_WIDTH
    nodes = _nodes(kept[0] - deviation, kept[-1] + deviation, spacing)
    return _Law(nodes, gaussian_sum(nodes, centres, weights, deviation), spacing)


def sampler_error(schedule: NoiseSchedule, mixture: GaussianMixture) -> SamplerError:
    """Errors of `sampling.AncestralSampler` with the exact score, started from N(0, I).

    The projection's law and, backwards through the same nodes, the probability of the side on
    which a sample ends are computed by quadrature; the variance V of an orthogonal component
    follows V <- (1 - beta/Gamma)^2/(1 - beta) V + beta, without the last term at step 0.

    Args:
      schedule: the sampler's schedule, of at least two steps.
      mixture: the Gaussian mixture.

    Raises:
      UserError: a schedule of one step.
    """
    beta = np.asarray(schedule.beta, np.float64)
    if len(beta) < 2:
        raise UserError("a schedule of one step has no noise whose effect could be followed")
    times = -0.5 * np.cumsum(np.log1p(-beta))
    steps = [_Step(b, t, mixture) for b, t in zip(beta.tolist(), times.tolist(), strict=True)]

    width = 1 / math.hypot(1, float(steps[-1].slope(np.zeros(1))[0]) / math.sqrt(beta[-1]))
    nodes = _nodes(0, _REACH, width / _NODES_PER_WIDTH)
    density = np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    laws = {len(steps) - 1: _Law(nodes, density, width / _NODES_PER_WIDTH)}  # before each step
    variance = 1.0
    for s in range(len(steps) - 1, 0, -1):
        laws[s - 1] = _advance(laws[s], steps[s], steps[s - 1])
    for step in reversed(steps):
        shrink = (1 - step.beta / float(mixture.gamma(step.time))) ** 2 / (1 - step.beta)
        variance = shrink * variance + (step.beta if step is not steps[0] else 0)

    # Mean of the sign of y at the end, given y before each step.
    sign = np.ones(len(laws[0].nodes))
    phi = np.empty(len(steps))
    for s, step in enumerate(steps):
        if s > 0:
            after = laws[s - 1]
            nodes, values = _both_sides(after.nodes, after.spacing * sign, -1)
            sign = gaussian_sum(step.mean(laws[s].nodes), nodes, values, math.sqrt(step.beta))
        phi[s] = 0.5 + laws[s].spacing * np.sum(laws[s].density * sign**2)

    return SamplerError(
        _projection_error(laws, steps, mixture),
        math.sqrt(2 / math.pi) * abs(math.sqrt(variance) - mixture.sigma),
        times,
        phi,
        mixture.phi(times),
    )


def _projection_error(laws: dict[int, _Law], steps: list[_Step], mixture: GaussianMixture) -> float:
    """Integral of |F - F_exact| over the distribution functions of |m.x|/|m|."""
    law, deviation = laws[1], math.sqrt(steps[1].beta)
    centres, weights = _both_sides(steps[1].mean(law.nodes), law.spacing * law.density, 1)
    last = laws[0].nodes
    y = np.linspace(max(0, last[0] - laws[0].spacing), last[-1], 2000)
    below = np.empty(len(y))
    for part in np.array_split(np.arange(len(y)), max(1, len(y) * len(centres) // _CHUNK)):
        z = y[part, None] / deviation
        both = ndtr(z - centres / deviation) - ndtr(-z - centres / deviation)
        below[part] = both @ weights
    x = steps[0].mean(y)
    norm, sigma = mixture.centre_norm, mixture.sigma
    # Beyond the sampled range one of the two functions is 0 or 1.
    left = np.linspace(0, x[0], 4000)
    right = np.linspace(x[-1], max(x[-1], norm + _REACH * sigma), 4000)

    def exact(x: np.ndarray) -> np.ndarray:
        return np.asarray(ndtr((x - norm) / sigma) - ndtr((-x - norm) / sigma))

    return float(
        np.trapezoid(np.abs(below - exact(x)), x)
        + np.trapezoid(exact(left), left)
        + np.trapezoid(1 - exact(right), right)
    )


def steps_needed(num_steps: np.ndarray, errors: np.ndarray, target: float) -> float:
    """Number of steps from which on an error stays at or below a target.

    Between the numbers tried the error is a power of the number of steps.

    Args:
      num_steps: increasing numbers of steps (k,).
      errors: errors with that many (k,), positive.
      target: the error to be reached.

    Returns:
      A real number of steps; the smallest tried where all of them reach the target, NaN where the
      largest does not.
    """
    above = np.flatnonzero(errors > target)
    if len(above) == 0:
        return float(num_steps[0])
    last = int(above[-1])
    if last == len(errors) - 1:
        return math.nan
    x, y = np.log(num_steps[last : last + 2]), np.log(errors[last : last + 2])
    return float(np.exp(np.interp(-math.log(target), -y, x)))
