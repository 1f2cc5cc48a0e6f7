"""What denoisers that compare patches have in common: how these are named, and what is refused."""

import operator
from typing import Any

import jax.numpy as jnp
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.schedule import NoiseSchedule


def checked_points(points: Any) -> Array:
    """Training images (n, height, width, channels), one or more.

    Raises:
      UserError: another shape.
    """
    shape = jnp.shape(points)
    if len(shape) != 4 or 0 in shape:
        raise UserError(
            f"patches are those of images, points (n, height, width, channels), and not of an "
            f"array of shape {shape}"
        )
    return jnp.asarray(points)


def checked_patch(patch: Any, largest: int, others: str) -> int:
    """The side of a patch, in pixels.

    Args:
      patch: what was given.
      largest: the largest that there is.
      others: what else may be given, in words.

    Raises:
      UserError: no odd number from 1 to the largest.
    """
    try:
        side = operator.index(patch)
    except TypeError:
        side = 0
    if isinstance(patch, bool) or side % 2 == 0 or not 1 <= side <= largest:
        raise UserError(
            f"patch = {patch!r} must be an odd number of pixels from 1 to "
            f"{largest - 1 + largest % 2}, or {others}"
        )
    return side


def require_like(points: Array, x: Array) -> None:
    """Refuses images of another shape than the training points.

    Raises:
      UserError: they are.
    """
    if x.shape[1:] != points.shape[1:]:
        raise UserError(
            f"images of shape {x.shape[1:]} have no patches in common with training points of "
            f"shape {points.shape[1:]}: take images like those"
        )


def amplitudes(schedule: NoiseSchedule, step: Array, x: Array) -> tuple[Array, Array]:
    """e^-t and Delta_t of each example (batch,), in the type of x."""
    signal = jnp.sqrt(schedule.alpha_bar[step]).astype(x.dtype)
    return signal, schedule.noise_variance[step].astype(x.dtype)
