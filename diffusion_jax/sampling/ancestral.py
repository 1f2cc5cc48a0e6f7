"""Ancestral sampling: the backward process with noise, which speciation and collapse are about."""

import jax.numpy as jnp
from flax import struct
from jax import Array

from diffusion_jax.denoisers import Denoiser
from diffusion_jax.runtime import pytrees
from diffusion_jax.sampling.loop import Sampler, normal
from diffusion_jax.schedule import NoiseSchedule


@pytrees.dataclass
class AncestralSampler(Sampler):
    """Ancestral sampling with variance beta (Ho et al. 2020, alg. 2).

    x <- (x - beta_s/sqrt(1 - alpha_bar_s) eps(x, s))/sqrt(1 - beta_s) + sqrt(beta_s) z

    Attributes:
      schedule: noise schedule of L steps.
      faithful: turn the noise z off at both steps 1 and 0, as the code of Biroli et al. (2024)
        does; by default it is off at step 0 alone.
    """

    schedule: NoiseSchedule
    faithful: bool = struct.field(pytree_node=False, default=False)

    def step(self, denoiser: Denoiser, state: Array, step: Array, keys: Array) -> Array:
        """See `Sampler`."""
        return self.move(denoiser, state, step, normal(keys, state.shape[1:]).astype(state.dtype))

    def move(self, denoiser: Denoiser, x: Array, step: Array, noise: Array) -> Array:
        """The step with a given z: standard normal noise, the shape of x (batch, ...)."""
        beta = self.schedule.beta[step].astype(x.dtype)
        sigma = jnp.sqrt(self.schedule.noise_variance[step]).astype(x.dtype)
        eps = denoiser(x, jnp.full(x.shape[0], step))
        mean = (x - beta / sigma * eps) / jnp.sqrt(1 - beta)
        last_noisy = 2 if self.faithful else 1
        return mean + jnp.where(step >= last_noisy, jnp.sqrt(beta), jnp.zeros_like(beta)) * noise
