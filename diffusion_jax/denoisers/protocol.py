"""What a denoiser is: anything that predicts the noise in x_t."""

from typing import Protocol

from jax import Array

from diffusion_jax.errors import UserError


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


def require_steps(denoiser: object, num_steps: int) -> None:
    """Refuses a schedule that is longer than what a denoiser, or a network, knows.

    Args:
      denoiser: one with an attribute `num_steps`, or without where any number will do.
      num_steps: steps of the schedule.

    Raises:
      UserError: the schedule has more.
    """
    known = getattr(denoiser, "num_steps", None)
    if known is not None and num_steps > known:
        raise UserError(
            f"the schedule has {num_steps} steps, but the denoiser knows the steps 0..{known - 1} "
            f"alone: take a schedule of at most {known}"
        )
