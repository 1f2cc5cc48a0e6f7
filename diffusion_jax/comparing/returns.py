"""U-turns of many images, kept cell by cell: a score, a source of images and a time make a cell.

A cell is what `regimes.uturns` wants to know of some images, in a file of its own: a few numbers an
image, and not what came back but of the first few. Cells may be computed in any order, a kill
leaves whole ones, and other scores, times and more images add to those that are there.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax import Array
from rich.console import Console

from diffusion_jax.comparing.progress import Advance, advancing
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.regimes import uturns
from diffusion_jax.regimes.cloning import u_turns
from diffusion_jax.regimes.curves import Curve, average
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.runtime.devices import few_sizes, is_first_process, replicate
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import writing
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.sampling import Backward

# Images whose returns are kept to be looked at.
SHOWN = 4
# Images of which the classifier's layers are in memory at a time.
_IMAGES = 64


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


@dataclass(frozen=True)
class Judge:
    """A classifier with the means of its layers over the training images.

    Attributes:
      classifier: the classifier; None where classes are not told, and there are no layers.
      shift: what makes images as they are here images as it takes them (channels,).
      means: of each layer, see `TrainedClassifier.layers`.
    """

    classifier: TrainedClassifier | None = None
    shift: np.ndarray | None = None
    means: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, classifier: TrainedClassifier | None, images: ImageSet) -> Self:
        """That of images from which their own mean is removed."""
        if classifier is None:
            return cls()
        shift = images.mean - classifier.mean
        sums: list[np.ndarray] = []
        for start in range(0, len(images.images), _IMAGES):
            block = images.centred(slice(start, start + _IMAGES)) + shift
            for layers in classifier.layers(block):
                own = [layer.sum(axis=0, dtype=np.float64) for layer in layers]
                sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
        means = (np.float32(total / len(images.images)) for total in sums)
        return cls(classifier, shift, tuple(means))

    def classes_and_layers(
        self, before: np.ndarray, after: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes of images (n,) and of their returns (n, R), and each layer's cosine (n, R, L).

        The cosine of what a layer makes of an image and of its return, less the layer's mean.
        """
        count, returns = after.shape[:2]
        if self.classifier is None or self.shift is None:
            return np.full(count, -1), np.full((count, returns), -1), np.zeros((count, returns, 0))
        both = np.concatenate([before[:, None], after], axis=1) + self.shift
        labels, cosines = [], []
        each = max(1, _IMAGES // (returns + 1))
        for start in range(0, count, each):
            part = both[start : start + each]
            flat = part.reshape(-1, *before.shape[1:])
            blocks = zip(*self.classifier.layers(flat), strict=True)
            layers = [np.concatenate(block) for block in blocks]
            layers = [layer.reshape(*part.shape[:2], *layer.shape[1:]) for layer in layers]
            labels.append(layers[-1].argmax(axis=-1))
            alike = (
                uturns.overlap(layer[:, 0], layer[:, 1:], mean)
                for layer, mean in zip(layers, self.means, strict=True)
            )
            cosines.append(np.stack(list(alike), axis=-1))
        found = np.concatenate(labels)
        return found[:, 0], found[:, 1:], np.concatenate(cosines)


@dataclass(frozen=True)
class Returned:
    """What R returns of each of n images say at one time.

    Attributes:
      overlap: q (n, R).
      own: the image's class, as it is judged (n,); -1 without a classifier.
      label: that of its returns (n, R).
      home: the training point nearest to the image (n,).
      index: that nearest to its returns (n, R).
      layers: cosine of each layer of the classifier (n, R, L).
      sums: see `uturns.pair_sums` (n, K).
      change: mean change of each pixel, over images and returns (height, width).
      shown: the first return of the first few images of all (m, height, width, channels).
    """

    overlap: np.ndarray
    own: np.ndarray
    label: np.ndarray
    home: np.ndarray
    index: np.ndarray
    layers: np.ndarray
    sums: np.ndarray
    change: np.ndarray
    shown: np.ndarray

    def save(self, path: Path) -> None:
        """Writes an .npz file; a kill leaves the whole of it or nothing.

        Raises:
          UserError: it cannot be written.
        """
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})


# Of which each image has a row.
_TABLES = tuple(field.name for field in fields(Returned) if field.name not in ("change", "shown"))


def load(path: Path) -> Returned:
    """Reads what `Returned.save` wrote.

    Raises:
      Exception: whatever a damaged file makes NumPy raise, or ValueError.
    """
    with np.load(path, allow_pickle=False) as file:
        found = Returned(**{field.name: file[field.name] for field in fields(Returned)})
    lengths = {len(getattr(found, name)) for name in _TABLES}
    if len(lengths) > 1 or len(found.shown) != min(SHOWN, *lengths):
        raise ValueError("its tables are of different images")
    return found


def join(earlier: Returned, later: Returned) -> Returned:
    """What some images say, and those that follow them."""
    pairs = {f.name: (getattr(earlier, f.name), getattr(later, f.name)) for f in fields(Returned)}
    joined = {name: np.concatenate(pairs[name]) for name in (*_TABLES, "shown")}
    weights = [len(each.overlap) for each in (earlier, later)]
    change = np.average(np.stack(pairs["change"]), axis=0, weights=weights)
    return Returned(**joined | {"shown": joined["shown"][:SHOWN], "change": change})


def measured(
    before: np.ndarray,
    after: np.ndarray,
    mean: np.ndarray,
    points: np.ndarray,
    judge: Judge,
) -> Returned:
    """What returns say; see `Returned`.

    Args:
      before: images (n, height, width, channels), mean removed.
      after: their returns (n, R, ...), R >= 2.
      mean: mean image of the training set, in the same units (height, width, channels).
      points: the training set (N, ...).
      judge: tells classes and layers.
    """
    change = uturns.changes(before, after)
    own, label, layers = judge.classes_and_layers(before, after)
    flat = after.reshape(-1, *before.shape[1:])
    return Returned(
        overlap=uturns.overlap(before, after, mean),
        own=own,
        label=label,
        home=nearest(before, points).index,
        index=nearest(flat, points).index.reshape(after.shape[:2]),
        layers=layers,
        sums=uturns.pair_sums(change),
        change=change.mean(axis=(0, 1)),
        shown=after[:SHOWN, 0],
    )


@dataclass(frozen=True)
class Found:
    """What the images of a source say of a score: `Returned` at T times.

    Attributes:
      tables: overlap, own, label, home, index, layers and sums by these names, (N, T, ...).
      change: over all images that were ever asked for (T, height, width).
      shown: (m, T, height, width, channels).
    """

    tables: dict[str, np.ndarray]
    change: np.ndarray
    shown: np.ndarray


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
                new = measured(images, after, self.mean, self.points, self.judge)
                kept = new if kept is None else join(kept, new)
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
            found = patiently(path, partial(load, path))
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
            for name in _TABLES
        }
        change = np.stack([cell.change for cell in cells])
        shown = np.stack([cell.shown[:count] for cell in cells], axis=1)
        return Found(tables, change, shown)


@dataclass(frozen=True)
class Measured:
    """The curves of a score on a source, with 95 % bootstrap intervals over whole images.

    Attributes:
      class_return: share of the returns that are in the image's class, both as they are judged;
        None without a classifier.
      point_return: share that are nearest to the training point that the image is; None of other
        images.
      overlaps: mean and susceptibility of the overlap.
      layers: cosine of each layer of the classifier, the first one first.
      correlated: which pixels change together.
      change: mean change of each pixel (T, height, width).
      shown: the first return of the first few images (m, T, height, width, channels).
    """

    class_return: Curve | None
    point_return: Curve | None
    overlaps: uturns.Overlaps
    layers: list[Curve]
    correlated: uturns.Correlated
    change: np.ndarray
    shown: np.ndarray


def summarize(
    found: Found, times: np.ndarray, shape: Sequence[int], training: bool, seed: int = 0
) -> Measured:
    """All curves; see `Measured`.

    Args:
      found: what the images say.
      times: Ornstein-Uhlenbeck times (T,).
      shape: (height, width, channels) of an image.
      training: whether they are of the training set.
      seed: of the bootstrap; replicates of one seed and number of images are of the same images.
    """
    tables = found.tables
    layers = np.moveaxis(tables["layers"].mean(axis=2), 2, 0)
    at_home = (tables["index"] == tables["home"][..., None]).mean(axis=2)
    same = (tables["label"] == tables["own"][..., None]).mean(axis=2)
    point, of_class, *cosines = average(times, [at_home, same, *layers], seed)
    return Measured(
        class_return=of_class if cosines else None,
        point_return=point if training else None,
        overlaps=uturns.overlaps(times, tables["overlap"], math.prod(shape), seed),
        layers=cosines,
        correlated=uturns.correlated(times, tables["sums"], shape, seed),
        change=found.change,
        shown=found.shown,
    )
