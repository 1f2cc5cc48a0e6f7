"""Where in images patches lie that may stand for each other, and which of these patches are equal.

A place is the number of a pixel, row * width + column. Patches may stand for each other where they
are cut alike at the image's border; on a torus all do.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

Boundary = Literal["zero", "circular"]


@dataclass(frozen=True)
class Window:
    """The patch around each place of an image.

    Attributes:
      shape: (height, width) of the images.
      patch: its side, odd; None for every pixel once, from the place on.
      boundary: "circular" where it wraps, "zero" where it is cut.
    """

    shape: tuple[int, int]
    patch: int | None
    boundary: Boundary

    @property
    def half(self) -> int:
        """How many pixels it reaches from its place in each direction, at most."""
        return max(self.shape) if self.patch is None else self.patch // 2

    def offsets(self) -> np.ndarray:
        """How far its pixels lie below and to the right of its place (pixels, 2)."""
        if self.patch is None:
            return np.array(list(product(*map(range, self.shape))))
        return np.array(list(product(range(-self.half, self.half + 1), repeat=2)))

    def pixels(self, places: Array) -> tuple[Array, Array]:
        """Places of its pixels (..., pixels), and which of them lie in the image."""
        height, width = self.shape
        down, along = jnp.asarray(self.offsets().T, places.dtype)
        row = places[..., None] // width + jnp.expand_dims(down, range(places.ndim))
        column = places[..., None] % width + jnp.expand_dims(along, range(places.ndim))
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return row % height * width + column % width, inside | (self.boundary == "circular")

    def groups(self) -> list[np.ndarray]:
        """Places that are cut alike, wherever there are two or more.

        Cut alike means equal min(distance to each border, half). Such are the lines of pixels that
        lie `half` or more from both ends, and no two others, so that groups are products of lines
        of rows and of columns. Of every pixel once, the first place's patch stands for all.

        Returns:
          Arrays (groups, places) of the groups of each size; places that are alone are in none.
        """
        if self.patch is None:
            return [np.zeros((1, 1), int)] if self.boundary == "circular" else []
        if self.boundary == "circular":
            return [np.arange(self.shape[0] * self.shape[1])[None]]
        found = []
        for rows, columns in product(*(_lines(size, self.half) for size in self.shape)):
            places = rows[:, None, :, None] * self.shape[1] + columns[None, :, None, :]
            if rows.shape[1] * columns.shape[1] > 1:
                found.append(places.reshape(len(rows) * len(columns), -1))
        return found

    def distinct(self, points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Training patches for each array of groups, equal ones once.

        Args:
          points: training images (n, height, width, channels).

        Returns:
          Patches as image * height * width + place (groups, N), and how many there are of each
          (groups, N); groups that have fewer are filled up with 0 of the first.
        """
        if self.patch is None:
            every = np.arange(points[..., 0].size, dtype=np.int32)[None]
            return [(every, np.ones(every.shape, np.int32))] * len(self.groups())
        return [
            self._joined([_counted(names[:, group], group) for group in places])
            for names in [self._names(points)]
            for places in self.groups()
        ]

    def _joined(self, groups: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Groups of patches (image, place, count) as arrays of one size."""
        shape = len(groups), max(len(image) for image, *_ in groups)
        first, counts = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for i, (image, place, count) in enumerate(groups):
            first[i, : len(image)] = image * self.shape[0] * self.shape[1] + place
            counts[i, : len(image)] = count
        return first, counts

    def _names(self, points: np.ndarray) -> np.ndarray:
        """Numbers (n, places) that are equal where patches are, and cut alike.

        The pixels' numbers become those of pairs, then of fours, and so on, down and then along.
        """
        names = np.zeros(points.shape[:3], np.int64)
        for channel in range(points.shape[3]):
            names = _numbered(names, _numbered(points[..., channel]))
        around = ((0, 0), (self.half, self.half), (self.half, self.half))
        if self.boundary == "circular":
            names = np.pad(names, around, "wrap")
        else:
            names = np.pad(names + 1, around)  # 0: outside
        for axis in (1, 2):
            length, whole = 1, 2 * self.half + 1
            while length < whole:
                step = min(length, whole - length)
                size = names.shape[axis] - step
                one, other = (names.take(range(i, i + size), axis) for i in (0, step))
                names, length = _numbered(one, other), length + step
        return names.reshape(len(points), -1)


def _lines(size: int, half: int) -> list[np.ndarray]:
    """The numbers 0..size-1 as one group of those that lie inside, and one for each other."""
    inner = np.arange(half, size - half)
    outer = np.setdiff1d(np.arange(size), inner)
    return [each for each in (inner[None], outer[:, None]) if each.size]


def _counted(names: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, ...]:
    """Image and place of one patch of each name (n, places), and how many have it."""
    _, index, count = np.unique(names, return_index=True, return_counts=True)
    image, at = np.divmod(index, len(places))
    return image, places[at], count


def _numbered(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    """Numbers from 0 that are equal where the values are, or the pairs of numbers."""
    values = first if second is None else first * (second.max() + 1) + second
    return np.unique(values, return_inverse=True)[1].reshape(values.shape)
