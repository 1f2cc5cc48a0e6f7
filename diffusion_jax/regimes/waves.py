"""The covariance of images together with all their shifts on a torus, by Fourier transforms.

It is diagonal in the wave vectors k. With F_i(k), a vector over the channels, the unnormalised
two-dimensional transform of image i minus the mean image, and F_m(k) that of the mean image, the
block of k of n images is

    C(k) = [1/(n - 1) sum_i F_i(k) F_i(k)^* + F_m(k) F_m(k)^*]/(height width),    F_m(0) = 0,

and the eigenvalues of all blocks are those of C_G, see `symmetric_spectrum`.
"""

import numpy as np

from diffusion_jax.covariance import Rows


def wave_blocks(rows: Rows, shape: tuple[int, int, int], counts: np.ndarray) -> np.ndarray:
    """C(k) of the images, or where they are resampled.

    Args:
      rows: the images.
      shape: (height, width, channels) of an image.
      counts: how often each image counts (R, n), each row summing to n.

    Returns:
      complex128 (R, height width, channels, channels), Hermitian.
    """
    height, width, channels = shape
    waves, place = height * width, 0
    total = np.zeros((len(counts), waves, channels, channels), np.complex128)
    first = np.zeros((len(counts), waves * channels), np.complex128)
    for block in rows.blocks():
        found = np.fft.fft2(block.reshape(-1, *shape), axes=(1, 2)).reshape(-1, waves, channels)
        weight = counts[:, place : place + len(block)].astype(np.float64)
        place += len(block)
        first += weight @ found.reshape(len(found), -1)
        for a in range(channels):
            for b in range(channels):
                total[..., a, b] += weight @ (found[..., a] * found[..., b].conj())
    shift = first.reshape(-1, waves, channels) / rows.n
    mean = shift + np.fft.fft2(rows.mean.reshape(shape), axes=(0, 1)).reshape(waves, channels)
    mean[:, 0] = 0
    total -= rows.n * shift[..., :, None] * shift[..., None, :].conj()
    return (total / (rows.n - 1) + mean[..., :, None] * mean[..., None, :].conj()) / waves


def wave_modes(
    blocks: np.ndarray, shape: tuple[int, int, int], num_modes: int
) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues, decreasing (d,), and the first unit modes (num_modes, d), standing waves.

    Args:
      blocks: of every wave vector (height width, channels, channels).
      shape: (height, width, channels) of an image.
      num_modes: how many modes.
    """
    values, vectors = np.linalg.eigh(blocks)
    order = np.argsort(-values, axis=None, kind="stable")
    places = [divmod(int(place), shape[2]) for place in order[:num_modes]]
    modes = [_standing_wave(wave, vectors[wave, :, band], shape) for wave, band in places]
    return np.maximum(values.ravel()[order], 0), np.stack(modes)


def _standing_wave(wave: int, vector: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A unit mode (d,); of a wave vector and its opposite one has the cosine, one the sine."""
    height, width, _ = shape
    row, column = divmod(wave, width)
    opposite = (-row % height) * width + -column % width
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    largest = vector[np.argmax(np.abs(vector))]
    phase = vector * largest.conj() / abs(largest)  # so that its real part is not zero
    moving = np.exp(2j * np.pi * (row * rows + column * columns))[..., None] * phase
    mode = np.asarray(moving.real if wave <= opposite else moving.imag).ravel()
    return mode / np.linalg.norm(mode)
