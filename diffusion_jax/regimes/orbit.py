"""The images g a_nu of every map g of a group, which serve as training points but are not stored.

Only the n images are: products with g a_nu are those of g^-1 x with a_nu, since g keeps them.

Where maps leave an image as it is, its orbit holds fewer than |G| distinct points, each equally
often: |G|/m_nu of them, m_nu times each, with m_nu the number of maps that fix a_nu. They count as
one point each, of prior probability m_nu/(n |G|). The entropy of that prior,

    H = 1/n sum_nu log(n |G|/m_nu),

takes the place of log n; where no map fixes an image, it is log(n |G|). Images that are maps of one
another stay separate points, as copies in a training set do.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import pytrees
from diffusion_jax.runtime.devices import replicate
from diffusion_jax.symmetry import Group

# Of an image's largest value: by how much rounding may part it from its image under a map.
_ROUNDING = 1e-5
_BLOCK_BYTES = 2**26
# Stands for the log-probability of a copy; sums of it over every column stay finite.
_NEVER = -1e30


@pytrees.dataclass
class Orbit:
    """The orbit of n images as columns: column nu |G| + g is g a_nu, and g = 0 is a_nu itself.

    Attributes:
      group: the maps.
      shape: (height, width, channels) of an image.
      log_prior: log m_nu (n |G|,) at the first of equal columns, -1e30 at the others; None where no
        map fixes an image.
      num_points: e^H, an integer where no map fixes an image.
      num_distinct: of the points of the orbit of each image in turn, summed.
      sizes: the same of each class.
    """

    group: Group = struct.field(pytree_node=False)
    shape: tuple[int, int, int] = struct.field(pytree_node=False)
    log_prior: Array | None
    num_points: float = struct.field(pytree_node=False)
    num_distinct: int = struct.field(pytree_node=False)
    sizes: tuple[int, ...] = struct.field(pytree_node=False)

    def products(self, x: Array, points: Array, together: int) -> Array:
        """x.g a_nu, (batch, n |G|).

        Args:
          x: (batch, d).
          points: a_nu (n, d).
          together: how many maps of x are in memory at once, a divisor of |G|.
        """
        batch, n = len(x), len(points)
        images = x.reshape(batch, *self.shape)
        moved = partial(self.group.inverse, x=images)

        def block(numbers: Array) -> Array:
            rows = jax.lax.map(moved, numbers).reshape(together, batch, -1)
            return jnp.einsum("gbd,nd->gbn", rows, points, precision="highest")

        found = jax.lax.map(block, jnp.arange(self.group.order).reshape(-1, together))
        return jnp.transpose(found, (2, 3, 0, 1)).reshape(batch, n * self.group.order)

    def at(self, columns: Array, points: Array) -> Array:
        """The points g a_nu of columns (batch,), (batch, d)."""
        chosen = points[columns // self.group.order].reshape(-1, *self.shape)
        moved = self.group.of_each(columns % self.group.order, chosen)
        return moved.reshape(len(columns), -1)


def orbit_of(
    points: np.ndarray, group: Group, shape: tuple[int, ...], offsets: tuple[int, ...]
) -> Orbit:
    """The orbit of points, whose equal columns are found.

    Args:
      points: float32 (n, d), in the order of their classes.
      group: the maps.
      shape: of a point as it was given.
      offsets: where each class begins, and n at the end.

    Raises:
      UserError: points that the group does not map to such, or too many of them.
    """
    group.require(shape)
    height, width, channels = shape
    n, order = len(points), group.order
    if n * order >= 2**31:
        raise UserError(
            f"{n} images have {n * order} images under the group {group.name}, more than the 2^31 "
            f"that can be counted: take fewer images or a smaller group"
        )
    copies = _copies(points.reshape(n, height, width, channels), group)
    distinct = order - copies.sum(axis=1)
    sizes = tuple(int(part.sum()) for part in np.split(distinct, offsets[1:-1]))
    total, prior = sum(sizes), None
    num_points: float = n * order
    if copies.any():
        log_times = np.log(order / distinct)
        prior = np.where(copies, _NEVER, log_times[:, None]).astype(np.float32).reshape(-1)
        num_points = math.exp(math.log(n * order) - float(np.mean(log_times)))
    return Orbit(group, (height, width, channels), replicate(prior), num_points, total, sizes)


def common_mean(mean: np.ndarray, group: Group, shape: tuple[int, int, int]) -> np.ndarray:
    """The mean of a mean image's orbit, which every map leaves as it is: float64 (d,).

    Args:
      mean: the mean image (d,).
      group: the maps.
      shape: (height, width, channels).
    """
    image = jnp.asarray(mean.reshape(shape), jnp.float32)
    moved = jax.jit(group.maps)
    total = np.zeros(shape)
    for number in range(group.order):
        total += np.asarray(moved(jnp.int32(number), image))
    return total.reshape(-1) / group.order


@partial(jax.jit, static_argnames="group")
def _fixed(images: Array, group: Group) -> Array:
    """Which maps leave which images as they are (n, |G|)."""
    room = _ROUNDING * jnp.max(jnp.abs(images), axis=(1, 2, 3))

    def by(number: Array) -> Array:
        return jnp.max(jnp.abs(group(number, images) - images), axis=(1, 2, 3)) <= room

    return jax.lax.map(by, jnp.arange(group.order)).T


@partial(jax.jit, static_argnames="group")
def _all_maps(image: Array, group: Group) -> Array:
    """The orbit of an image (|G|, ...)."""
    return jax.lax.map(lambda number: group(number, image), jnp.arange(group.order))


def _copies(images: np.ndarray, group: Group) -> np.ndarray:
    """Which g a_nu equals h a_nu of a smaller number h, (n, |G|)."""
    step = max(1, _BLOCK_BYTES // images[:1].nbytes)
    fixed = np.concatenate(
        [np.asarray(_fixed(images[i : i + step], group)) for i in range(0, len(images), step)]
    )
    # g a = h a if g^-1 h fixes a: images that the same maps fix have equal columns in common.
    patterns, first, which = np.unique(fixed, axis=0, return_index=True, return_inverse=True)
    copies = np.zeros_like(patterns)
    for copy, pattern, image in zip(copies, patterns, images[first], strict=True):
        if pattern.sum() == 1:
            continue
        orbit = np.asarray(_all_maps(image, group)).reshape(group.order, -1)
        room = _ROUNDING * np.abs(image).max()
        for number in range(group.order):
            if not copy[number]:
                difference = np.abs(orbit[number + 1 :] - orbit[number]).max(axis=1)
                copy[number + 1 :] |= difference <= room
    return copies[which.reshape(-1)]
