"""The first two moments of a data set together with all its images under a group.

With an image a of the data, of mean m and covariance C, and a map g of the group, all equally
likely and independent of a, g a has the moments

    m_G = mean_g g m,   C_G = mean_g (g C g^T + (g m - m_G)(g m - m_G)^T).

The images are not formed: maps act on vectors instead. Of all translations of a torus C_G is
circulant, and its modes are waves.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.fft import rfft2

from diffusion_jax.regimes.spectrum import Rows, eigenmodes
from diffusion_jax.symmetry import Group


class OrbitMoments(NamedTuple):
    """Of a data set with its images under a group, flattened, on the scale of [0, 1].

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
        orbit = _Orbit(rows, shape, group)
        squares = sum(float(np.sum(block**2, dtype=np.float64)) for block in rows.blocks())
        # |g m| = |m|, and m_G is the projection of m onto the images that the group leaves alone.
        moved = float(np.sum((rows.mean - orbit.mean) ** 2, dtype=np.float64))
        if group == Group.translations(*shape[:2]):
            eigenvalue, mode = _largest_wave(rows, shape)
        else:
            (eigenvalue,), (mode,) = eigenmodes(orbit, 1)
        trace = squares / (rows.n - 1) + moved
        return cls(orbit.mean, mode.astype(np.float32), float(eigenvalue), trace)


@dataclass(frozen=True)
class _Orbit:
    """The covariance C_G by its products, see `spectrum.Covariance`."""

    rows: Rows
    shape: tuple[int, int, int]
    group: Group

    @property
    def d(self) -> int:
        return self.rows.d

    @cached_property
    def mean(self) -> np.ndarray:
        return np.asarray(self._moved(self.rows.mean).mean(axis=0))

    def covariance_product(self, v: np.ndarray) -> np.ndarray:
        """C_G v of vectors (d, k)."""
        return np.stack([self._product(each) for each in v.T], axis=1)

    def _product(self, v: np.ndarray) -> np.ndarray:
        # C_G v = mean_g g (C + e e^T) g^-1 v with e = m - m_G, for all g in one pass.
        moved, apart = self._moved(v.astype(np.float32)), self.rows.mean - self.mean
        products = self.rows.covariance_product(moved.T).T + (moved @ apart)[:, None] * apart
        return np.asarray(_mean_image(self.group, products.reshape(-1, *self.shape))).ravel()

    def _moved(self, v: np.ndarray) -> np.ndarray:
        """g^-1 v for all g (|G|, d)."""
        return np.asarray(_all_inverses(self.group, v.reshape(self.shape))).reshape(-1, self.d)


@partial(jax.jit, static_argnums=0)
def _all_inverses(group: Group, image: Array) -> Array:
    return jax.lax.map(lambda index: group.inverse(index, image), jnp.arange(group.order))


@partial(jax.jit, static_argnums=0)
def _mean_image(group: Group, images: Array) -> Array:
    """Mean_g g v_g of an image for each g."""
    return jnp.mean(group.of_each(jnp.arange(group.order), images), axis=0)


def _largest_wave(rows: Rows, shape: tuple[int, int, int]) -> tuple[float, np.ndarray]:
    """The largest eigenvalue of C_G of all translations, and a mode.

    Between waves of different k it vanishes; of the channels' waves at k it leaves the matrix
    S(k) = E f(k) f(k)^dagger/(height width), f the Fourier transform of g a - m_G, which moves it
    by a phase.
    """
    height, width, channels = shape
    pixels, total = height * width, np.zeros((height, width // 2 + 1, channels, channels), complex)
    mean = rows.mean.reshape(shape)
    apart = rfft2(mean - mean.mean(axis=(0, 1)), axes=(0, 1))
    for block in rows.blocks():
        waves = rfft2(block.reshape(-1, *shape), axes=(1, 2))
        total += np.einsum("nhwc,nhwd->hwcd", waves, waves.conj()) / (rows.n - 1)
    total = (total + apart[..., :, None] * apart[..., None, :].conj()) / pixels
    values, vectors = np.linalg.eigh(total)
    y, x = np.unravel_index(np.argmax(values[..., -1]), values.shape[:2])
    phases = np.arange(height)[:, None] * y / height + np.arange(width) * x / width
    weights = vectors[y, x, :, -1]
    weights = weights * weights[np.argmax(np.abs(weights))].conj()  # the real part is not 0
    mode = (np.exp(2j * np.pi * phases)[..., None] * weights).real.ravel()
    return float(values[y, x, -1]), mode / np.linalg.norm(mode)
