"""The forward process in closed form and as a stochastic differential equation.

Also the conversions between what a network may predict: the noise, the score and x_0.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule, broadcast_right


def _amplitudes(schedule: NoiseSchedule, step: Array, like: Array) -> tuple[Array, Array]:
    """sqrt(alpha_bar_s) and sqrt(1 - alpha_bar_s), broadcast to the rank and type of `like`."""
    signal = jnp.sqrt(schedule.alpha_bar[step]).astype(like.dtype)
    noise = jnp.sqrt(schedule.noise_variance[step]).astype(like.dtype)
    return broadcast_right(signal, like.ndim), broadcast_right(noise, like.ndim)


def diffuse(schedule: NoiseSchedule, x_0: Array, step: Array, noise: Array) -> Array:
    """Draws x_t from the forward process in closed form.

    x_t = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) noise        (Ho et al. 2020, eq. 4)

    Args:
      schedule: noise schedule of L steps.
      x_0: clean images (batch, height, width, channels), in [0, 1] minus the data's mean; any
        other trailing shape works too.
      step: integer steps s in 0..L-1, shape (batch,).
      noise: standard normal noise, the shape of x_0.

    Returns:
      Noisy images, shape and dtype of x_0.
    """
    a, b = _amplitudes(schedule, step, x_0)
    return a * x_0 + b * noise


def noise_to_score(schedule: NoiseSchedule, noise: Array, step: Array) -> Array:
    """Score of the noisy data from predicted noise: -noise / sqrt(1 - alpha_bar_s).

    Shapes as in `diffuse` (Song et al. 2021).
    """
    _, b = _amplitudes(schedule, step, noise)
    return -noise / b


def score_to_noise(schedule: NoiseSchedule, score: Array, step: Array) -> Array:
    """Inverse of `noise_to_score`: -sqrt(1 - alpha_bar_s) score."""
    _, b = _amplitudes(schedule, step, score)
    return -b * score


def noise_to_x_0(schedule: NoiseSchedule, noise: Array, x_t: Array, step: Array) -> Array:
    """Estimate of the clean data: (x_t - sqrt(1 - alpha_bar_s) noise) / sqrt(alpha_bar_s).

    Shapes as in `diffuse` (Ho et al. 2020, eq. 15).
    """
    a, b = _amplitudes(schedule, step, x_t)
    return (x_t - b * noise) / a


def x_0_to_noise(schedule: NoiseSchedule, x_0: Array, x_t: Array, step: Array) -> Array:
    """Inverse of `noise_to_x_0`: (x_t - sqrt(alpha_bar_s) x_0) / sqrt(1 - alpha_bar_s)."""
    a, b = _amplitudes(schedule, step, x_t)
    return (x_t - a * x_0) / b


@pytrees.dataclass
class VPSDE:
    """Variance-preserving SDE  dx = -1/2 beta(t) x dt + sqrt(beta(t)) dW  (Song et al. 2021).

    beta(t) = beta_min + t (beta_max - beta_min). With beta_min = beta_max = 2 it is the
    Ornstein-Uhlenbeck process dx = -x dt + sqrt(2) dW; with 0.1 and 20 over t in [0, 1] it is the
    limit of the linear schedule.

    Attributes:
      beta_min: beta(0), in units of inverse time.
      beta_max: beta(1).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, time: ArrayLike) -> Array:
        """Rate beta at time t, any shape."""
        return self.beta_min + jnp.asarray(time) * (self.beta_max - self.beta_min)

    def alpha_bar(self, time: ArrayLike) -> Array:
        """exp(-int_0^t beta) = exp(-beta_min t - 1/2 (beta_max - beta_min) t^2), any shape."""
        t = jnp.asarray(time)
        return jnp.exp(-self.beta_min * t - 0.5 * (self.beta_max - self.beta_min) * t * t)

    def drift(self, x: Array, time: ArrayLike) -> Array:
        """Drift -1/2 beta(t) x; x of any shape, t a scalar."""
        return -0.5 * self.beta(time) * x

    def diffusion(self, time: ArrayLike) -> Array:
        """Diffusion coefficient sqrt(beta(t)), the shape of `time`."""
        return jnp.sqrt(self.beta(time))

    def euler_maruyama(
        self, key: Array, x: Array, start: float, end: float, num_steps: int
    ) -> Array:
        """Integrates the forward SDE with the Euler-Maruyama scheme.

        x <- x - 1/2 beta(t) x dt + sqrt(beta(t) dt) noise,   dt = (end - start)/num_steps

        The scheme is of weak order 1: with a constant beta its stationary variance is
        1/(1 - beta dt/4), not 1.

        Args:
          key: PRNG key.
          x: state at time `start`, any shape.
          start: first time.
          end: last time.
          num_steps: number of equal steps.

        Returns:
          State at time `end`, the shape of x.
        """
        dt = (end - start) / num_steps

        def body(i: Array, x: Array) -> Array:
            time = start + dt * i.astype(x.dtype)
            noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            return x + self.drift(x, time) * dt + self.diffusion(time) * dt**0.5 * noise

        return jax.lax.fori_loop(0, num_steps, body, x)
