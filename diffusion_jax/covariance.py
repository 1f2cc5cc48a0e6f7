"""The data's covariance by way of the data themselves, a block at a time.

With A the flattened images minus their mean (n, d), the covariance A'A (d x d) and the Gram matrix
A A' (n x n) have the same eigenvalues except for zeros. The smaller one is formed; with n < d the
modes are A'u of the Gram matrix's eigenvectors u.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.linalg import eigh

from diffusion_jax.errors import UserError

_BLOCK_BYTES = 2**26
_KEPT_BYTES = 2**30
_LARGEST_GRAM = 20_000


class Rows:
    """The flattened images minus their mean image, A, in blocks of floats.

    Data whose float copy takes less than 1 GiB are converted once, larger ones at each pass.

    Attributes:
      n: number of images.
      d: pixels of an image, over the channels taken.
      mean: the mean image, flattened (d,), on the scale of [0, 1].
    """

    def __init__(
        self, images: np.ndarray, all_channels: bool = False, dtype: type = np.float32
    ) -> None:
        """Takes images (n, height, width, channels) or (n, d); uint8 is scaled to [0, 1].

        Args:
          images: the data.
          all_channels: all channels flattened together; by default the first alone.
          dtype: type of the blocks.

        Raises:
          UserError: fewer than two images.
        """
        if len(images) < 2:
            raise UserError(f"a covariance needs at least two images, not {len(images)}")
        self._images = images if all_channels or images.ndim < 4 else images[..., :1]
        self._scale = dtype(1 / 255 if images.dtype == np.uint8 else 1)
        self._itemsize = np.dtype(dtype).itemsize
        self.n, self.d = len(images), math.prod(self._images.shape[1:])
        total = sum(part.sum(axis=0, dtype=np.float64) for part in self._stretches())
        self.mean: np.ndarray = np.asarray(total / self.n * self._scale, dtype)
        small = self._itemsize * self.n * self.d < _KEPT_BYTES
        self._kept = list(self._blocks()) if small else None

    def _stretches(self) -> Iterator[np.ndarray]:
        size = max(1, _BLOCK_BYTES // (self._itemsize * self.d))
        for start in range(0, self.n, size):
            # Reshaped here: of some channels it is a copy, which of the whole data may not fit.
            yield self._images[start : start + size].reshape(-1, self.d)

    def _blocks(self) -> Iterator[np.ndarray]:
        for part in self._stretches():
            block = part * self._scale
            block -= self.mean
            yield block

    def blocks(self) -> Iterator[np.ndarray]:
        """The blocks in order, each (rows, d)."""
        return iter(self._kept) if self._kept is not None else self._blocks()

    def columns(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Some pixels of all images at a time: which, and (n, pixels)."""
        size = max(1, _BLOCK_BYTES // (self._itemsize * self.n))
        flat = self._images.reshape(self.n, self.d)
        for start in range(0, self.d, size):
            part = slice(start, start + size)
            yield part, flat[:, part] * self._scale - self.mean[part]

    def covariance_product(self, v: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """C v with C = 1/(n - 1) sum_i (a_i - mean)(a_i - mean)^T.

        Args:
          v: vectors (d, k).
          weights: how often image i counts for vector k (n, k), each column summing to n; the mean
            is then the weighted one. Once each by default.

        Returns:
          float32 (d, k).
        """
        v = v.astype(np.float32)
        out = np.zeros(v.shape, np.float32)
        weighted_mean = np.zeros(v.shape, np.float32)
        place = 0
        for block in self.blocks():
            projected = block @ v
            if weights is not None:
                weight = weights[place : place + len(block)]
                projected *= weight
                weighted_mean += block.T @ weight
                place += len(block)
            out += block.T @ projected
        out -= weighted_mean * (np.sum(weighted_mean * v, axis=0) / self.n)
        return out / (self.n - 1)


def gram(rows: Rows) -> np.ndarray:
    """The smaller of A'A (d x d) and A A' (n x n), float64; products of blocks in the rows' type.

    Raises:
      UserError: both n and d are over 20 000.
    """
    size = min(rows.n, rows.d)
    if size > _LARGEST_GRAM:
        raise UserError(
            f"the full spectrum of {rows.n} images of {rows.d} pixels needs a matrix of that size; "
            f"take at most {_LARGEST_GRAM} images"
        )
    total = np.zeros((size, size))
    if rows.d <= rows.n:
        for block in rows.blocks():
            total += block.T @ block
    else:
        for _, part in rows.columns():
            total += part @ part.T
    return total


def principal_modes(rows: Rows, rank: int | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """The modes of the largest eigenvalues of C = A'A/n, divided by n.

    Eigenvalues below max(n, d) 2e-16 times the largest are zero to rounding and left out.

    Args:
      rows: the data, in float64.
      rank: the most modes to return; all that are not zero by default.

    Returns:
      Eigenvalues, decreasing (k,), unit modes (k, d), and the variance that they leave out,
      tr C - sum of the eigenvalues.

    Raises:
      UserError: see `gram`.
    """
    matrix = gram(rows) / rows.n
    size, trace = len(matrix), float(np.trace(matrix))
    count = size if rank is None else min(rank, size)
    if count == 0:
        return np.zeros(0), np.zeros((0, rows.d)), trace
    values, vectors = eigh(matrix, overwrite_a=True, subset_by_index=(size - count, size - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    rounding = np.finfo(np.float64).eps
    of_mean = rows.d * (rounding * float(np.abs(rows.mean).max())) ** 2
    kept = values > max(max(rows.n, rows.d) * rounding * values[0], of_mean)
    values, vectors = values[kept], vectors[:, kept].T
    if rows.d > rows.n:
        scaled = vectors / np.sqrt(rows.n * values)[:, None]
        vectors = np.empty((len(values), rows.d))
        for columns, part in rows.columns():
            vectors[:, columns] = scaled @ part
    return values, vectors, max(trace - float(values.sum()), 0.0)
