"""A noise schedule from the data, with its steps where the sampler's error arises.

The error of one ancestral step is known (derived here). With the exact score, the step from time t
to t - h has the exact mean E[x_{t-h} | x_t], but the covariance beta I, beta = 1 - e^-2h, where the
backward process has beta Delta_{t-h}/Delta_t I + e^{-2(t-h)} (beta/Delta_t)^2 Cov(a | x_t). With
u = 1/(e^2t - 1), the relative difference is, to first order in h,

    2 h A(x_t),    A = u (I - Cov(a | x_t)/Delta_t),

and the step adds h^2 E|A|_F^2 to the Kullback-Leibler divergence between the sampler's paths and
those of the backward process. The sum over the steps, sum_k h_k^2 g(t_k), bounds that between
sample and data; for a given number of steps it is smallest where sqrt(g) h is the same for all:

    density of steps  rho(t) = sqrt(g(t)) / int sqrt(g),    sum_k h_k^2 g(t_k) ~ (int sqrt(g))^2/L.

g = E|A|_F^2 can be read off the curves of the data:

- An eigenvalue lambda of the covariance within the classes has Gamma_t = Delta_t + lambda e^-2t and
  gives v^2, v = (1 - lambda) e^-2t/Gamma_t = 1/2 d log Gamma_t/dt: along a mode, equal steps
  in the logarithm of its variance.
- The class gives s |d phi/dt|, s = e^{-2 (t - t_S)}: for two Gaussians at +-m whose Gamma_t is
  near 1 at t_S, A is -s sech^2(y) along m, with y = s + sqrt(s) z and
  E sech^4 y = -d/ds E sech^2 y = 2 d phi/ds.
- Together, for any data: E|A|_F^2 = d (u^2 + df/dt + 1/2 d^2f/dt^2) with f the excess entropy,
  since d df/du = -1/2 tr E Cov(a|x_t), and the derivative of that trace in u is -E|Cov(a|x_t)|_F^2.
  A second derivative is too much to ask of a measured curve, but E tr A = d (u - df/dt) takes one,
  and E|A|_F^2 >= d (u - df/dt)^2. It knows of the collapse, which the spectrum does not.

The divergence adds up over d directions, and the class is one of them: minimized as it stands, it
would leave the class hardly a step. So the bulk counts at most as much as the class
(`step_density`): to leading order neither error exceeds 2/(1 - floor) times what it, or the other
where that is larger, would be with all the steps to itself.
"""

import math

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.interpolate import PchipInterpolator

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.measures import SPECIATION_LEVEL
from diffusion_jax.regimes.transitions import Regimes
from diffusion_jax.schedule import NoiseSchedule, from_time, linear_schedule

_GRID = 8000


def mode_error(times: np.ndarray, eigenvalues: np.ndarray) -> np.ndarray:
    """Error density of the Gaussian modes, sum_i ((1 - lambda_i) e^-2t/Gamma_i)^2.

    Args:
      times: Ornstein-Uhlenbeck times t > 0, (T,).
      eigenvalues: lambda_i of the covariance, all of them (zeros included), within the classes
        where there are labels: (d,). Or pairs (lambda, multiplicity), (k, 2).

    Returns:
      (T,), in units of inverse time squared.
    """
    table = np.asarray(eigenvalues, np.float64)
    values, counts = table.T if table.ndim == 2 else (table, np.ones(len(table)))
    total = np.zeros(len(times))
    for value, count in zip(values, counts, strict=True):
        total += count * ((1 - value) / (np.expm1(2 * times) + value)) ** 2
    return total


def class_error(times: np.ndarray, phi: np.ndarray, floor: float = 0.5) -> np.ndarray:
    """Error density of the choice of a class, s |d phi/dt| with s = e^{-2 (t - t_S)}.

    t_S is where (phi - floor)/(1 - floor) falls to 0.5504, for two balanced classes phi to 0.7752.

    Args:
      times: increasing Ornstein-Uhlenbeck times (T,).
      phi: probability that two clones forked at each time end in the same class (T,).
      floor: its limit at late times, sum_c pi_c^2.

    Returns:
      (T,), in units of inverse time squared.

    Raises:
      UserError: phi does not fall through that value within the times.
    """
    curve = PchipInterpolator(np.log(times), phi)
    roots = np.exp(curve.solve(floor + (1 - floor) * SPECIATION_LEVEL, extrapolate=False))
    if len(roots) == 0:
        raise UserError("phi has no speciation time within the times given; give earlier or later")
    slope = curve.derivative()(np.log(times)) / times
    return np.asarray(np.exp(-2 * (times - roots[-1])) * np.abs(slope))


def entropy_error(times: np.ndarray, excess_entropy: np.ndarray, dimension: int) -> np.ndarray:
    """Lower bound d (1/(e^2t - 1) - df/dt)^2 of the error density, from the excess entropy.

    Args:
      times: increasing Ornstein-Uhlenbeck times (T,).
      excess_entropy: f in nats per dimension (T,); f/alpha is to be multiplied by log(n)/d.
      dimension: d.

    Returns:
      (T,), in units of inverse time squared.
    """
    slope = PchipInterpolator(np.log(times), excess_entropy).derivative()(np.log(times)) / times
    return np.asarray(dimension * (1 / np.expm1(2 * times) - slope) ** 2)


def step_density(
    times: np.ndarray,
    eigenvalues: np.ndarray | None = None,
    phi: np.ndarray | None = None,
    excess_entropy: np.ndarray | None = None,
    dimension: int | None = None,
    phi_floor: float = 0.5,
) -> np.ndarray:
    """Density of steps along time from whatever is known of the data, not normalized.

    rho = min(1, S_class/S_bulk) sqrt(g_bulk) + sqrt(g_class),    S = int sqrt(g) dt,
    g_bulk = max(mode_error, entropy_error): two descriptions of the same directions.

    Without phi, rho = sqrt(g_bulk). Arguments as in `mode_error`, `class_error`, `entropy_error`.

    Raises:
      UserError: nothing is known, an excess entropy without the dimension, or no speciation time.
    """
    if eigenvalues is None and phi is None and excess_entropy is None:
        raise UserError("an adaptive schedule needs a spectrum, phi or the excess entropy")
    if excess_entropy is not None and dimension is None:
        raise UserError("the excess entropy is per dimension: give the dimension too")
    times = np.asarray(times, np.float64)
    bulk = np.zeros(len(times))
    if eigenvalues is not None:
        bulk = mode_error(times, eigenvalues)
    if excess_entropy is not None and dimension is not None:
        bulk = np.maximum(bulk, entropy_error(times, excess_entropy, dimension))
    bulk = np.sqrt(bulk)
    if phi is None:
        return bulk
    by_class = np.sqrt(class_error(times, phi, phi_floor))
    most, total = np.trapezoid(by_class, times), np.trapezoid(bulk, times)
    return by_class + bulk * (min(1.0, most / total) if total > 0 else 0.0)


def mixture_density(times: np.ndarray, mixture: GaussianMixture) -> np.ndarray:
    """`step_density` of a Gaussian mixture: the modes within a class, phi, and f.

    f is wanted for its slope, in which the number of points drops out.
    """
    return step_density(
        times,
        np.array([[mixture.sigma**2, mixture.dimension - 1]]),
        mixture.phi(times),
        mixture.excess_entropy(times, 2),
        mixture.dimension,
    )


def data_density(regimes: Regimes, eigenvalues: np.ndarray, n: float, d: int) -> np.ndarray:
    """`step_density` at the times of a data set's curves, from all that is known of it.

    The excess entropy; phi, where it has a speciation time; and the spectrum, where all of it is
    known. That is the spectrum of all classes together: the few directions in which they differ
    count among the d as Gaussian modes do.

    Args:
      regimes: curves and times of all draws.
      eigenvalues: of the covariance, min(n, d) of them or more, or the first few.
      n: number of images, or of points of their orbit.
      d: values of an image.
    """
    curves, spectrum = regimes.curves, None
    if len(eigenvalues) >= min(n, d):
        spectrum = np.column_stack([eigenvalues, np.ones(len(eigenvalues))])
        spectrum = np.concatenate([spectrum, [[0, d - len(eigenvalues)]]])
    entropy, t_S = curves["excess_entropy"], regimes.times.get("t_S_phi")
    return step_density(
        entropy.times,
        spectrum,
        curves["phi"].mean if t_S is not None and math.isfinite(t_S.value) else None,
        entropy.mean * np.log(n) / d,
        d,
        regimes.floor,
    )


def adaptive_schedule(
    times: np.ndarray,
    density: np.ndarray,
    num_steps: int,
    first: float | None = None,
    last: float | None = None,
    floor: float = 0.2,
) -> NoiseSchedule:
    """The schedule of `adaptive_times`."""
    return from_time(adaptive_times(times, density, num_steps, first, last, floor))


def adaptive_times(
    times: np.ndarray,
    density: np.ndarray,
    num_steps: int,
    first: float | None = None,
    last: float | None = None,
    floor: float = 0.2,
) -> np.ndarray:
    """Times of steps that have a given density along time.

    t_0 = first, t_{L-1} = last, and between them C(t_k) = k/(L - 1) with
    C(t) = (1 - floor) int_first^t rho/int_first^last rho + floor (t - first)/(last - first).

    Args:
      times: increasing Ornstein-Uhlenbeck times (T,).
      density: rho at those times (T,), see `step_density`; linear between them, constant beyond.
      num_steps: number of steps L, at least 2.
      first: time of the first noise level; by default beta_0 = 0.1/L, as in the linear schedule.
      last: time of the last; by default that of the linear schedule of 1000 steps, 5.0589.
      floor: share of the steps that lie evenly in time, in (0, 1], so that no stretch is empty.

    Returns:
      Increasing times (L,), in float64.

    Raises:
      UserError: num_steps < 2, first >= last, times that do not increase, a density that is
        negative, not finite or zero throughout, or a floor outside (0, 1].
    """
    if first is None:
        first = -0.5 * math.log1p(-0.1 / max(num_steps, 1))
    if last is None:
        last = float(linear_schedule().time[-1])
    times, density = np.asarray(times, np.float64), np.asarray(density, np.float64)
    if num_steps < 2 or not 0 < first < last:
        raise UserError(
            f"an adaptive schedule needs at least 2 steps and 0 < first < last, not {num_steps} "
            f"steps from {first} to {last}"
        )
    if not 0 < floor <= 1:
        raise UserError(f"floor = {floor} must lie in (0, 1]")
    if not np.all(np.diff(times) > 0):
        raise UserError("the times of the density must increase")
    grid = np.union1d(np.geomspace(first, last, _GRID), np.linspace(first, last, _GRID))
    rate = np.interp(grid, times, density)
    spent = cumulative_trapezoid(rate, grid, initial=0)
    if not np.all(np.isfinite(density) & (density >= 0)) or not spent[-1] > 0:
        raise UserError(
            "the density of steps must be finite, nowhere negative, and positive somewhere between "
            "first and last"
        )
    share = (1 - floor) * spent / spent[-1] + floor * (grid - first) / (last - first)
    return np.interp(np.linspace(0, 1, num_steps), share, grid)
