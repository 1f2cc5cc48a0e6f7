"""How steep the exact empirical score is, and which steps of a sampler that allows.

The Jacobian of score(x) = (e^-t E[a|x] - x)/Delta_t is

    J(x) = -I/Delta_t + (e^-2t/Delta_t^2) Cov_p(a|x),    Delta_t = 1 - e^-2t,

with Cov_p the covariance of the training points under the posterior p(nu|x). It is symmetric; with
k_min and k_max the extreme eigenvalues of Cov_p, its own extreme eigenvalues are

    e^-2t k_max/Delta^2 - 1/Delta      the largest: the one-sided Lipschitz constant at x
    e^-2t k_min/Delta^2 - 1/Delta      the smallest, at least -1/Delta

and the local Lipschitz constant is the larger of their moduli. Along any unit vector the variance
of points that lie within a diameter is at most diameter^2/4 (Popoviciu), so for all x the constant
is at most max(1/Delta, e^-2t diameter^2/(4 Delta^2) - 1/Delta).

Stability. The stiffest direction is one in which Cov_p vanishes: there J = -1/Delta, whatever the
data. A step of a backward process multiplies a deviation in that direction by a factor that the
schedule alone fixes, see `euler_factors` and `ancestral_factors`; a method is stable where its
modulus is at most 1. Directions with J > 0 grow under the exact process too: that is speciation and
collapse, not instability.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.posterior import stratified
from diffusion_jax.runtime.devices import in_batches, replicate, shard
from diffusion_jax.schedule import NoiseSchedule

_CHUNK_BYTES = 2**26
_BLOCK = 2048
_LANCZOS_STEPS = 40
_DENSE_LIMIT = 128  # an eigenproblem of this size for each x


@dataclass(frozen=True)
class LipschitzCurve:
    """Constants of the exact empirical score along time; N draws x_t, T times; inverse time units.

    Attributes:
      times: Ornstein-Uhlenbeck times (T,).
      one_sided: largest eigenvalue of the Jacobian at x_t (N, T).
      local: local Lipschitz constant at x_t (N, T).
      bound: of the Lipschitz constant over all x (T,).
    """

    times: np.ndarray
    one_sided: np.ndarray
    local: np.ndarray
    bound: np.ndarray


def _rows(points: np.ndarray) -> np.ndarray:
    """The points flattened (n, d), minus their mean, which changes nothing here except rounding."""
    if not np.issubdtype(points.dtype, np.floating):
        raise UserError(
            f"the points must be of a float type, scaled and flattened, not {points.dtype}"
        )
    if len(points) < 2 or not np.isfinite(points).all():
        raise UserError("the score's Jacobian needs at least two points, all of them finite")
    rows = points.reshape(len(points), -1)
    return rows - rows.mean(axis=0, dtype=np.float64).astype(rows.dtype)


@jax.jit
def _furthest(block: Array, points: Array, norms: Array) -> tuple[Array, Array]:
    """Largest squared distance from each of a block's points, and to which."""
    inner = jnp.matmul(block, points.T, precision="highest")
    squared = jnp.sum(block * block, axis=1)[:, None] + norms[None, :] - 2 * inner
    return jnp.max(squared, axis=1), jnp.argmax(squared, axis=1)


def diameter(points: np.ndarray) -> float:
    """Largest distance between two of the points, found block by block.

    Args:
      points: floats (n, ...), flattened.

    Returns:
      max |a - b|, in the points' units.
    """
    rows = _rows(points).astype(np.float32)
    every = jax.device_put(rows)
    norms = jnp.sum(every * every, axis=1)
    best, pair = -1.0, (0, 0)
    for start in range(0, len(rows), _BLOCK):
        squared, other = _furthest(every[start : start + _BLOCK], every, norms)
        i = int(jnp.argmax(squared))
        if float(squared[i]) > best:
            best, pair = float(squared[i]), (start + i, int(other[i]))
    return float(np.linalg.norm(rows[pair[0]].astype(np.float64) - rows[pair[1]]))


def _log_posterior(rows: np.ndarray, x: np.ndarray, time: float) -> np.ndarray:
    """Log p(nu | x) up to a constant, its largest 0; (batch, n), in float64.

    The logits are differences of numbers near |a|^2/Delta_t, in which float32 would lose digits at
    small t.
    """
    signal, variance = np.exp(-time), -np.expm1(-2 * time)
    logits = np.empty((len(x), len(rows)))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        squared = np.sum(block * block, axis=1)
        logits[:, start : start + _BLOCK] = signal * (x @ block.T - signal * squared / 2) / variance
    return logits - logits.max(axis=1, keepdims=True)


@partial(jax.jit, static_argnames="steps")
def _lanczos(points: Array, log_weights: Array, start: Array, steps: int) -> tuple[Array, Array]:
    """Lanczos recursion for the posterior covariances of some x, which are never formed.

    Args:
      points: (n, d).
      log_weights: log of the unnormalised weights (batch, n).
      start: random numbers (n,), from which the first vectors are made.
      steps: size of the Krylov space.

    Returns:
      Diagonals and off-diagonals of the tridiagonal matrices, (batch, steps) each.
    """
    weights = jax.nn.softmax(log_weights, axis=1)
    product = partial(jnp.matmul, precision="highest")
    einsum = partial(jnp.einsum, precision="highest")
    mean = product(weights, points)

    def scatter(coefficients: Array) -> Array:
        return product(coefficients, points) - jnp.sum(coefficients, 1, keepdims=True) * mean

    def covariance(v: Array) -> Array:
        return scatter(weights * (product(v, points.T) - jnp.sum(mean * v, 1, keepdims=True)))

    def unit(v: Array, floor: Array) -> tuple[Array, Array]:
        # What is left of an exhausted space is rounding: the recursion ends in zeros.
        norm = jnp.linalg.norm(v, axis=1, keepdims=True)
        norm = jnp.where(norm > floor, norm, jnp.zeros_like(norm))
        return jnp.where(norm > 0, v / norm, jnp.zeros_like(v)), norm

    first = scatter(jnp.sqrt(weights) * start[None, :])
    first, _ = unit(first, jnp.zeros_like(first[:, :1]))
    basis = jnp.zeros((len(weights), steps, points.shape[1]), points.dtype).at[:, 0].set(first)
    table = jnp.zeros((len(weights), steps), points.dtype)

    def body(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, diagonal, off_diagonal = state
        w = covariance(basis[:, i])
        diagonal = diagonal.at[:, i].set(jnp.sum(basis[:, i] * w, axis=1))
        for _ in range(2):
            w = w - einsum("bk,bkd->bd", einsum("bkd,bd->bk", basis, w), basis)
        v, norm = unit(w, 1e-5 * jnp.max(diagonal, axis=1, keepdims=True))
        basis = basis.at[:, i + 1].set(v, mode="drop")
        return basis, diagonal, off_diagonal.at[:, i].set(norm[:, 0])

    _, diagonal, off_diagonal = jax.lax.fori_loop(0, steps, body, (basis, table, table))
    return diagonal, off_diagonal


@jax.jit
def _dense(points: Array, log_weights: Array) -> Array:
    """Extreme eigenvalues (batch, 2) of the posterior covariances, each a d x d matrix in turn."""

    def extremes(log_weight: Array) -> Array:
        weight = jax.nn.softmax(log_weight)
        centred = points - jnp.matmul(weight, points, precision="highest")[None, :]
        covariance = jnp.matmul((centred * weight[:, None]).T, centred, precision="highest")
        return jnp.linalg.eigvalsh(covariance)[jnp.array([0, -1])]

    return jax.lax.map(extremes, log_weights)


def _is_flat(rows: np.ndarray) -> bool:
    """Whether some direction holds no variance of the points: none of any posterior's either."""
    n, d = rows.shape
    if n <= d or np.any(np.ptp(rows, axis=0) == 0):
        return True
    gram = np.zeros((d, d))
    for start in range(0, n, _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        gram += block.T @ block
    eigenvalues = np.linalg.eigvalsh(gram)
    return bool(eigenvalues[0] <= d * np.finfo(np.float64).eps * eigenvalues[-1])


@dataclass(frozen=True)
class _Score:
    """The centred points, on the host and on the devices, and what holds for every x."""

    rows: np.ndarray
    points: Array
    flat: bool

    def covariance_range(self, x: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """k_min and k_max (batch,) at each x (batch, d) minus e^-t times the points' mean."""
        n, d = self.rows.shape
        per_draw = 4 * (3 * n + (_LANCZOS_STEPS + 4) * d) if self.flat else 4 * (3 * n + d)
        at_most = max(1, _CHUNK_BYTES // per_draw) * jax.device_count()
        steps = min(_LANCZOS_STEPS, n, d)
        gauss = replicate(jax.random.normal(jax.random.key(0), (n,), jnp.float32))

        def batch(numbers: np.ndarray) -> Any:
            part = x[np.minimum(numbers, len(x) - 1)]
            log_weights = _log_posterior(self.rows, part, time).astype(np.float32)
            if self.flat:
                return _lanczos(self.points, shard(log_weights), gauss, steps)
            return _dense(self.points, replicate(log_weights))

        found = in_batches(batch, len(x), min(at_most, len(x)))
        if not self.flat:
            both = np.maximum(found.astype(np.float64), 0)
            return both[:, 0], both[:, 1]
        diagonal, off_diagonal = (table.astype(np.float64) for table in found)
        matrix = diagonal[:, :, None] * np.eye(steps)
        matrix[:, np.arange(1, steps), np.arange(steps - 1)] = off_diagonal[:, :-1]
        largest = np.maximum(np.linalg.eigvalsh(matrix)[:, -1], 0)
        return np.zeros(len(x)), largest

    def constants(self, x: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """See `local_constants`; x is given minus e^-t times the points' mean."""
        k_min, k_max = self.covariance_range(x, time)
        variance = -np.expm1(-2 * time)
        ratio = np.exp(-2 * time) / variance**2
        one_sided = ratio * k_max - 1 / variance
        return one_sided, np.maximum(1 / variance - ratio * k_min, one_sided)


def _score(points: np.ndarray) -> _Score:
    rows = _rows(points).astype(np.float32)
    flat = rows.shape[1] > _DENSE_LIMIT or _is_flat(rows)
    return _Score(rows, replicate(rows), flat)


def local_constants(
    points: np.ndarray, x: np.ndarray, time: float
) -> tuple[np.ndarray, np.ndarray]:
    """One-sided and local Lipschitz constants of the exact empirical score at given x.

    e^-2t k_max/Delta^2 - 1/Delta   and   max(1/Delta - e^-2t k_min/Delta^2, the former).

    k_max comes from 40 Lanczos steps in float32 with products by the points alone. Where the points
    leave a direction without variance (n <= d, a constant pixel) k_min is 0; else both come from
    the d x d matrix, one for each x, for d up to 128. Beyond, k_min >= 0 is used, and the local
    constant is an upper bound, max(1/Delta, one-sided constant).

    Args:
      points: training points a_nu (n, ...), floats, in the units of x.
      x: noisy data (batch, ...).
      time: its Ornstein-Uhlenbeck time, positive.

    Returns:
      Two arrays (batch,), in units of inverse time.

    Raises:
      UserError: fewer than two points, not finite or not floats.
    """
    score = _score(points)
    flattened = points.reshape(len(points), -1)
    shift = np.exp(-time) * flattened.mean(axis=0, dtype=np.float64)
    return score.constants(np.asarray(x, np.float64).reshape(len(x), -1) - shift, time)


def lipschitz_bound(diameter: float, times: np.ndarray) -> np.ndarray:
    """max(1/Delta, e^-2t diameter^2/(4 Delta^2) - 1/Delta): no x has a larger constant.

    Args:
      diameter: largest distance between two training points.
      times: Ornstein-Uhlenbeck times, any shape, positive.

    Returns:
      Bounds of the same shape, in units of inverse time.
    """
    variance = -np.expm1(-2 * np.asarray(times, np.float64))
    steepest = np.exp(-2 * np.asarray(times)) * diameter**2 / (4 * variance**2) - 1 / variance
    return np.maximum(1 / variance, steepest)


def lipschitz_curve(
    points: np.ndarray, times: np.ndarray, key: Array, num_draws: int
) -> LipschitzCurve:
    """The score's constants at x_t = e^-t a_mu + sqrt(Delta_t) z, and the bound, along time.

    The same (mu, z) serves every time; mu is spread evenly over the points. Quantiles over x_t are
    `np.quantile(curve.local, q, axis=0)`.

    Args:
      points: training points (n, ...), floats.
      times: Ornstein-Uhlenbeck times (T,), positive.
      key: typed PRNG key.
      num_draws: number of draws N.

    Returns:
      See `LipschitzCurve`.

    Raises:
      UserError: see `local_constants`; times that are not positive; no draws.
    """
    times = np.asarray(times, np.float64)
    if num_draws < 1 or not np.all(times > 0):
        raise UserError("the score's constants need at least one draw, and positive times")
    score = _score(points)
    key_source, key_noise = jax.random.split(key)
    source = score.rows[stratified(key_source, len(points), 0, num_draws)].astype(np.float64)
    noise = np.asarray(jax.random.normal(key_noise, source.shape, jnp.float32), np.float64)
    found = [
        score.constants(np.exp(-t) * source + np.sqrt(-np.expm1(-2 * t)) * noise, t) for t in times
    ]
    one_sided, local = (np.stack(each, axis=1) for each in zip(*found, strict=True))
    return LipschitzCurve(times, one_sided, local, lipschitz_bound(diameter(points), times))


def _step_lengths(schedule: NoiseSchedule) -> np.ndarray:
    """t_s - t_{s-1} = -1/2 log(1 - beta_s), with t_{-1} = 0; (num_steps,)."""
    return -0.5 * np.log1p(-np.asarray(schedule.beta, np.float64))


def euler_factors(schedule: NoiseSchedule) -> np.ndarray:
    """What an Euler step of the backward SDE multiplies the stiffest deviation by.

    x <- x + eta (x + 2 score(x)) + sqrt(2 eta) z with eta = t_s - t_{s-1}; where the posterior
    covariance vanishes score = -x/Delta_s + const, so the factor is

    1 - eta (2/Delta_s - 1) = 1 - eta coth t_s.

    Every other direction's factor is larger. It falls below -1, and the method is unstable, where
    eta > 2 tanh t_s. As eta is at most t_s, that can happen only above t = 1.915, the root of
    t coth t = 2: with steps longer than 1.9.

    Args:
      schedule: the noise schedule.

    Returns:
      Factors of the steps s = 0..L-1, (num_steps,), float64.
    """
    variance = np.asarray(schedule.noise_variance, np.float64)
    return 1 - _step_lengths(schedule) * (2 / variance - 1)


def stable_euler_steps(schedule: NoiseSchedule) -> np.ndarray:
    """Which steps an explicit Euler step in Ornstein-Uhlenbeck time takes stably; (num_steps,).

    eta (2/Delta_s - 1) <= 2, see `euler_factors`.
    """
    return np.abs(euler_factors(schedule)) <= 1


def ancestral_factors(schedule: NoiseSchedule) -> np.ndarray:
    """What a step of `AncestralSampler` multiplies the stiffest deviation by.

    With eps = -sqrt(Delta_s) score the step is x <- (x + beta_s score)/sqrt(1 - beta_s), and where
    the posterior covariance vanishes

    (1 - beta_s/Delta_s)/sqrt(1 - beta_s) = sqrt(1 - beta_s) Delta_{s-1}/Delta_s,

    since Delta_s = 1 - (1 - beta_s)(1 - Delta_{s-1}). It lies in [0, 1) for every beta in (0, 1):
    the step always contracts there, and never overshoots, however long it is. (In a direction in
    which the posterior covariance is large it expands, as the exact process does.)

    Args:
      schedule: the noise schedule.

    Returns:
      Factors of the steps s = 0..L-1, (num_steps,), float64; 0 at s = 0, which ends on clean data.
    """
    variance = np.asarray(schedule.noise_variance, np.float64)
    before = np.concatenate([[0.0], variance[:-1]])
    return np.sqrt(1 - np.asarray(schedule.beta, np.float64)) * before / variance
