"""Noise schedules and the two clocks of the forward process.

A schedule has L steps s = 0..L-1. It is tied to the time t of the Ornstein-Uhlenbeck process
dx = -x dt + sqrt(2) dW by

    alpha_bar_s = prod_{i <= s} (1 - beta_i) = exp(-2 t_s),

so that x_t = exp(-t) x_0 + sqrt(1 - exp(-2 t)) noise is the law both of step s and of time t_s.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import pytrees


@pytrees.dataclass
class NoiseSchedule:
    """Tables of a discrete noise schedule, all of shape (num_steps,).

    They are computed in float64 and then stored in JAX's default float type, `noise_variance` and
    `time` in their own right: 1 - alpha_bar taken in float32 is wrong by 3e-4 of its value at the
    first of 1000 steps.

    Attributes:
      beta: variance of the noise that step s adds.
      alpha_bar: prod_{i <= s} (1 - beta_i), the squared amplitude of the signal after step s.
      noise_variance: 1 - alpha_bar, called Delta_t by Biroli et al. (2024).
      time: Ornstein-Uhlenbeck time t_s = -1/2 log alpha_bar_s, in units of the process's rate.
    """

    beta: Array
    alpha_bar: Array
    noise_variance: Array
    time: Array

    @property
    def num_steps(self) -> int:
        """Number of steps L."""
        return self.beta.shape[0]

    @property
    def log_snr(self) -> Array:
        """log(alpha_bar / (1 - alpha_bar)) at each step, shape (num_steps,)."""
        return -2 * self.time - jnp.log(self.noise_variance)

    def time_of_step(self, step: ArrayLike) -> Array:
        """Ornstein-Uhlenbeck time of the state before step s is executed backwards.

        t_s = -1/2 log alpha_bar_s; between two steps t is linear in s.

        Args:
          step: steps in [0, num_steps - 1], integer or real, any shape; others are clipped.

        Returns:
          Times of the same shape.
        """
        grid = jnp.arange(self.num_steps, dtype=self.time.dtype)
        return jnp.interp(jnp.asarray(step, self.time.dtype), grid, self.time)

    def step_of_time(self, time: ArrayLike) -> Array:
        """Inverse of `time_of_step`: the real-valued step whose state has time t.

        Args:
          time: Ornstein-Uhlenbeck times, any shape; clipped to the schedule's first and last.

        Returns:
          Steps in [0, num_steps - 1], of the same shape; round them for an integer step.
        """
        grid = jnp.arange(self.num_steps, dtype=self.time.dtype)
        return jnp.interp(jnp.asarray(time, self.time.dtype), self.time, grid)


def from_beta(beta: np.ndarray) -> NoiseSchedule:
    """Makes the tables of a schedule from its betas.

    alpha_bar_s = prod_{i <= s} (1 - beta_i),  t_s = -1/2 sum_{i <= s} log(1 - beta_i)

    Args:
      beta: noise variances (num_steps,), each in (0, 1).

    Raises:
      UserError: a beta outside (0, 1), or not a one-dimensional, non-empty array of numbers.
    """
    beta = _vector("beta", beta)
    if not np.all((beta > 0) & (beta < 1)):
        bad = int(np.argmin((beta > 0) & (beta < 1)))
        raise UserError(f"every beta must lie in (0, 1), but beta[{bad}] = {beta[bad]:.6g}")
    time = -0.5 * np.cumsum(np.log1p(-beta))
    tables = (beta, np.exp(-2 * time), -np.expm1(-2 * time), time)
    return NoiseSchedule(*(jnp.asarray(table, jnp.result_type(float)) for table in tables))


def from_time(time: np.ndarray) -> NoiseSchedule:
    """The schedule whose steps have the given times: beta_s = 1 - exp(-2 (t_s - t_{s-1})).

    Args:
      time: increasing, positive Ornstein-Uhlenbeck times (num_steps,).

    Raises:
      UserError: times that do not increase, are not positive or finite, or no one-dimensional,
        non-empty array of numbers; or two so near to each other, or so far apart, that beta is 0 or
        1 to rounding.
    """
    time = _vector("time", time)
    rises = np.diff(time, prepend=0) > 0
    if not np.all(rises & np.isfinite(time)):
        bad = int(np.argmin(rises & np.isfinite(time)))
        before = f"time[{bad - 1}] = {time[bad - 1]:.6g}" if bad > 0 else "0"
        raise UserError(
            f"times must be finite and increase from above 0, but time[{bad}] = {time[bad]:.6g} "
            f"comes after {before}"
        )
    return from_beta(-np.expm1(-2 * np.diff(time, prepend=0)))


def _vector(name: str, values: Any) -> np.ndarray:
    try:
        vector = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be a vector of numbers: {error}") from error
    if vector.ndim != 1 or vector.size == 0:
        raise UserError(f"{name} must be a non-empty vector, not of shape {vector.shape}")
    return vector


def _count(num_steps: int, least: int | None = 1) -> int:
    """A number of steps, as an int; the linear schedule has a least one of its own."""
    try:
        count = operator.index(num_steps)
    except TypeError as error:
        raise UserError(f"num_steps = {num_steps!r} must be a whole number") from error
    if least is not None and count < least:
        raise UserError(f"num_steps = {count} must be at least {least}: schedules are non-empty")
    return count


def linear_schedule(
    num_steps: int = 1000, first: float = 1e-4, last: float = 2e-2
) -> NoiseSchedule:
    """Linear schedule (Ho et al. 2020), rescaled to any number of steps.

    beta_s runs evenly from `first` to `last` for L = 1000; for another L both ends are multiplied
    by 1000/L, which keeps the last alpha_bar near 4e-5 (t = 5.0589 at L = 1000).

    Raises:
      UserError: num_steps is no whole number, or <= 20, where beta would reach 1.
    """
    num_steps = _count(num_steps, least=None)
    if num_steps <= 20:
        raise UserError(
            f"the linear schedule needs more than 20 steps, not {num_steps}: its last beta is "
            f"20/num_steps and must stay below 1"
        )
    scale = 1000 / num_steps
    return from_beta(np.linspace(scale * first, scale * last, num_steps))


def constant_schedule(num_steps: int = 1000, beta: float = 6e-3) -> NoiseSchedule:
    """Constant schedule: beta_s = beta for every step, not rescaled with their number.

    Raises:
      UserError: num_steps is no whole number, or < 1, or beta outside (0, 1).
    """
    return from_beta(np.full(_count(num_steps), _vector("beta", [beta])[0]))


def cosine_schedule(num_steps: int = 1000, offset: float = 0.008) -> NoiseSchedule:
    """Cosine schedule (Nichol & Dhariwal 2021, eq. 17).

    alpha_bar_s = g(s + 1)/g(0),  g(u) = cos^2(pi/2 (u/L + c)/(1 + c)),  beta_s <= 0.999,
    with the offset c = 0.008 by default

    Raises:
      UserError: num_steps is no whole number, or < 1.
    """
    num_steps = _count(num_steps)
    u = np.arange(num_steps + 1) / num_steps
    g = np.cos(0.5 * np.pi * (u + offset) / (1 + offset)) ** 2
    return from_beta(np.minimum(1 - g[1:] / g[:-1], 0.999))


def broadcast_right(values: Array, ndim: int) -> Array:
    """Appends axes of length 1 to `values` until it has `ndim` axes."""
    return jax.lax.expand_dims(values, range(values.ndim, ndim))
