"""U-turns of many images, a `Table` of cells: a score, some images and a time make one."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np
from jax import Array

from diffusion_jax.comparing import returns
from diffusion_jax.comparing.returns import Judge, Returned
from diffusion_jax.comparing.sources import Source
from diffusion_jax.comparing.table import Cell, Table
from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.cloning import turning_points, u_turns
from diffusion_jax.runtime.devices import few_sizes, is_first_process
from diffusion_jax.sampling import Sampler


@dataclass(frozen=True)
class Travellers(Source):
    """Images that go up and come back, and at each step where the first of their returns turns.

    Attributes:
      images: mean removed (count, height, width, channels).
      noise: typed PRNG key: the noise of image i's return r, up and down, follows from it, from i
        and r; that going up is one for all scores and times.
    """

    images: np.ndarray
    noise: Array


def travellers(name: str, images: np.ndarray, noise: Array, sampler: Sampler) -> Travellers:
    """Images that go up and come back; see `Travellers`."""

    def at(step: int) -> tuple[np.ndarray, None]:
        return turning_points(sampler, of_return(noise, 0), step + 1, images), None

    # More images of a source begin alike.
    known = hashlib.blake2b(images[:2].tobytes(), digest_size=4).hexdigest()
    return Travellers(name, f"{name}_{known}", len(images), at, images, noise)


def of_return(noise: Array, number: int) -> Array:
    """The key of one of the returns of all images, as `u_turns` takes it."""
    return jax.random.fold_in(noise, number)


@dataclass(frozen=True)
class Turns(Table[Returned]):
    """The cells of U-turns; see `Table`.

    Attributes:
      sampler: of the backward process.
      returns: returns R of each image, at least 2.
      points: the training set, mean removed (N, height, width, channels).
      judge: tells classes and layers; used by the first process alone.
    """

    work = "U-turns"
    sampler: Sampler
    returns: int
    points: np.ndarray
    judge: Judge

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean image of the training set (height, width, channels)."""
        return np.asarray(self.points.mean(axis=0, dtype=np.float64), np.float32)

    def load(self, path: Path) -> Returned:
        """See `Table`."""
        return returns.load(path)

    def holds(self, found: Returned, source: Source) -> bool:
        """See `Table`."""
        return found.overlap.shape[1:] == (self.returns,)

    def add(self, cell: Cell, denoiser: Denoiser, have: int, wanted: int) -> None:
        """See `Table`; the cell is kept after each batch of images.

        Raises:
          UserError: returns that are not finite.
        """
        each, source, step = cell
        assert isinstance(source, Travellers)
        path = self.path(each.name, source, step)
        kept = self.read(each.name, source, step) if have and is_first_process() else None
        size = few_sizes(wanted - have, each.batch_size)
        back = partial(u_turns, self.sampler, denoiser)
        for first in range(have, wanted, size):
            last = min(first + size, wanted)
            # Padded, so that one program does for all.
            images = source.images[np.minimum(np.arange(first, first + size), wanted - 1)]
            ends = [
                back(of_return(source.noise, r), [step + 1], images, first)[: last - first, 0]
                for r in range(self.returns)
            ]
            after = np.stack(ends, axis=1)
            if not np.isfinite(after).all():
                raise UserError(
                    f"images come back from t = {float(self.schedule.time[step]):.3g} with values "
                    f"that are not finite: the score {each.name} is broken"
                )
            if is_first_process():
                before = images[: last - first]
                new = returns.measured(before, after, self.mean, self.points, self.judge)
                kept = new if kept is None else returns.join(kept, new)
                kept.save(path)
