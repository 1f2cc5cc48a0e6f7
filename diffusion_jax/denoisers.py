"""Denoisers: anything that predicts the noise in x_t."""

from typing import Any, Protocol, cast

from flax import struct
from jax import Array

from diffusion_jax.unet import UNet


class Denoiser(Protocol):
    """A noise predictor, eps(x_t, s).

    To be compiled with its arrays as arguments, not as constants, a denoiser is a pytree too: see
    `TrainedDenoiser`.
    """

    def __call__(self, x: Array, step: Array) -> Array:
        """Predicts the noise.

        Args:
          x: noisy data (batch, ...), at the noise level of `step`.
          step: integer steps s in 0..L-1, shape (batch,).

        Returns:
          Predicted noise, shape of x. The score is -noise / sqrt(1 - alpha_bar_s).
        """


@struct.dataclass
class TrainedDenoiser:
    """The UNet with its parameters, without dropout."""

    params: Any
    model: UNet = struct.field(pytree_node=False)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        return cast(Array, self.model.apply({"params": self.params}, x, step))
