"""The comparison itself, cell by cell: a source of images, a time and a theory make a cell.

A cell is a few numbers an image (`resemblance.Sums`) in a file of its own. Cells may be computed in
any order, a kill leaves whole ones, and other times and theories add to those that are there.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console

from diffusion_jax.comparing.kept import is_whole
from diffusion_jax.comparing.progress import advancing
from diffusion_jax.comparing.sources import Source
from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import resemblance
from diffusion_jax.regimes.resemblance import Sums
from diffusion_jax.runtime.devices import batches, few_sizes, is_first_process, replicate, shard
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.schedule import NoiseSchedule

# The sums of a theory, by source and step.
Found = Mapping[tuple[str, int], Sums]


@dataclass(frozen=True)
class Compared:
    """What a network is compared with, and on which images.

    Attributes:
      name: in names of files.
      make: its denoiser, which is not kept.
      images: the first so many of each source.
      sources: those that it is asked on.
      seconds: that an image takes, about.
      batch_size: images at a time.
    """

    name: str
    make: Callable[[], Denoiser]
    images: int
    sources: Sequence[Source]
    seconds: float
    batch_size: int


class _Cell(NamedTuple):
    """A theory, a source and a step."""

    each: Compared
    source: Source
    step: int


def _all(compared: Sequence[Compared], steps: Sequence[int]) -> list[_Cell]:
    return [
        _Cell(each, source, step) for each in compared for source in each.sources for step in steps
    ]


@jax.jit
def _predicted(denoiser: Denoiser, x: Array, step: Array) -> Array:
    return denoiser(x, jnp.full(len(x), step))


def _noise(
    denoiser: Denoiser, x: np.ndarray, step: int, numbers: range, size: int
) -> Iterator[np.ndarray]:
    """The noise that a denoiser predicts in x_t, a batch at a time on all devices."""

    def predicted(index: np.ndarray) -> Array:
        return _predicted(denoiser, shard(x[np.minimum(index, len(x) - 1)]), jnp.int32(step))

    return batches(predicted, numbers, size)


def denoised(schedule: NoiseSchedule, noise: np.ndarray, x: np.ndarray, step: int) -> np.ndarray:
    """D = (x - sqrt(Delta) noise)/sqrt(alpha_bar) at one step, in float64."""
    signal, variance = float(schedule.alpha_bar[step]), float(schedule.noise_variance[step])
    return np.asarray((x - np.sqrt(variance) * noise.astype(np.float64)) / np.sqrt(signal))


@dataclass(frozen=True)
class Cells:
    """The cells of a network in a folder.

    Attributes:
      folder: where they are kept.
      network: the network's denoiser.
      schedule: its noise schedule.
      steps: the steps at which it is compared.
      batch_size: images at a time that the network is asked for.
    """

    folder: Path
    network: Denoiser
    schedule: NoiseSchedule
    steps: Sequence[int]
    batch_size: int

    def path(self, name: str, source: Source, step: int) -> Path:
        """The file of a cell."""
        return self.folder / f"{name}_{source.key}_{step:05d}.npz"

    def read(self, name: str, source: Source, step: int) -> Sums | None:
        """A cell; None where there is none, or a damaged one, which is computed again.

        Raises:
          UserError: the system does not let it be read.
        """
        path = self.path(name, source, step)
        try:
            found = patiently(path, partial(resemblance.load, path))
        except Exception as error:  # a damaged zip file raises almost anything
            if refusal(error) is not None:
                raise
            return None
        return found if found.draws == source.count else None

    def found(self, each: Compared) -> Found:
        """All cells of a theory, whole."""
        cells = {}
        for _, source, step in _all([each], self.steps):
            cell = self.read(each.name, source, step)
            if cell is None or len(cell) < min(each.images, source.count):
                raise UserError(
                    f"{self.path(each.name, source, step)} is gone or damaged since it was "
                    f"written; the same command computes it again"
                )
            cells[source.name, step] = cell.first(each.images)
        return cells

    def fill(self, compared: Sequence[Compared], console: Console) -> None:
        """Computes the cells that are missing, or have too few images, theory after theory.

        All processes call it; the first one says which are missing, and writes.

        Args:
          compared: the theories, in the order in which they are asked.
          console: shows the progress.
        """
        cells = _all(compared, self.steps)
        lengths = json.loads(from_first(lambda: json.dumps([self._length(c) for c in cells])))
        wanted = [min(cell.each.images, cell.source.count) for cell in cells]
        counts = list(zip(cells, lengths, wanted, strict=True))
        missing = [(cell, have, want) for cell, have, want in counts if have < want]
        if done := len(cells) - len(missing):
            console.print(f"{done} of {len(cells)} cells were computed before", highlight=False)
        total = sum(cell.each.seconds * (want - have) for cell, have, want in missing)
        name = ""
        denoiser: Any = None
        with advancing(console, "Comparing", total) as advance:
            for cell, have, want in missing:
                if cell.each.name != name:
                    name = cell.each.name
                    denoiser = None  # given up before the next one is made
                    denoiser = replicate(cell.each.make())
                self._fill(cell, denoiser, have, want)
                done += 1
                time = float(self.schedule.time[cell.step])
                text = f"{done} of {len(cells)}: {name}, {cell.source.name}, t = {time:.3g}"
                advance(cell.each.seconds * (want - have), text)

    def _length(self, cell: _Cell) -> int:
        """How many images a cell has already."""
        kept = self.read(cell.each.name, cell.source, cell.step)
        return 0 if kept is None else len(kept)

    def _fill(self, cell: _Cell, denoiser: Denoiser, have: int, wanted: int) -> None:
        """Adds the images that a cell lacks, and keeps it after each batch of them."""
        each, source, step = cell
        x, noise = source.at(step)
        network_noise = self._network(source, step, x)
        network = denoised(self.schedule, network_noise, x, step)
        mean, path = network.mean(axis=0), self.path(each.name, source, step)
        kept = self.read(each.name, source, step) if have and is_first_process() else None
        size, at = few_sizes(wanted - have, each.batch_size), have
        for own in _noise(denoiser, x, step, range(have, wanted), size):
            rows = slice(at, at + len(own))
            at += len(own)
            losses = None
            if noise is not None:
                losses = (
                    resemblance.noise_losses(network_noise[rows], noise[rows]),
                    resemblance.noise_losses(own, noise[rows]),
                )
            theory = denoised(self.schedule, own, x[rows], step)
            new = resemblance.sums(network[rows], theory, mean, source.count, losses)
            kept = new if kept is None else resemblance.join(kept, new)
            if is_first_process():
                kept.save(path)

    def _network(self, source: Source, step: int, x: np.ndarray) -> np.ndarray:
        """The noise that the network predicts, (count, ...), which is kept."""
        path = self.folder / f"network_{source.key}_{step:05d}.npy"

        if not from_first(lambda: "kept" if is_whole(path, x.shape) else ""):
            size = few_sizes(len(x), self.batch_size)
            parts = _noise(replicate(self.network), x, step, range(len(x)), size)
            found = np.concatenate(list(parts))
            if not np.isfinite(found).all():
                raise UserError("the network predicts values that are not finite: it is broken")
            if is_first_process():
                write_npy(path, found)
        # The others make no use of it.
        return np.load(path, allow_pickle=False) if is_first_process() else np.zeros_like(x)
