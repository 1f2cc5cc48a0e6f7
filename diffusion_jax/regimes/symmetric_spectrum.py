"""The first two moments of a data set together with all its images under a group.

With an image a of the data, of mean m and covariance C, and a map g of the group, all equally
likely and independent of a, g a has the moments

    m_G = mean_g g m,   C_G = mean_g (g C g^T + (g m - m_G)(g m - m_G)^T).

Of n images C is the unbiased one, 1/(n - 1) sum_i, and m their mean, whose own scatter makes C_G
too large by up to C/n. The images are not formed: maps act on vectors instead. Of all translations
of a torus C_G is circulant, and its modes are waves.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.linalg import eigh, eigvalsh

from diffusion_jax.covariance import Rows
from diffusion_jax.regimes.spectrum import bootstrap_largest_eigenvalue, eigenmodes, resampled
from diffusion_jax.regimes.waves import wave_blocks, wave_modes
from diffusion_jax.symmetry import Group

MOST_EIGENVALUES = 2500
_BLOCK_BYTES = 2**26


class OrbitMoments(NamedTuple):
    """Moments of a data set with its images under a group, flattened, on the scale of [0, 1].

    Attributes:
      mean: m_G (d,), float32.
      mode: a unit eigenvector of the largest eigenvalue of C_G (d,); where the symmetry gives
        several, one of them.
      eigenvalue: that eigenvalue.
      trace: of C_G.
    """

    mean: np.ndarray
    mode: np.ndarray
    eigenvalue: float
    trace: float

    @classmethod
    def of(cls, rows: Rows, shape: tuple[int, int, int], group: Group) -> Self:
        """Computes them; C of n images is the unbiased one, 1/(n - 1) sum_i.

        It takes some passes over the data, with |G| vectors at a time; for all translations of
        such images one pass, by Fourier transforms.

        Args:
          rows: the data.
          shape: (height, width, channels) of their images, as the rows flatten them.
          group: maps of such images, which permute pixels.
        """
        orbit = OrbitCovariance(rows, shape, group, shape[2])
        squares = sum(float(np.sum(block**2, dtype=np.float64)) for block in rows.blocks())
        # |g m| = |m|, and m_G is the projection of m onto the images that the group leaves alone.
        moved = float(np.sum((rows.mean - orbit.mean) ** 2, dtype=np.float64))
        if group == Group.translations(*shape[:2]):
            blocks = wave_blocks(rows, shape, np.ones((1, rows.n)))
            (eigenvalue, *_), (mode,) = wave_modes(blocks[0], shape, 1)
        else:
            (eigenvalue,), (mode,) = eigenmodes(orbit, 1)
        trace = squares / (rows.n - 1) + moved
        return cls(orbit.mean, mode.astype(np.float32), float(eigenvalue), trace)


@dataclass(frozen=True)
class OrbitCovariance:
    """The covariance C_G by its products, see `spectrum.Covariance`.

    Attributes:
      rows: the data, all channels.
      shape: (height, width, channels) of their images, as the rows flatten them.
      group: maps of such images.
      channels: how many of the channels are taken, the first ones: that part of C_G.
    """

    rows: Rows
    shape: tuple[int, int, int]
    group: Group
    channels: int

    @property
    def n(self) -> int:
        """Number of images, without their maps."""
        return self.rows.n

    @property
    def d(self) -> int:
        """Size of the part taken."""
        return self.rows.d // self.shape[2] * self.channels

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean m_G, of all channels (rows.d,)."""
        return np.asarray(self._moved(self.rows.mean[:, None]).mean(axis=0))[:, 0]

    def covariance_product(self, v: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """C_G v of vectors (d, k), float32; an image's weight is that of all of its maps."""
        step = max(1, _BLOCK_BYTES // (4 * self.rows.d * self.group.order))
        parts = []
        for start in range(0, v.shape[1], step):
            part = slice(start, start + step)
            parts.append(
                self._product(v[:, part], weights if weights is None else weights[:, part])
            )
        return np.concatenate(parts, axis=1)

    def _product(self, v: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        # C_G v = mean_g g (C + e e^T) g^-1 v with e = m - m_G, for all g in one pass.
        order, d, k = self.group.order, self.rows.d, v.shape[1]
        taken = np.zeros((*self.shape, k), np.float32)
        taken[:, :, : self.channels] = v.reshape(*self.shape[:2], self.channels, k)
        moved = self._moved(taken.reshape(d, k))
        apart = (self.rows.mean - self.mean)[:, None]
        if weights is not None:
            shift = self._mean_of(weights)
            apart = apart + shift - self._moved(shift).mean(axis=0)
            weights = np.tile(weights, (1, order))
        vectors = np.moveaxis(moved, 0, 1).reshape(d, order * k)
        products = np.moveaxis(
            self.rows.covariance_product(vectors, weights).reshape(d, order, k), 1, 0
        )
        products = products + np.sum(moved * apart, axis=1, keepdims=True) * apart
        images = np.moveaxis(products, 2, 1).reshape(order, k, *self.shape)
        mean = np.asarray(_mean_image(self.group, images))[..., : self.channels]
        return mean.reshape(k, -1).T

    def _mean_of(self, weights: np.ndarray) -> np.ndarray:
        """How far the mean image moves where images count so often (rows.d, k)."""
        total, place = np.zeros((self.rows.d, weights.shape[1]), np.float32), 0
        for block in self.rows.blocks():
            total += block.T @ weights[place : place + len(block)]
            place += len(block)
        return total / np.float32(self.rows.n)

    def _moved(self, v: np.ndarray) -> np.ndarray:
        """g^-1 v for all g (|G|, rows.d, k)."""
        images = v.T.astype(np.float32).reshape(-1, *self.shape)
        moved = np.asarray(_all_inverses(self.group, images))
        return np.moveaxis(moved.reshape(len(moved), v.shape[1], -1), 1, 2)

    def eigenvalues(self) -> np.ndarray | None:
        """All that can differ from zero of all channels, decreasing; None if there are over 2 500.

        In float64: those of C_G, or of the products of the vectors g (a_i - m) and g e, whose
        squares make it up, where these are fewer.
        """
        n, d, order = self.rows.n, self.rows.d, self.group.order
        if min(d, (n + 1) * order) > MOST_EIGENVALUES:
            return None
        vectors = [np.sqrt(1 / (n - 1)) * block for block in self.rows.blocks()]
        vectors.append((self.rows.mean - self.mean)[None])
        if d <= (n + 1) * order:
            square = sum((part.T @ part).astype(np.float64) for part in vectors)
            # g acts on the columns of M and then on the rows: g M g^T.
            total = np.zeros((d, d))
            for number in range(order):
                half = self._map(number, np.asarray(square)).T
                total += self._map(number, half)
            matrix = total / order
        else:
            joined = np.concatenate(vectors)
            rows = np.concatenate([self._map(number, joined) for number in range(order)])
            matrix = (rows @ rows.T).astype(np.float64) / order
        return np.maximum(eigvalsh(matrix, overwrite_a=True)[::-1], 0)

    def _map(self, number: int, rows: np.ndarray) -> np.ndarray:
        """G x of the rows x (any, rows.d), float32."""
        images = rows.astype(np.float32).reshape(-1, *self.shape)
        return np.asarray(_map_of(self.group, jnp.int32(number), images)).reshape(rows.shape)


class OrbitSpectrum(NamedTuple):
    """The largest eigenvalues of C_G.

    Attributes:
      eigenvalues: decreasing, as many as there are modes or more; of images of over 2 500 values,
        of several that are equal some may be left out.
      modes: unit modes (k, d).
      replicates: the largest eigenvalue where the images are resampled, each with all of its maps.
    """

    eigenvalues: np.ndarray
    modes: np.ndarray
    replicates: np.ndarray


def orbit_spectrum(
    images: np.ndarray, group: Group, all_channels: bool, num_modes: int, num_replicates: int = 200
) -> OrbitSpectrum:
    """The first modes of all channels or of the first alone, and the bootstrap of Lambda.

    Args:
      images: (n, height, width, channels).
      group: maps of such images.
      all_channels: see `spectrum.Rows`.
      num_modes: how many, less than d.
      num_replicates: number of resampled data sets.
    """
    height, width, channels = images.shape[1:]
    taken = channels if all_channels else 1
    if group == Group.translations(height, width):
        rows, shape = Rows(images, all_channels), (height, width, taken)
        rng = np.random.default_rng(0)
        counts = np.concatenate([np.ones((1, rows.n)), resampled(rows.n, num_replicates, rng)])
        blocks = wave_blocks(rows, shape, counts)
        values, modes = wave_modes(blocks[0], shape, num_modes)
        largest = np.linalg.eigvalsh(blocks[1:])[..., -1].max(axis=1)
        return OrbitSpectrum(values, modes, largest)
    orbit = OrbitCovariance(Rows(images, True), (height, width, channels), group, taken)
    count = min(num_modes, max(1, orbit.d - 1))
    if orbit.d <= MOST_EIGENVALUES:
        # Where maps do not commute eigenvalues are equal, and Lanczos may miss all but one of them.
        matrix = orbit.covariance_product(np.eye(orbit.d, dtype=np.float32)).astype(np.float64)
        values, columns = eigh((matrix + matrix.T) / 2)
        values, modes = np.maximum(values[::-1][:count], 0), columns.T[::-1][:count]
    else:
        values, modes = eigenmodes(orbit, count)
    if values[0] <= 0:
        return OrbitSpectrum(values, modes, np.zeros(num_replicates))
    replicates = bootstrap_largest_eigenvalue(orbit, modes[0], num_replicates)
    return OrbitSpectrum(values, modes, replicates)


def orbit_eigenvalues(images: np.ndarray, group: Group, num_modes: int) -> np.ndarray:
    """All eigenvalues of C_G of all channels, or the first few where they are over 2 500.

    Args:
      images: (n, height, width, channels).
      group: maps of such images.
      num_modes: how many the first few are.
    """
    height, width, channels = images.shape[1:]
    shape, rows = (height, width, channels), Rows(images, True)
    if group == Group.translations(height, width):
        return wave_modes(wave_blocks(rows, shape, np.ones((1, rows.n)))[0], shape, 1)[0]
    orbit = OrbitCovariance(rows, shape, group, channels)
    every = orbit.eigenvalues()
    return eigenmodes(orbit, num_modes)[0] if every is None else every


@partial(jax.jit, static_argnums=0)
def _all_inverses(group: Group, images: Array) -> Array:
    return jax.lax.map(lambda index: group.inverse(index, images), jnp.arange(group.order))


@partial(jax.jit, static_argnums=0)
def _map_of(group: Group, number: Array, images: Array) -> Array:
    return group(number, images)


@partial(jax.jit, static_argnums=0)
def _mean_image(group: Group, images: Array) -> Array:
    """Mean_g g v_g of images v_g (k, ...) for each g."""

    def add(total: Array, each: tuple[Array, Array]) -> tuple[Array, None]:
        return total + group(*each), None

    numbers = jnp.arange(group.order)
    total, _ = jax.lax.scan(add, jnp.zeros_like(images[0]), (numbers, images))
    return total / group.order
