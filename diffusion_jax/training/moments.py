"""The first two moments of a training set, kept with its run: where a sampler had best start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from diffusion_jax.data import arrays
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.spectrum import Rows, eigenmodes
from diffusion_jax.runtime.files import writing

NAME = "moments.npz"


@dataclass(frozen=True)
class Moments:
    """Of a training set, all channels together, on the scale of [0, 1].

    Attributes:
      mean_image: the mean of all images (height, width, channels), float32.
      mode: unit eigenvector of the covariance's largest eigenvalue, as an image; its sign is
        arbitrary.
      eigenvalue: the largest eigenvalue Lambda, in squared pixel units.
      trace: of the covariance, the sum of all its eigenvalues.
      fingerprint: of the training set; see `data.fingerprint`.
    """

    mean_image: np.ndarray
    mode: np.ndarray
    eigenvalue: float
    trace: float
    fingerprint: str

    @classmethod
    def of(cls, images: ImageSet, fingerprint: str) -> Self:
        """Computes them, a block of images at a time.

        C = 1/(n - 1) sum_i (a_i - mean)(a_i - mean)^T,  trace C = 1/(n - 1) sum_i |a_i - mean|^2

        Args:
          images: two or more.
          fingerprint: theirs.
        """
        rows, shape = Rows(images.images, all_channels=True), images.images.shape[1:]
        (eigenvalue,), (mode,) = eigenmodes(rows, 1)
        squares = sum(float(np.sum(block**2, dtype=np.float64)) for block in rows.blocks())
        return cls(
            mean_image=rows.mean.reshape(shape),
            mode=mode.reshape(shape).astype(np.float32),
            eigenvalue=float(eigenvalue),
            trace=squares / (rows.n - 1),
            fingerprint=fingerprint,
        )

    def save(self, run_dir: Path) -> None:
        """Writes them into a run's folder.

        Raises:
          UserError: they cannot be written.
        """
        with writing(run_dir / NAME) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))


def load(run_dir: Path) -> Moments | None:
    """Those kept in a run's folder; None where there are none, or they are damaged."""
    path = run_dir / NAME
    try:
        with arrays.reading(path), np.load(path, allow_pickle=False) as kept:
            found = Moments(
                mean_image=kept["mean_image"],
                mode=kept["mode"],
                eigenvalue=float(kept["eigenvalue"]),
                trace=float(kept["trace"]),
                fingerprint=str(kept["fingerprint"]),
            )
    except (UserError, KeyError, TypeError, AttributeError, MemoryError):
        return None
    return found if found.mean_image.shape == found.mode.shape else None
