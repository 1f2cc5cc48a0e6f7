"""The exact score if every pixel saw only a patch, and did not know where it is."""

from functools import partial
from typing import Any, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers.local import mean_by_squares
from diffusion_jax.denoisers.patches import (
    PatchDenoiser,
    amplitudes,
    checked_patch,
    checked_points,
)
from diffusion_jax.denoisers.places import Boundary, Window
from diffusion_jax.denoisers.streamed import in_blocks, softmax_mean
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import NoiseSchedule

# Patches of noisy images that are compared at a time, with so many of the training images: about
# what a core's cache holds.
_QUERIES, _KEYS = 1024, 256
# Numbers in the training patches of a block, at most, unless one patch of each group has more.
_NUMBERS = 2**22


@jax.tree_util.register_pytree_node_class
class EquivariantLocalDenoiser(PatchDenoiser):
    """The equivariant local score machine: patches are compared wherever they lie.

    w_nu,q(p) = softmax_nu,q(-|x_P(p) - e^-t a_nu,P(q)|^2 / (2 Delta_t)),
    D_p = sum_nu,q w_nu,q(p) a_nu,q

    P(p) is the square of `patch` x `patch` pixels around p, all channels in it (Kamb & Ganguli
    2412.20292). At the boundary "zero" it is cut, and q runs over the places that are cut as p is,
    those of equal min(distance to each border, half width): their boundary-broken machine (App.
    B.2), which knows where borders are; from patch = max(height, width) on no two places are cut
    alike, and it is `LocalDenoiser`. At "circular" patches wrap and q runs over all places (App.
    B.1); with patch=None, every pixel once, it is the exact score of the training images in all
    translations. At large t it is the mean over the places q.

    Weights are normalised over all training patches, whatever the batch. For each patch of a
    noisy image every training patch costs patch^2 * channels multiplications and an exponential;
    with patch=None each image alone is compared, with n * height * width others. Equal training
    patches are found when it is made, and compared once: that is exact. Blocks of 1024 patches of
    noisy images meet blocks of 256 others, which changes rounding only: beside points and images it
    needs 8 bytes for each distinct training patch and a few arrays of 2^18 numbers, of up to 2^22
    where patches are large, or of batch * half width * 2^9 if that is more.

    Logits are products of the size of |a_P|^2/Delta_t, and in float32 wrong by up to about 1e-7 of
    that: where t is so small that this is not small, patches nearer to each other than
    sqrt(Delta_t) share their weight with such an error, as in `EmpiricalDenoiser`.

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta_t.
      points: training points a_nu (n, height, width, channels), in the units of x.
      patch: the patch's side, odd, or None.
      boundary: "zero" or "circular".
    """

    ARRAYS = ("schedule", "points", "_patches")
    STATIC = ("patch", "boundary")

    def __init__(
        self,
        schedule: NoiseSchedule,
        points: np.ndarray | Array,
        patch: int | None,
        boundary: Boundary,
    ) -> None:
        """Checks what it is given, and looks for equal patches.

        Raises:
          UserError: points that are no images, another boundary, or a patch that is even or too
            large: 2 max(height, width) - 1 at the boundary "zero", min(height, width) at
            "circular".
        """
        self.schedule, self.points = schedule, checked_points(points)
        if boundary not in get_args(Boundary):
            raise UserError(f'boundary = {boundary!r} must be "zero" or "circular"')
        self.boundary = boundary
        shape = self.points.shape[1:3]
        largest = min(shape) if boundary == "circular" else 2 * max(shape) - 1
        self.patch = None if patch is None else checked_patch(patch, largest, "None for all pixels")
        self._patches = tuple(
            (jnp.asarray(first), jnp.asarray(count))
            for first, count in self._window.distinct(np.asarray(self.points))
        )

    @classmethod
    def fit(
        cls,
        schedule: NoiseSchedule,
        points: np.ndarray,
        labels: np.ndarray | None,
        patch: int = 5,
    ) -> Self:
        """The machine of training points (n, ...), mean removed, with patches cut at the border.

        Labels change nothing.
        """
        return cls(schedule, points, patch, "zero")

    @property
    def _window(self) -> Window:
        return Window((self.points.shape[1], self.points.shape[2]), self.patch, self.boundary)

    def mean(self, x: Array, step: Array) -> Array:
        """See `PatchDenoiser`."""
        mean: Array = _predict(self, x, step)
        return mean


@jax.jit
def _predict(denoiser: EquivariantLocalDenoiser, x: Array, step: Array) -> Array:
    signal, variance = amplitudes(denoiser.schedule, step, x)
    points, window = denoiser.points.astype(x.dtype), denoiser._window
    mean = x
    if window.boundary == "zero":
        mean = mean_by_squares(points, window.half, x, signal, variance)
    for places, patches in zip(window.groups(), denoiser._patches, strict=True):
        found = _mean_of_patches(points, patches, places, window, x, signal, variance)
        if window.patch is None:
            return found.reshape(x.shape)
        flat = mean.reshape(len(x), -1, x.shape[3])
        mean = flat.at[:, places.reshape(-1)].set(found).reshape(x.shape)
    return mean


def _mean_of_patches(
    points: Array,
    patches: tuple[Array, Array],
    places: np.ndarray,
    window: Window,
    x: Array,
    signal: Array,
    variance: Array,
) -> Array:
    """Weighted means of the training patches' centres, or of the whole patches where one has all.

    Args:
      points: training images a.
      patches: of them, and how many there are of each (groups, N), see `Window`.
      places: of the noisy images' patches, each group compared with its own (groups, P).
      window: what a patch is.
      x: noisy images (batch, height, width, channels).
      signal: e^-t of each (batch,).
      variance: Delta_t of each (batch,).

    Returns:
      (batch, groups * P, values).
    """
    (batch, *_, channels), (groups, count) = x.shape, places.shape
    pixels, size = x[0, ..., 0].size, len(window.offsets()) * channels
    images, colours = x.reshape(batch, pixels, channels), points.reshape(-1, channels)
    queries = max(1, min(_QUERIES // max(1, batch * groups), count))
    keys = max(1, min(_KEYS, _NUMBERS // (groups * size), patches[0].shape[1]))
    blocks = tuple(in_blocks(each, keys, 1) for each in patches)
    scale = (signal / variance)[None, :, None, None]
    halved = -(signal**2 / (2 * variance))[None, :, None, None]

    @partial(jax.checkpoint, prevent_cse=False)
    def of_queries(some: Array) -> Array:
        at, inside = window.pixels(some)
        patch = jnp.where(inside[None, ..., None], images[:, at], 0)
        patch = jnp.moveaxis(patch.reshape(batch, groups, queries, size), 1, 0)
        shape = (groups, batch, queries, 1)
        fixed = jnp.broadcast_to(halved, shape), jnp.ones(shape, x.dtype)
        query = jnp.concatenate([scale * patch, *fixed], axis=-1)

        def of_block(block: tuple[Array, Array]) -> tuple[Array, Array, Any]:
            first, number = block  # (groups, keys)
            at, inside = window.pixels(first % pixels)
            at = at + (first - first % pixels)[..., None]
            a = jnp.where(inside[..., None], colours[at], 0).reshape(groups, keys, size)
            squared = jnp.sum(a**2, axis=-1, keepdims=True)
            several = jnp.log(jnp.maximum(number, 1).astype(x.dtype))[..., None]
            key = jnp.concatenate([a, squared, several], axis=-1)
            logits = jnp.einsum("gbqk,gnk->gbqn", query, key, precision="highest")
            values = a if window.patch is None else colours[first]
            values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)

            def summed(weights: Array) -> Array:
                return jnp.einsum("gbqn,gnv->gbqv", weights, values, precision="highest")

            return logits, (number > 0)[:, None, None], summed

        width = size if window.patch is None else channels
        return softmax_mean(of_block, blocks, (*shape[:-1], width), 3, x.dtype)

    found = jax.lax.map(of_queries, in_blocks(jnp.asarray(places, jnp.int32), queries, 1))
    found = jnp.moveaxis(found, (2, 1, 0), (0, 1, 2))
    found = found.reshape(batch, groups, -1, found.shape[-1])[:, :, :count]
    return found.reshape(batch, groups * count, -1)
