"""A denoiser that never predicts data outside their range."""

import jax.numpy as jnp
from jax import Array

from diffusion_jax.denoisers.protocol import Denoiser
from diffusion_jax.process import noise_to_x_0, x_0_to_noise
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule


@pytrees.dataclass
class ClippedDenoiser:
    """A denoiser whose prediction of the data is bounded, and the noise made from it again.

    D(x, s) = (x - sqrt(1 - alpha_bar_s) eps(x, s))/sqrt(alpha_bar_s), then
    eps <- (x - sqrt(alpha_bar_s) clip(D, low, high))/sqrt(1 - alpha_bar_s)

    An error of the noise is e^t times as large in D, 157 times at the end of the linear schedule,
    where a network is asked first: bounded, it cannot leave the data's range (the `clip_denoised`
    of Ho et al. 2020). What it predicts within the range stays as it is, up to rounding.

    Attributes:
      denoiser: what is bounded.
      schedule: its schedule.
      low: least value of the data, mean removed: a number, or (channels,).
      high: largest value of the data, likewise.
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    low: Array
    high: Array

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        data = noise_to_x_0(self.schedule, self.denoiser(x, step), x, step)
        low, high = (
            jnp.asarray(bound, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
            for bound in (self.low, self.high)
        )
        return x_0_to_noise(self.schedule, jnp.clip(data, low, high), x, step)
