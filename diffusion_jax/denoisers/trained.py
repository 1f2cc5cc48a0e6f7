"""A network as a denoiser."""

from typing import Any, cast

from flax import struct
from jax import Array

from diffusion_jax.nn.network import Network
from diffusion_jax.runtime import pytrees


@pytrees.dataclass
class TrainedDenoiser:
    """A network with its parameters, without dropout."""

    params: Any
    model: Network = struct.field(pytree_node=False)

    @property
    def num_steps(self) -> int | None:
        """How many steps the network knows; None where any number will do."""
        return getattr(self.model, "num_steps", None)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        return cast(Array, self.model.apply({"params": self.params}, x, step))
