"""Two networks compared, such as two that were trained on disjoint halves of a data set.

Where they agree, neither repeats its own images: what both predict comes from what the halves have
in common, and from how such networks are biased (Kadkhodaie et al. 2310.02557).
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax import forking
from diffusion_jax.comparing import sources
from diffusion_jax.comparing.sources import Source
from diffusion_jax.comparing.table import Asked
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import Denoiser, ShiftedDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.training import run


@dataclasses.dataclass(frozen=True)
class Other:
    """Another run, and its network as a denoiser of the first run's images.

    Attributes:
      folder: of the run.
      model: the run.
      images: its training images.
      mean: the first run's mean, which the noisy images lack (channels,).
    """

    folder: Path
    model: run.TrainedModel
    images: ImageSet
    mean: np.ndarray

    @property
    def name(self) -> str:
        """Part of the names of files: another network has another key."""
        return f"other_{forking.digest(self.model.denoiser.params)[:8]}"

    def make(self) -> Denoiser:
        """Its network, of images minus the first run's mean."""
        shift = jnp.asarray(self.mean - self.model.mean, jnp.float32)
        return ShiftedDenoiser(self.model.denoiser, self.model.sampler.schedule, shift)

    def points(self) -> np.ndarray:
        """Its training images, minus the first run's mean (n, ...)."""
        return np.asarray(dataclasses.replace(self.images, kept_mean=self.mean).centred())

    def source(self, count: int, key: Array, schedule: NoiseSchedule) -> Source:
        """Its own training images, noised."""
        count = min(count, len(self.images.images))
        return sources.noised(sources.OTHERS_TRAINING, self.images, self.mean, count, key, schedule)

    def compared(self, found: Sequence[Source], images: int, batch_size: int) -> Asked:
        """The other network as something to compare the first one with."""
        return Asked(self.name, self.make, images, found, 0.05, batch_size)


def other_of(
    folder: Path,
    data: str | None,
    data_dir: Path | None,
    model: run.TrainedModel,
    images: ImageSet,
) -> tuple[Other, list[str]]:
    """Opens another run.

    Args:
      folder: of the other run.
      data: where its images are now, see `TrainedModel.with_data`.
      data_dir: where its files are now.
      model: the first run.
      images: its training images.

    Returns:
      The other run, and what to know before trusting the comparison, one sentence each.

    Raises:
      UserError: it has images of another shape, another schedule, or the same parameters; or see
        `load_model` and `forking.training_images`.
    """
    other = run.load_model(folder).with_data(data, data_dir)
    if other.shape != model.shape:
        raise UserError(
            f"the runs have images of different shapes: {model.shape}, and {other.shape} in "
            f"{folder}"
        )
    if not np.array_equal(other.sampler.schedule.time, model.sampler.schedule.time):
        raise UserError(
            f"the run in {folder} has another noise schedule: one step would stand for two times"
        )
    if forking.digest(other.denoiser.params) == forking.digest(model.denoiser.params):
        raise UserError(f"the run in {folder} has the same parameters: it is no other network")
    found = Other(folder, other, forking.training_images(other), model.mean)
    return found, shared(images, found.images, "training images", folder)


def shared(images: ImageSet, others: ImageSet, what: str, folder: Path) -> list[str]:
    """Says whether some of the images are among another run's training images, pixel by pixel."""
    digests = _digests(others)
    if not (count := sum(each in digests for each in _digests(images))):
        return []
    return [f"{count} of {len(images.images)} {what} are training images of {folder} too"]


def _digests(images: ImageSet) -> set[bytes]:
    """A digest of each image."""
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.images}
