"""The exact score of a Gaussian mixture."""

import jax.numpy as jnp
from jax import Array

from diffusion_jax.process import score_to_noise
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule, broadcast_right


@pytrees.dataclass
class GaussianMixtureDenoiser:
    """The exact score of two balanced Gaussians N(+-m, sigma^2 I).

    score(x) = m e^-t/Gamma_t tanh(e^-t m.x/Gamma_t) - x/Gamma_t,
    Gamma_t = Delta_t + sigma^2 e^-2t        (Biroli et al. 2024)

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta_t.
      centre: m, the shape of one example.
      sigma: standard deviation of each Gaussian, a scalar.
    """

    schedule: NoiseSchedule
    centre: Array
    sigma: Array

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        alpha_bar = self.schedule.alpha_bar[step].astype(x.dtype)
        variance = self.schedule.noise_variance[step].astype(x.dtype)
        gamma = variance + jnp.asarray(self.sigma, x.dtype) ** 2 * alpha_bar
        centre = self.centre.astype(x.dtype)[None]
        overlap = jnp.sum((x * centre).reshape(len(x), -1), axis=1)
        pull = jnp.sqrt(alpha_bar) * jnp.tanh(jnp.sqrt(alpha_bar) * overlap / gamma)
        score = (broadcast_right(pull, x.ndim) * centre - x) / broadcast_right(gamma, x.ndim)
        return score_to_noise(self.schedule, score, step)
