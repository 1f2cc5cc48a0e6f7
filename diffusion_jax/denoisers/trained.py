"""A network as a denoiser."""

from typing import Any, cast

from flax import struct
from jax import Array

from diffusion_jax.nn.unet import UNet


@struct.dataclass
class TrainedDenoiser:
    """The UNet with its parameters, without dropout."""

    params: Any
    model: UNet = struct.field(pytree_node=False)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        return cast(Array, self.model.apply({"params": self.params}, x, step))
