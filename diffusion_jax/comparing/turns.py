"""U-turns of many images, kept cell by cell: a score, a source of images and a time make a cell.

A cell is what `returns.Returned` says of some images, in a file of its own. Cells may be computed
in any order, a kill leaves whole ones, and other scores, times and more images add to those that
are there.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from rich.console import Console

from diffusion_jax.comparing import returns
from diffusion_jax.comparing.progress import Advance, advancing
from diffusion_jax.comparing.returns import Found, Judge, Returned
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.cloning import u_turns
from diffusion_jax.runtime.devices import few_sizes, is_first_process, replicate
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.sampling import Backward


@dataclass(frozen=True)
class Origin:
    """Images that go up and come back.

    Attributes:
      name: what they are called; in names of files too.
      images: mean removed (N, height, width, channels).
      key: typed PRNG key of all the noise: that of image i's return r depends on it, i and r alone,
        and going up it is one for all scores and times.
    """

    name: str
    images: np.ndarray
    key: Array


@dataclass(frozen=True)
class Score:
    """What brings images back.

    Attributes:
      name: in names of files.
      make: its backward process, which is not kept; all have the steps of one schedule.
    """

    name: str
    make: Callable[[], Backward]


class _Cell(NamedTuple):
    """A score, a source and a step."""

    score: Score
    origin: Origin
    step: int


@dataclass(frozen=True)
class Turns:
    """The cells of U-turns in a folder.

    Attributes:
      folder: where they are kept.
      steps: of the schedule, up to which images go (T,), increasing.
      times: of these steps (T,).
      returns: returns R of each image, at least 2.
      points: the training set, mean removed (N, height, width, channels).
      judge: tells classes and layers; used by the first process alone.
      batch_size: images at a time.
    """

    folder: Path
    steps: Sequence[int]
    times: np.ndarray
    returns: int
    points: np.ndarray
    judge: Judge
    batch_size: int

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean image of the training set."""
        return np.asarray(self.points.mean(axis=0, dtype=np.float64), np.float32)

    def fill(self, scores: Sequence[Score], origins: Sequence[Origin], console: Console) -> None:
        """Runs what is missing, score after score.

        All processes call it; the first one says what is missing, and writes.

        Args:
          scores: in the order in which they are asked.
          origins: the images.
          console: shows the progress.

        Raises:
          UserError: returns that are not finite.
        """
        cells = [_Cell(a, b, step) for a in scores for b in origins for step in self.steps]
        lengths = json.loads(from_first(lambda: json.dumps([self._length(c) for c in cells])))
        counts = [
            (cell, have, len(cell.origin.images))
            for cell, have in zip(cells, lengths, strict=True)
            if have < len(cell.origin.images)
        ]
        if done := len(cells) - len(counts):
            console.print(f"{done} of {len(cells)} cells were computed before", highlight=False)
        total = sum(self._calls(cell) * (want - have) for cell, have, want in counts)
        name = ""
        process: Any = None
        with advancing(console, "U-turns", total) as advance:
            for cell, have, want in counts:
                if cell.score.name != name:
                    name = cell.score.name
                    process = None  # given up before the next one is made
                    made = cell.score.make()
                    process = replicate((made.sampler, made.denoiser))
                self._fill(cell, process, have, want, advance)

    def _calls(self, cell: _Cell) -> int:
        """Steps of the backward process that an image takes."""
        return self.returns * (cell.step + 1)

    def _fill(
        self, cell: _Cell, process: tuple[Any, Any], have: int, wanted: int, advance: Advance
    ) -> None:
        """Adds the images that a cell lacks, and keeps it after each batch of them."""
        score, origin, step = cell
        kept = self._read(cell) if have and is_first_process() else None
        size, time = few_sizes(wanted - have, self.batch_size), self.times[self.steps.index(step)]
        for first in range(have, wanted, size):
            last = min(first + size, wanted)
            # Padded, so that one program does for all.
            numbers = np.minimum(np.arange(first, first + size), wanted - 1)
            before, ends = origin.images[numbers], []
            for r in range(self.returns):
                key = jax.random.fold_in(origin.key, r)
                ends.append(u_turns(*process, key, [step + 1], before, first)[: last - first, 0])
            after = np.stack(ends, axis=1)
            if not np.isfinite(after).all():
                raise UserError(
                    f"images come back from t = {time:.3g} with values that are not finite: the "
                    f"score {score.name} is broken"
                )
            if is_first_process():
                images = before[: last - first]
                new = returns.measured(images, after, self.mean, self.points, self.judge)
                kept = new if kept is None else returns.join(kept, new)
                kept.save(self._path(cell))
            line = f"{score.name}, {origin.name}, t = {time:.3g}: {last} of {wanted} images"
            advance(self._calls(cell) * (last - first), line)

    def _path(self, cell: _Cell) -> Path:
        return self.folder / f"{cell.score.name}_{cell.origin.name}_{cell.step:05d}.npz"

    def _length(self, cell: _Cell) -> int:
        """How many images a cell has already."""
        kept = self._read(cell)
        return 0 if kept is None else len(kept.overlap)

    def _read(self, cell: _Cell) -> Returned | None:
        """A cell; None where there is none, or a damaged one, which is computed again.

        Raises:
          UserError: the system does not let it be read.
        """
        path = self._path(cell)
        try:
            found = patiently(path, partial(returns.load, path))
        except Exception as error:  # a damaged zip file raises almost anything
            if refusal(error) is not None:
                raise
            return None
        return found if found.overlap.shape[1:] == (self.returns,) else None

    def found(self, score: Score, origin: Origin) -> Found:
        """All that a score did to the images of a source.

        Raises:
          UserError: a cell is gone since it was written.
        """
        count, cells = len(origin.images), []
        for step in self.steps:
            cell = self._read(_Cell(score, origin, step))
            if cell is None or len(cell.overlap) < count:
                raise UserError(
                    f"{self._path(_Cell(score, origin, step))} is gone or damaged since it was "
                    f"written; the same command computes it again"
                )
            cells.append(cell)
        tables = {
            name: np.stack([getattr(cell, name)[:count] for cell in cells], axis=1)
            for name in returns.TABLES
        }
        change = np.stack([cell.change for cell in cells])
        shown = np.stack([cell.shown[:count] for cell in cells], axis=1)
        return Found(tables, change, shown)
