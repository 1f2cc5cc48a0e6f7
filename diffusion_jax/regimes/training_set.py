"""The points whose posterior is asked for: the training set, or its orbit under symmetries."""

from itertools import pairwise

import numpy as np
from flax import struct
from jax import Array

from diffusion_jax.denoisers.labels import class_counts
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.orbit import Orbit, common_mean, orbit_of
from diffusion_jax.runtime import pytrees
from diffusion_jax.runtime.devices import replicate
from diffusion_jax.symmetry import Group


@pytrees.dataclass
class TrainingSet:
    """Training points on the devices, in the order of their classes.

    Attributes:
      points: float32 (n, d), minus their mean.
      squared_norms: |a_nu|^2 (n,).
      order: place in the caller's array of each point (n,).
      offsets: where each class begins, and n at the end.
      orbit: the maps of the points that are training points too; None without a symmetry.
    """

    points: Array
    squared_norms: Array
    order: Array
    offsets: tuple[int, ...] = struct.field(pytree_node=False)
    orbit: Orbit | None = None

    @property
    def maps(self) -> int:
        """How many columns of the posterior a point has: |G|, or 1."""
        return 1 if self.orbit is None else self.orbit.group.order

    @property
    def num_points(self) -> float:
        """n; with a symmetry e to the entropy of the prior over distinct points, see `orbit`."""
        return len(self.order) if self.orbit is None else self.orbit.num_points

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many distinct training points each class has."""
        if self.orbit is not None:
            return self.orbit.sizes
        return tuple(stop - start for start, stop in pairwise(self.offsets))

    @property
    def class_weights(self) -> np.ndarray:
        """Share pi_c of each class (C,)."""
        return np.diff(self.offsets) / len(self.order)


def training_set(
    points: np.ndarray, labels: np.ndarray | None = None, group: Group | None = None
) -> TrainingSet:
    """Puts the training points on every device, sorted by class.

    Args:
      points: (n, ...), flattened; uint8 is scaled to [0, 1], floats are taken as they are.
      labels: classes 0..C-1 (n,); all one class where there are none.
      group: symmetries, whose maps of the points are training points of the same class; the points
        are then (n, height, width, channels). Maps that do more than move pixels ask for the
        points as the process starts from them, minus their mean.

    Raises:
      UserError: fewer than two points, values that are not finite, a label missing from 0..C-1, a
        group of other images.
    """
    n = len(points)
    if n < 2:
        raise UserError(f"the posterior needs at least two training points, not {n}")
    labels = np.zeros(n, np.int64) if labels is None else np.asarray(labels)
    counts = class_counts(labels, n)
    order = np.argsort(labels, kind="stable")
    rows = points.reshape(n, -1)[order]
    rows = rows / np.float32(255) if rows.dtype == np.uint8 else rows.astype(np.float32)
    if not (finite := np.isfinite(rows).all(axis=1)).all():
        raise UserError(
            f"training point {order[np.argmin(finite)]} holds values that are not finite"
        )
    offsets = (0, *(int(c) for c in np.cumsum(counts)))
    mean, orbit = rows.mean(0, dtype=np.float64), None
    if group is not None:
        orbit = orbit_of(rows, group, points.shape[1:], offsets)
        mean = common_mean(mean, group, orbit.shape)
    rows -= mean.astype(np.float32)  # only differences matter
    squared_norms = np.einsum("nd,nd->n", rows, rows)
    places = order.astype(np.int32)
    return TrainingSet(replicate(rows), replicate(squared_norms), replicate(places), offsets, orbit)
