"""What can be trained: anything that predicts noise from images, steps and parameters."""

from typing import Any, Protocol

from jax import Array

from diffusion_jax.errors import UserError


class Network(Protocol):
    """A noise predictor eps_theta(x_t, s), as a Flax module is one that has a method `check`.

    It may have an attribute `num_steps` too, the number of steps that it knows.
    """

    def init(self, rngs: Any, /, *arguments: Array) -> Any:
        """The variables {"params": ...}, from a PRNG key, and x and step as in `apply`."""

    def apply(self, variables: Any, /, *arguments: Any) -> Any:
        """Predicts the noise.

        Args:
          variables: {"params": ...}, as `init` makes them.
          *arguments: x, noisy images (batch, height, width, channels); step, integers (batch,);
            and in training dropout_keys, one PRNG key per example (batch,), or None.

        Returns:
          Predicted noise, shape and dtype of x.
        """

    def check(self, height: int, width: int, channels: int, /) -> None:
        """Refuses images of a shape that it cannot take, before anything is compiled.

        Raises:
          UserError: the shape, and what would do.
        """


def require_network(network: Any) -> None:
    """Refuses what has not the methods of a `Network`.

    Raises:
      UserError: one is missing; it is named.
    """
    for name in ("init", "apply", "check"):
        if not callable(getattr(network, name, None)):
            raise UserError(
                f"the network {type(network).__qualname__} has no method {name}: "
                f"diffusion_jax.nn.network.Network says what it is to do"
            )


def described(network: Network | None, num_parameters: int) -> str | None:
    """What a run calls a network of one's own; None for the UNet of its configuration."""
    if network is None:
        return None
    return f"{type(network).__qualname__} with {num_parameters:,} parameters"
