"""What denoisers that compare patches have in common: how these are named, and what is refused."""

import operator
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.process import x_0_to_noise
from diffusion_jax.schedule import NoiseSchedule


def checked_points(points: Any) -> Array:
    """Training images (n, height, width, channels), one or more.

    Raises:
      UserError: another shape, no real numbers, or values that are not finite.
    """
    shape = jnp.shape(points)
    if len(shape) != 4 or 0 in shape:
        raise UserError(
            f"patches are those of images, points (n, height, width, channels), and not of an "
            f"array of shape {shape}"
        )
    if not jnp.issubdtype(jnp.result_type(points), jnp.floating):
        raise UserError(
            f"training points of type {jnp.result_type(points)}: give floats, images in [0, 1] "
            f"minus their mean"
        )
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(np.asarray(points, np.float32)).all(axis=(1, 2, 3))
    if wrong.any():
        raise UserError(
            f"training point {int(np.argmax(wrong))} holds values that are not finite in float32"
        )
    return jnp.asarray(points)


def checked_patch(patch: Any, largest: int, others: str) -> int:
    """The side of a patch, in pixels.

    Args:
      patch: what was given.
      largest: the largest that there is.
      others: what else may be given from Python, in words.

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
            f"{largest - 1 + largest % 2} (from Python also {others})"
        )
    return side


def amplitudes(schedule: NoiseSchedule, step: Array, x: Array) -> tuple[Array, Array]:
    """e^-t and Delta_t of each example (batch,), in the type of x."""
    signal = jnp.sqrt(schedule.alpha_bar[step]).astype(x.dtype)
    return signal, schedule.noise_variance[step].astype(x.dtype)


class PatchDenoiser:
    """What the denoisers that compare patches share: a pytree with a closed form of D.

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta_t.
      points: training points a_nu (n, height, width, channels), in the units of x.
    """

    ARRAYS: ClassVar[tuple[str, ...]]  # attributes that hold arrays
    STATIC: ClassVar[tuple[str, ...]]  # and those that programs are compiled for
    schedule: NoiseSchedule
    points: Array

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Its arrays, and what programs are compiled for."""
        arrays, static = ([getattr(self, n) for n in names] for names in (self.ARRAYS, self.STATIC))
        return tuple(arrays), tuple(static)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], arrays: tuple[Any, ...]) -> Self:
        """The inverse, which checks nothing: JAX puts what it likes in place of arrays."""
        self = object.__new__(cls)
        for name, value in zip(cls.ARRAYS + cls.STATIC, (*arrays, *static), strict=True):
            setattr(self, name, value)
        return self

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    def mean(self, x: Array, step: Array) -> Array:
        """D of images that are like the points."""
        raise NotImplementedError

    def predict_x_0(self, x: Array, step: Array) -> Array:
        """The denoised images D, shape of x (batch, height, width, channels), steps (batch,).

        Raises:
          UserError: images of another shape than the points'.
        """
        if x.shape[1:] != self.points.shape[1:]:
            raise UserError(
                f"images of shape {x.shape[1:]} have no patches in common with training points of "
                f"shape {self.points.shape[1:]}: take images like those"
            )
        return self.mean(x, step)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`: the noise is (x - e^-t D)/sqrt(Delta_t)."""
        return x_0_to_noise(self.schedule, self.predict_x_0(x, step), x, step)
