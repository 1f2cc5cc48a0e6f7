"""What a denoiser is: anything that predicts the noise in x_t."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
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


def require_inputs(x: Array, step: Array, shape: tuple[int, ...], num_steps: int) -> None:
    """Refuses what a score in closed form would answer with NaN or in silence.

    Shapes and types are known to compiled code too, so that there it costs nothing; steps are
    looked at outside of it alone.

    Args:
      x: noisy data (batch, ...).
      step: integer steps (batch,).
      shape: of one example.
      num_steps: how many steps there are.

    Raises:
      UserError: x are no floats or of another shape; steps are no integers, or not in
        0..num_steps - 1.
    """
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise UserError(
            f"noisy data of type {jnp.result_type(x)}: give floats, in the units of the training "
            f"points"
        )
    if jnp.shape(x)[1:] != shape:
        raise UserError(
            f"noisy data of shape {jnp.shape(x)}, but the training points are of shape {shape}: "
            f"give a batch of such"
        )
    if not jnp.issubdtype(jnp.result_type(step), jnp.integer):
        raise UserError(f"steps of type {jnp.result_type(step)}: give integers")
    if isinstance(step, jax.core.Tracer) or not getattr(step, "is_fully_addressable", True):
        return
    known = np.asarray(step)
    if known.size and not 0 <= known.min() <= known.max() < num_steps:
        raise UserError(
            f"steps from {known.min()} to {known.max()} are not all in 0..{num_steps - 1}, those "
            f"of the schedule"
        )
