"""The first two moments of a training set, kept with its run: a sampler starts best from them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.covariance import Rows
from diffusion_jax.data import arrays
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.spectrum import eigenmodes
from diffusion_jax.regimes.symmetric_spectrum import OrbitMoments
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import writing
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.sampling import GaussianStart, matched_start
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.symmetry import Group

NAME = "moments.npz"


@dataclass(frozen=True)
class Moments:
    """Moments of a training set, all channels together, on the scale of [0, 1].

    Attributes:
      mean_image: the mean of all images (height, width, channels), float32.
      mode: unit eigenvector of the covariance's largest eigenvalue, as an image; its sign is
        arbitrary.
      eigenvalue: the largest eigenvalue Lambda, in squared pixel units.
      trace: of the covariance, the sum of all its eigenvalues.
      fingerprint: of the training set; see `data.fingerprint`.
      symmetry: the name of the group with whose maps of the images they are taken; "" for none.
    """

    mean_image: np.ndarray
    mode: np.ndarray
    eigenvalue: float
    trace: float
    fingerprint: str
    symmetry: str = ""

    @classmethod
    def of(cls, images: ImageSet, fingerprint: str, group: Group | None = None) -> Self:
        """Computes them, a block of images at a time.

        C = 1/(n - 1) sum_i (a_i - mean)(a_i - mean)^T,  trace C = 1/(n - 1) sum_i |a_i - mean|^2

        Args:
          images: two or more.
          fingerprint: theirs.
          group: with it, those of the images together with all that its maps make of them; see
            `regimes.symmetric_spectrum`.
        """
        rows, shape = Rows(images.images, all_channels=True), images.images.shape[1:]
        if group is not None:
            orbit = OrbitMoments.of(rows, shape, group)
            mean, mode = (each.reshape(shape) for each in (orbit.mean, orbit.mode))
            return cls(mean, mode, orbit.eigenvalue, orbit.trace, fingerprint, group.name)
        (eigenvalue,), (mode,) = eigenmodes(rows, 1)
        squares = sum(float(np.sum(block**2, dtype=np.float64)) for block in rows.blocks())
        return cls(
            mean_image=rows.mean.reshape(shape),
            mode=mode.reshape(shape).astype(np.float32),
            eigenvalue=float(eigenvalue),
            trace=squares / (rows.n - 1),
            fingerprint=fingerprint,
        )

    def are_of(self, fingerprint: str, symmetry: str | None) -> bool:
        """Whether they are those of a training set and a symmetry's name, if any."""
        return (self.fingerprint, self.symmetry) == (fingerprint, symmetry or "")

    def start(self, schedule: NoiseSchedule) -> GaussianStart:
        """The start with these moments, see `sampling.matched_start`."""
        centred = self.mean_image - self.mean_image.mean(axis=(0, 1))
        return matched_start(schedule, centred, self.mode, self.eigenvalue, self.trace)

    def save(self, run_dir: Path) -> None:
        """Writes them into a run's folder.

        Raises:
          UserError: they cannot be written.
        """
        with writing(run_dir / NAME) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))


def load(run_dir: Path) -> Moments | None:
    """The moments kept in a run's folder; None where there are none, or they are damaged.

    Raises:
      UserError: the system does not let them be read.
    """
    try:
        found = patiently(run_dir / NAME, lambda: _read(run_dir / NAME))
        values = (found.mean_image, found.mode, found.eigenvalue, found.trace)
        whole = all(np.isfinite(value).all() for value in values)
        whole = whole and found.mean_image.ndim == 3
        whole = whole and found.mean_image.shape == found.mode.shape
    except (UserError, KeyError, TypeError, AttributeError, MemoryError) as error:
        if refusal(error) is not None:  # without them samples would start elsewhere
            raise
        return None
    return found if whole else None


def _read(path: Path) -> Moments:
    with arrays.reading(path), np.load(path, allow_pickle=False) as kept:
        return Moments(
            mean_image=kept["mean_image"],
            mode=kept["mode"],
            eigenvalue=float(kept["eigenvalue"]),
            trace=float(kept["trace"]),
            fingerprint=str(kept["fingerprint"]),
            symmetry=str(kept["symmetry"]) if "symmetry" in kept else "",  # earlier versions
        )


def start_of(
    run_dir: Path, fingerprint: str | None = None, symmetry: str | None = None
) -> Callable[[NoiseSchedule], GaussianStart] | None:
    """Makes the start that has the moments of a run's training set; None where none are kept.

    Of several processes the first reads them, and all have what it read.

    Args:
      run_dir: the run's folder.
      fingerprint: of the run's training set, if it is known: moments of others are left alone.
      symmetry: the name of the run's own, if any: moments with another are left alone too.
    """
    mine = load(run_dir) if is_first_process() else None
    if mine is not None and not mine.are_of(fingerprint or mine.fingerprint, symmetry):
        mine = None
    shape = json.loads(from_first(lambda: json.dumps(mine and mine.mode.shape)))
    if shape is None:
        return None
    if mine is None:
        mine = Moments(np.zeros(shape, np.float32), np.zeros(shape, np.float32), 0.0, 0.0, "")
    values = (mine.mean_image, mine.mode, np.float32(mine.eigenvalue), np.float32(mine.trace))
    if jax.process_count() > 1:
        values = multihost_utils.broadcast_one_to_all(values)
    mean_image, mode, eigenvalue, trace = map(np.asarray, values)
    return Moments(mean_image, mode, float(eigenvalue), float(trace), mine.fingerprint).start
