"""Tables of cells in a folder: a denoiser, a source of noisy images and a time make a cell.

A cell holds numbers of each image, in a file of its own. Cells may be computed in any order, a kill
leaves whole ones, and other times, denoisers and more images add to those that are there.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

from rich.console import Console

from diffusion_jax.comparing.progress import advancing
from diffusion_jax.comparing.sources import Source
from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.devices import replicate
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.schedule import NoiseSchedule


class Numbers(Protocol):
    """What a cell holds: numbers of each of some images."""

    def __len__(self) -> int:
        """How many images."""

    def first(self, count: int) -> Self:
        """The numbers of the first images alone."""


C = TypeVar("C", bound=Numbers)


@dataclass(frozen=True)
class Asked:
    """A denoiser that is asked, and on which images.

    Attributes:
      name: in names of files.
      make: the denoiser, which is not kept.
      images: how many of each source, the first ones.
      sources: those that it is asked on.
      seconds: that an image takes, roughly.
      batch_size: images at a time.
    """

    name: str
    make: Callable[[], Denoiser]
    images: int
    sources: Sequence[Source]
    seconds: float
    batch_size: int


class Cell(NamedTuple):
    """A denoiser, a source and a step."""

    each: Asked
    source: Source
    step: int


@dataclass(frozen=True)
class Table(ABC, Generic[C]):
    """The cells in a folder.

    Attributes:
      folder: where they are kept.
      schedule: the noise schedule.
      steps: the steps at which denoisers are asked.
    """

    work: ClassVar[str]
    folder: Path
    schedule: NoiseSchedule
    steps: Sequence[int]

    def path(self, name: str, source: Source, step: int) -> Path:
        """The file of a cell."""
        return self.folder / f"{name}_{source.key}_{step:05d}.npz"

    @abstractmethod
    def load(self, path: Path) -> C:
        """Reads a file; whatever a damaged one raises, it raises."""

    @abstractmethod
    def holds(self, found: C, source: Source) -> bool:
        """Whether numbers that are kept are of what is asked now."""

    @abstractmethod
    def add(self, cell: Cell, denoiser: Denoiser, have: int, wanted: int) -> None:
        """Adds the images have..wanted - 1 to a cell, and keeps it; all processes call it."""

    def all(self, asked: Sequence[Asked]) -> list[Cell]:
        """The cells of these denoisers, one denoiser after the other."""
        return [
            Cell(each, source, step)
            for each in asked
            for source in each.sources
            for step in self.steps
        ]

    def read(self, name: str, source: Source, step: int) -> C | None:
        """A cell; None where there is none, or a damaged one, which is computed again.

        Raises:
          UserError: the system does not let it be read.
        """
        path = self.path(name, source, step)
        try:
            found = patiently(path, partial(self.load, path))
        except Exception as error:  # a damaged zip file raises almost anything
            if refusal(error) is not None:
                raise
            return None
        return found if self.holds(found, source) else None

    def found(self, each: Asked) -> Mapping[tuple[str, int], C]:
        """All cells of a denoiser, whole, by source and step."""
        cells = {}
        for _, source, step in self.all([each]):
            cell = self.read(each.name, source, step)
            if cell is None or len(cell) < min(each.images, source.count):
                raise UserError(
                    f"{self.path(each.name, source, step)} is gone or damaged since it was "
                    f"written; the same command computes it again"
                )
            cells[source.name, step] = cell.first(each.images)
        return cells

    def fill(self, asked: Sequence[Asked], console: Console) -> None:
        """Computes the cells that are missing, or have too few images, denoiser after denoiser.

        All processes call it; the first one says which are missing, and writes.

        Args:
          asked: the denoisers, in the order in which they are asked.
          console: shows the progress.
        """
        cells = self.all(asked)
        lengths = json.loads(from_first(lambda: json.dumps([self._length(c) for c in cells])))
        wanted = [min(cell.each.images, cell.source.count) for cell in cells]
        counts = list(zip(cells, lengths, wanted, strict=True))
        missing = [(cell, have, want) for cell, have, want in counts if have < want]
        if done := len(cells) - len(missing):
            console.print(f"{done} of {len(cells)} cells were computed before", highlight=False)
        total = sum(cell.each.seconds * (want - have) for cell, have, want in missing)
        name = ""
        denoiser: Any = None
        with advancing(console, self.work, total) as advance:
            for cell, have, want in missing:
                if cell.each.name != name:
                    name = cell.each.name
                    denoiser = None  # given up before the next one is made
                    denoiser = replicate(cell.each.make())
                self.add(cell, denoiser, have, want)
                done += 1
                time = float(self.schedule.time[cell.step])
                text = f"{done} of {len(cells)}: {name}, {cell.source.name}, t = {time:.3g}"
                advance(cell.each.seconds * (want - have), text)

    def _length(self, cell: Cell) -> int:
        """How many images a cell has already."""
        kept = self.read(cell.each.name, cell.source, cell.step)
        return 0 if kept is None else len(kept)
