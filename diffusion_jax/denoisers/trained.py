"""A network as a denoiser."""

from typing import Any, cast

from flax import linen as nn
from flax import struct
from jax import Array


@struct.dataclass
class TrainedDenoiser:
    """A Flax network with its parameters, without dropout."""

    params: Any
    model: nn.Module = struct.field(pytree_node=False)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        return cast(Array, self.model.apply({"params": self.params}, x, step))
