"""A small classifier that judges the class of generated images, trained on the data set itself.

It has no dropout and no statistics of the batch, so its answer is a function of the image alone.
(The original's code leaves its classifier in training mode: there an image's class depends on the
images that are judged with it.)
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import serialization
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.nn import kernels
from diffusion_jax.nn.layers import Conv, Dense, GroupNorm
from diffusion_jax.runtime.files import parse_json, write_bytes, write_json
from diffusion_jax.runtime.patience import patiently, refusal

FORMAT = 1
LEAST_ACCURACY = 0.98

_WIDTHS = (32, 64, 128)
# Images of one call of the compiled program.
_BLOCK = 128


class Classifier(nn.Module):
    """Stride-2 convolutions with GroupNorm and SiLU, the average over pixels, a linear layer.

    There are three convolutions for images of up to 63 pixels and one more for each doubling, of
    32, 64 and then 128 channels.

    Attributes:
      classes: number C of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Features (batch, 128) and logits (batch, C) of images (batch, height, width, any)."""
        depth = max(len(_WIDTHS), min(x.shape[1:3]).bit_length() - 3)
        best, h = kernels.best(), x
        for index in range(depth):
            width = _WIDTHS[min(index, 2)]
            h = Conv(width, stride=2, kernels=best, name=f"conv{index}")(h)
            h = GroupNorm(silu=True, kernels=best, name=f"norm{index}")(h)
        features = jnp.mean(h, axis=(1, 2))
        return features, Dense(self.classes, kernels=best, name="head")(features)


@partial(jax.jit, static_argnums=0)
def _apply(model: Classifier, params: Any, x: Array) -> tuple[Array, Array]:
    return cast(tuple[Array, Array], model.apply({"params": params}, x))


@partial(jax.jit, static_argnums=0)
def _layers(model: Classifier, params: Any, x: Array) -> tuple[Array, ...]:
    (features, logits), state = model.apply(
        {"params": params},
        x,
        capture_intermediates=lambda module, _: isinstance(module, GroupNorm),
        mutable=["intermediates"],
    )
    hidden = state["intermediates"]
    inner = (hidden[f"norm{index}"]["__call__"][0] for index in range(len(hidden)))
    return *inner, features, logits


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier, and how far to trust it.

    Attributes:
      params: parameters of `Classifier`.
      mean: per-channel mean of the data set (channels,), which is removed from the images it takes.
        To images from which another mean m was removed, add m - mean first.
      class_names: the classes, in the order of the labels.
      shape: (height, width, channels) of an image.
      accuracy: on images held out of the training.
      interval: Wilson's 95 % interval of the accuracy.
      held_out: number of images held out.
      settings: what it was trained with, as whoever keeps it wants to know it again.
    """

    params: Any
    mean: np.ndarray
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    accuracy: float
    interval: tuple[float, float]
    held_out: int
    settings: dict[str, Any] = field(default_factory=dict)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The most probable classes.

        Args:
          images: floats (N, height, width, channels) with the mean removed, as samplers return.

        Returns:
          Indices into class_names, int64 (N,).

        Raises:
          UserError: images of another shape, or integers.
        """
        return np.concatenate(
            [np.zeros(0, np.int64), *(logits.argmax(1) for _, logits in self._outputs(images))]
        )

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the last layer sees of the images, for `quality`.

        Args:
          images: as for `predict`.

        Returns:
          float32 (N, F), F = 128.

        Raises:
          UserError: images of another shape, or integers.
        """
        empty = np.zeros((0, _WIDTHS[-1]), np.float32)
        return np.concatenate([empty, *(features for features, _ in self._outputs(images))])

    def layers(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """What each layer makes of the images, some at a time.

        Args:
          images: as for `predict`.

        Yields:
          For the next images, float32: each convolution's (n, height, width, width of the layer)
          after its norm and SiLU, the first one first; the features (n, 128); the logits (n, C).

        Raises:
          UserError: images of another shape, or integers.
        """
        self._check(images)
        return _blocks(_layers, Classifier(len(self.class_names)), self.params, images)

    def _outputs(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        self._check(images)
        return outputs(Classifier(len(self.class_names)), self.params, images)

    def _check(self, images: np.ndarray) -> None:
        if images.shape[1:] != self.shape or not np.issubdtype(images.dtype, np.floating):
            raise UserError(
                f"the classifier takes floats (N, {', '.join(map(str, self.shape))}) with the mean "
                f"removed, not {images.dtype} of shape {images.shape}"
            )


def outputs(model: Classifier, params: Any, images: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Features and logits block by block, the last one padded, so that one program does."""
    return _blocks(_apply, model, params, images)


def _blocks(
    apply: Callable[..., tuple[Array, ...]], model: Classifier, params: Any, images: np.ndarray
) -> Iterator[tuple[np.ndarray, ...]]:
    """What a compiled function gives for the images, see `outputs`."""
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        padded = np.zeros((_BLOCK, *images.shape[1:]), np.float32)
        padded[: len(block)] = block
        yield tuple(np.asarray(each)[: len(block)] for each in apply(model, params, padded))


def warning(classifier: TrainedClassifier) -> str | None:
    """A sentence for whoever reads what it judged, where its accuracy is under 0.98; else None."""
    if classifier.accuracy >= LEAST_ACCURACY:
        return None
    low, high = classifier.interval
    return (
        f"The classifier is right on {classifier.accuracy:.1%} of {classifier.held_out} held-out "
        f"images (95 % interval {low:.1%} to {high:.1%}), less than {LEAST_ACCURACY:.0%}: the "
        f"classes that it gives to samples are no better than that."
    )


def initial_params(model: Classifier, key: Array, shape: tuple[int, int, int]) -> Any:
    """Fresh parameters for images of shape (height, width, channels)."""
    return model.init(key, jnp.zeros((1, *shape)))["params"]


def _kind(leaf: Any) -> tuple[tuple[int, ...], str]:
    return leaf.shape, str(leaf.dtype)


def save(folder: Path, classifier: TrainedClassifier) -> None:
    """Writes classifier.msgpack, the parameters, and classifier.json, everything else.

    Each is written under another name and renamed. classifier.json comes last and holds the
    checksum of the other, so that two files of different classifiers are never taken for one.

    Args:
      folder: made if it is missing.
      classifier: to be saved.

    Raises:
      UserError: the files cannot be written.
    """
    parameters = serialization.to_bytes(classifier.params)
    metadata = {
        "format": FORMAT,
        "accuracy": classifier.accuracy,
        "interval": classifier.interval,
        "held_out": classifier.held_out,
        "classes": classifier.class_names,
        "shape": classifier.shape,
        "mean": classifier.mean,
        "settings": classifier.settings,
        "sha256": hashlib.sha256(parameters).hexdigest(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot save the classifier to {folder}: {error}; give another folder"
        ) from error
    write_bytes(folder / "classifier.msgpack", parameters)
    write_json(folder / "classifier.json", metadata)


def load(folder: Path) -> TrainedClassifier:
    """Reads what `save` wrote; nothing is ever unpickled.

    Raises:
      UserError: a file is missing, damaged, of another format, or the parameters are not those of
        a classifier of the shape and the classes that classifier.json names; or the system does
        not let one be read.
    """
    path = folder / "classifier.json"
    try:
        metadata = parse_json(patiently(path, path.read_bytes))
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']}, not {FORMAT}")
        height, width, channels = map(int, metadata["shape"])
        if min(height, width, channels) < 1 or not metadata["classes"]:
            raise ValueError("it is of images without pixels, or of no classes")
        low, high = map(float, metadata["interval"])
        checksum, classes = metadata["sha256"], tuple(map(str, metadata["classes"]))
        described: dict[str, Any] = {
            "mean": np.array(metadata["mean"], np.float32).reshape(channels),
            "class_names": classes,
            "shape": (height, width, channels),
            "accuracy": float(metadata["accuracy"]),
            "interval": (low, high),
            "held_out": int(metadata["held_out"]),
            "settings": dict(metadata.get("settings", {})),
        }
        path = folder / "classifier.msgpack"
        content = patiently(path, path.read_bytes)
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError("it is not the file that classifier.json was written with")
        model, shape = Classifier(len(classes)), (height, width, channels)
        like = jax.eval_shape(lambda: initial_params(model, jax.random.key(0), shape))
        params = serialization.from_bytes(like, content)
        if jax.tree.map(_kind, params) != jax.tree.map(_kind, like):
            raise ValueError(f"its parameters are not for {len(classes)} classes of shape {shape}")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        if refusal(error) is not None:
            raise
        raise UserError(
            f"{path} cannot be read as a classifier's: {error!r:.300}; remove {folder} and train "
            f"the classifier again"
        ) from error
    return TrainedClassifier(params=params, **described)
