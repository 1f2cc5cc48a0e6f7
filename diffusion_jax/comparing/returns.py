"""What came back from U-turns: a few numbers of each image, their averages and intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np

from diffusion_jax.data.images import ImageSet
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.regimes import uturns
from diffusion_jax.regimes.curves import Curve, average
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.runtime.files import writing

# Images whose returns are kept to be looked at.
SHOWN = 4
# Images of which the classifier's layers are in memory at a time.
_IMAGES = 64


@dataclass(frozen=True)
class Judge:
    """A classifier with the means of its layers over the training images.

    Attributes:
      classifier: the classifier; None where classes are not known; then there are no layers either.
      shift: added to images as they are here, it gives images as the classifier takes them
        (channels,).
      means: of each layer, see `TrainedClassifier.layers`.
    """

    classifier: TrainedClassifier | None = None
    shift: np.ndarray | None = None
    means: tuple[np.ndarray, ...] = ()

    @classmethod
    def of(cls, classifier: TrainedClassifier | None, images: ImageSet) -> Self:
        """The judge of images from which their own mean is removed."""
        if classifier is None:
            return cls()
        shift = images.mean - classifier.mean
        sums: list[np.ndarray] = []
        for start in range(0, len(images.images), _IMAGES):
            block = images.centred(slice(start, start + _IMAGES)) + shift
            for layers in classifier.layers(block):
                own = [layer.sum(axis=0, dtype=np.float64) for layer in layers]
                sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
        means = (np.asarray(total / len(images.images), np.float32) for total in sums)
        return cls(classifier, shift, tuple(means))

    def classes_and_layers(
        self, before: np.ndarray, after: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes of images (n,) and of their returns (n, R), and each layer's cosine (n, R, L).

        The cosine of what a layer makes of an image and of its return, minus the layer's mean.
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

    def __len__(self) -> int:
        """How many images."""
        return len(self.overlap)

    def first(self, count: int) -> "Returned":
        """What the first images say; `change` is that of all."""
        rows = {name: getattr(self, name)[:count] for name in (*TABLES, "shown")}
        return replace(self, **rows)

    def save(self, path: Path) -> None:
        """Writes an .npz file; a kill leaves the whole of it or nothing.

        Raises:
          UserError: it cannot be written.
        """
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})


# Of which each image has a row.
TABLES = tuple(field.name for field in fields(Returned) if field.name not in ("change", "shown"))


def load(path: Path) -> Returned:
    """Reads what `Returned.save` wrote.

    Raises:
      Exception: whatever a damaged file makes NumPy raise, or ValueError.
    """
    with np.load(path, allow_pickle=False) as file:
        found = Returned(**{field.name: file[field.name] for field in fields(Returned)})
    lengths = {len(getattr(found, name)) for name in TABLES}
    if len(lengths) > 1 or len(found.shown) != min(SHOWN, *lengths):
        raise ValueError("its tables are of different images")
    return found


def join(earlier: Returned, later: Returned) -> Returned:
    """What some images say, and those that follow them."""
    pairs = {f.name: (getattr(earlier, f.name), getattr(later, f.name)) for f in fields(Returned)}
    joined = {name: np.concatenate(pairs[name]) for name in (*TABLES, "shown")}
    weights = [len(earlier), len(later)]
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
    cells: Sequence[Returned],
    times: np.ndarray,
    shape: Sequence[int],
    training: bool,
    seed: int = 0,
) -> Measured:
    """All curves; see `Measured`.

    Args:
      cells: what the same images say at each time (T,).
      times: Ornstein-Uhlenbeck times (T,), increasing.
      shape: (height, width, channels) of an image.
      training: whether they are of the training set.
      seed: of the bootstrap; replicates of one seed and number of images are of the same images.
    """

    def along(name: str) -> np.ndarray:
        return np.stack([getattr(cell, name) for cell in cells], axis=1)

    layers = np.moveaxis(along("layers").mean(axis=2), 2, 0)
    at_home = (along("index") == along("home")[..., None]).mean(axis=2)
    same = (along("label") == along("own")[..., None]).mean(axis=2)
    point, of_class, *cosines = average(times, [at_home, same, *layers], seed)
    return Measured(
        class_return=of_class if cosines else None,
        point_return=point if training else None,
        overlaps=uturns.overlaps(times, along("overlap"), math.prod(shape), seed),
        layers=cosines,
        correlated=uturns.correlated(times, along("sums"), shape, seed),
        change=np.stack([cell.change for cell in cells]),
        shown=along("shown"),
    )
