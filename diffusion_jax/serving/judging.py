"""What became of an image: its class, its nearest training image, and whether it copies that."""

from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest

from diffusion_jax.judging import classifier
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.serving.model import Model
from diffusion_jax.serving.programs import Reading, read


class Fate(TypedDict):
    """See `wire.Fate`."""

    label: int | None
    probability: float | None
    nearest: int
    ratio: float
    memorised: bool


def reading(model: Model, x: jax.Array, step: int) -> Reading:
    """What the exact posterior says of x_t (B, ...) at a step, on the host."""
    found = read(model.exact, model.member, x, jnp.int32(step))
    return jax.tree.map(np.asarray, found)


def effective(found: Reading) -> float:
    """The effective number of training images, exp H(p(. | x_t)): 1 at least."""
    return max(1.0, float(np.exp(found.entropy)))


def fates(model: Model, denoiser: str, ends: np.ndarray, batch: int) -> list[Fate]:
    """What became of images (N, ...), mean removed.

    Of the exact score's the class is that of the nearest training image, with p(c | x) at the first
    noise level, and so where no classifier could be trained; of the others' it is the classifier's.

    Args:
      model: with whose training images they are compared.
      denoiser: that made them.
      ends: images.
      batch: images at a time, the last of them again where they are fewer.
    """
    found: list[Fate] = []
    for first in range(0, len(ends), batch):
        part = ends[first : first + batch]
        whole = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        found += _fates(model, denoiser, whole)[: len(part)]
    return found


def _fates(model: Model, denoiser: str, ends: np.ndarray) -> list[Fate]:
    near, labels, shares = nearest(ends, model.points), None, None
    if model.has_classes:
        if denoiser == "exact" or model.judge is None:
            assert model.images.labels is not None
            labels = model.images.labels[near.index]
            classes = np.asarray(reading(model, jnp.asarray(ends), 0).classes)
        else:
            classes = probabilities(model, ends)
            labels = classes.argmax(axis=1)
        shares = np.clip(classes[np.arange(len(ends)), labels], 0, 1)
    return [
        Fate(
            label=None if labels is None else int(labels[i]),
            probability=None if shares is None else float(shares[i]),
            nearest=int(near.index[i]),
            ratio=float(near.ratio[i]),
            memorised=bool(near.memorised[i]),
        )
        for i in range(len(ends))
    ]


def probabilities(model: Model, images: np.ndarray) -> np.ndarray:
    """The classifier's probabilities of the classes (N, C)."""
    judge = model.judge
    assert judge is not None
    network = classifier.Classifier(len(judge.class_names))
    shifted = images + (model.images.mean - judge.mean)
    logits = [each for _, each in classifier.outputs(network, judge.params, shifted)]
    return np.asarray(softmax(np.concatenate(logits), axis=1))


def share(count: int, total: int) -> dict[str, float]:
    """A fraction and Wilson's 95 % interval of it."""
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return {"low": float(interval.low), "high": float(interval.high), "value": count / total}


def pairs(values: list[int]) -> dict[str, float | int] | None:
    """How many of the disjoint pairs (0, 1), (2, 3), ... agree; None for less than two values."""
    couples = list(zip(values[::2], values[1::2], strict=False))
    if not couples:
        return None
    same = sum(a == b for a, b in couples)
    return {"same": same, "pairs": len(couples), **share(same, len(couples))}
