"""Nearest training points of samples, by blocked matrix products."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.symmetry import Group

# Rows of a block of the distances.
_BLOCK = 1024
# Training points whose differences from their mean are in memory at a time.
_POINTS = 2048
# Candidates by matrix product; the distances of these are formed again from their differences.
_CANDIDATES = 8


@dataclass(frozen=True)
class Neighbours:
    """The two nearest training points of each sample.

    Attributes:
      index: of the nearest (N,).
      distance: Euclidean, to the nearest (N,).
      second: to the second nearest, another training point (N,).
    """

    index: np.ndarray
    distance: np.ndarray
    second: np.ndarray

    @property
    def memorised(self) -> np.ndarray:
        """Whether distance/second < 1/3 (N,): "Why diffusion models don't memorize" (2025).

        Never so beside a training point that has a copy among the others.
        """
        return self.distance < self.second / 3

    @property
    def ratio(self) -> np.ndarray:
        """distance/second (N,), in [0, 1]; 1 on a training point that has a copy."""
        ones = np.ones_like(self.distance)
        return np.divide(self.distance, self.second, out=ones, where=self.second != 0)


@jax.jit
def _block(x: Array, points: Array) -> tuple[Array, Array, Array]:
    products = jnp.matmul(x, points.T, precision="highest")
    closeness = 2 * products - jnp.sum(points * points, axis=1)[None, :]
    _, found = jax.lax.top_k(closeness, min(_CANDIDATES, len(points)))
    difference = x[:, None] - points[found]
    squared, order = jax.lax.top_k(-jnp.sum(difference * difference, axis=2), 2)
    distance = jnp.sqrt(-squared)
    index = jnp.take_along_axis(found, order[:, :1], axis=1)[:, 0]
    return index, distance[:, 0], distance[:, 1]


@partial(jax.jit, static_argnums=0)
def _moved(group: Group, index: Array, x: Array) -> Array:
    return group(index, x)


def nearest(x: np.ndarray, points: np.ndarray, group: Group | None = None) -> Neighbours:
    """The two nearest training points of each sample.

    Eight candidates in every 2 048 points come from |a|^2 - 2 a.x, in float32; their distances are
    those of the differences, so that a sample on a training point has distance 0.

    With a group the distance to a point is that to the nearest of its images, min_g |x - g a|, so
    that the second nearest is another point, and no other image of the same; |G| times the work.

    Args:
      x: samples (N, ...). Along a trajectory, x_t e^t: nearest to a_nu means nearest to e^-t a_nu.
      points: training points (n, ...), n >= 2, in the same units; integers, such as grey levels,
        are raised to floats a part at a time.
      group: maps of the samples, images (height, width, channels); None for the points alone.

    Raises:
      UserError: fewer than two training points, or another number of components, or images that the
        group does not map to such.
    """
    flat, rows = x.reshape(len(x), -1), points.reshape(len(points), -1)
    if len(rows) < 2 or flat.shape[1] != rows.shape[1]:
        raise UserError(
            f"samples of shape {x.shape[1:]}, {len(rows)} training points of shape "
            f"{points.shape[1:]}: give two points or more, of the samples' shape"
        )
    mean = rows.mean(0, dtype=np.float64)
    put = partial(np.asarray, dtype=np.float32)

    def centred(number: int) -> np.ndarray:
        """The samples as a map makes them: |x - g a| = |g^-1 x - a|, and g^-1 is any map."""
        if group is None:
            return put(flat - mean)
        return put(np.asarray(_moved(group, jnp.int32(number), put(x))).reshape(flat.shape) - mean)

    if group is not None:
        group.require(x.shape[1:])
    parts, offset = [], 0
    for part in np.array_split(rows, -(-len(rows) // _POINTS)):
        on_device = jnp.asarray(put(part - mean))
        for number in range(1 if group is None else group.order):
            moved = centred(number)
            blocks = [_block(moved[i : i + _BLOCK], on_device) for i in range(0, len(flat), _BLOCK)]
            index, distance, second = (np.concatenate(each) for each in zip(*blocks, strict=True))
            parts.append((index + offset, distance, second))
        offset += len(part)
    index, distance, second = (np.stack(each) for each in zip(*parts, strict=True))
    best = np.argmin(distance, axis=0)[None]
    found = np.take_along_axis(index, best, axis=0)
    # Of the part, or the map, that found the same point, the other one that it found.
    others = np.where(index == found, second, distance)
    return Neighbours(found[0], distance.min(axis=0), others.min(axis=0))


def last_change(index: np.ndarray, times: np.ndarray) -> np.ndarray:
    """t_C_hat: when each backward trajectory changed its nearest training point for the last time.

    Args:
      index: nearest point along each trajectory (N, T), in the order in which it is run.
      times: Ornstein-Uhlenbeck times (T,), descending, the last of them that of the sample.

    Returns:
      (N,): the time halfway between the last two that differ; NaN where none do.
    """
    changed = np.diff(index, axis=1) != 0
    last = changed.shape[1] - 1 - np.argmax(changed[:, ::-1], axis=1)
    middle = (times[:-1] + times[1:]) / 2
    return np.where(changed.any(axis=1), middle[last], np.nan)
