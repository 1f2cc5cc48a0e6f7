"""A denoiser for data from which another mean was removed than from its own."""

import jax.numpy as jnp
from jax import Array

from diffusion_jax.denoisers.protocol import Denoiser
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule, broadcast_right


@pytrees.dataclass
class ShiftedDenoiser:
    """eps(x, s) = eps'(x + sqrt(alpha_bar_s) shift, s): of data a where eps' knows a + shift.

    Two runs remove each the mean of its own training set: with shift = m - m', the denoiser of the
    run with mean m' is one of images minus m.

    Attributes:
      denoiser: eps'.
      schedule: its schedule.
      shift: what is added to the data: a number, or (channels,).
    """

    denoiser: Denoiser
    schedule: NoiseSchedule
    shift: Array

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        signal = jnp.sqrt(self.schedule.alpha_bar[step]).astype(x.dtype)
        shift = jnp.asarray(self.shift, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return self.denoiser(x + broadcast_right(signal, x.ndim) * shift, step)
