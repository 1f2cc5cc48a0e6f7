"""Training of the classifier on most of a data set, and its accuracy on the rest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from scipy.stats import binomtest

from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import Classifier, TrainedClassifier, initial_params, outputs

LEAST_SIZE = 8
LEAST_PER_CLASS = 5

_BATCH = 64
_LEARNING_RATE = 2e-3
_SHIFT = 2
_NOISE = 0.1
_ADAM = optax.scale_by_adam()


def split(labels: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images for training and testing, each class in the same proportion.

    Of a class of n images round(held_out n) are held out, but at least one and at most n - 1; which
    ones is decided by the seed alone.

    Args:
      labels: of the images (n,).
      held_out: fraction to hold out, in (0, 1).
      seed: of the split.

    Returns:
      Indices of the images to train on, and of those held out, each increasing.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: min(max(round(held_out * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def train_classifier(
    images: ImageSet, seed: int, updates: int = 300, held_out: float = 0.2
) -> TrainedClassifier:
    """Trains a classifier on most of the images, and measures its accuracy on the others.

    Cross-entropy, Adam, 64 images per update drawn with replacement, the learning rate 2e-3 falling
    to zero along half a cosine. Each image is shifted by up to 2 pixels either way, its edges
    repeated, and takes Gaussian noise of a deviation drawn from U(0, 0.1), since generated images
    are a little noisy. Everything random follows from the seed and the number of the update.

    Args:
      images: labelled images; of all of them the mean is removed, which tells nothing of a class.
      seed: of the split, the parameters and the updates.
      updates: number of updates.
      held_out: fraction of each class that is held out, in (0, 1).

    Raises:
      UserError: no labels, fewer than two classes, fewer than 5 images in a class, images smaller
        than 8 pixels, no updates, or a fraction outside (0, 1).
    """
    labels = checked_labels(images)
    if updates < 1 or not 0 < held_out < 1:
        raise UserError(
            f"updates = {updates} must be at least 1, held_out = {held_out} between 0 and 1"
        )
    height, width, channels = images.images.shape[1:]
    shape, model = (height, width, channels), Classifier(len(images.class_names))
    train, test = split(labels, held_out, seed)
    init_key, key = jax.random.split(jax.random.key(seed))
    params = jax.jit(lambda: initial_params(model, init_key, shape))()
    state = (params, _ADAM.init(params))
    data = [jnp.asarray(each) for each in (images.images, labels.astype(np.int32), train)]
    mean = jnp.asarray(images.mean)
    # Not one lax.scan: on the CPU XLA's convolutions are many times slower inside a loop.
    for step in range(updates):
        rate = _LEARNING_RATE / 2 * (1 + np.cos(np.pi * step / updates))
        step_key = jax.random.fold_in(key, step)
        state = _update(model, state, jnp.float32(rate), step_key, mean, *data)

    params = jax.tree.map(np.asarray, state[0])
    x = np.asarray(_unit(jnp.asarray(images.images[test]))) - images.mean
    predicted = np.concatenate([logits.argmax(1) for _, logits in outputs(model, params, x)])
    right = int(np.sum(predicted == labels[test]))
    low, high = binomtest(right, len(test)).proportion_ci(method="wilson")
    return TrainedClassifier(
        params=params,
        mean=images.mean,
        class_names=images.class_names,
        shape=shape,
        accuracy=right / len(test),
        interval=(float(low), float(high)),
        held_out=len(test),
    )


def checked_labels(images: ImageSet) -> np.ndarray:
    """The labels of images that a classifier can be trained on.

    Raises:
      UserError: see `train_classifier`.
    """
    if images.labels is None:
        raise UserError("a classifier needs labels, and these images have none")
    if len(images.class_names) < 2:
        raise UserError(f"a classifier needs two classes or more, not {images.class_names}")
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    if counts.min() < LEAST_PER_CLASS:
        raise UserError(
            f"class {images.class_names[counts.argmin()]} has {counts.min()} image(s): a "
            f"classifier needs at least {LEAST_PER_CLASS} of each class"
        )
    if min(images.images.shape[1:3]) < LEAST_SIZE:
        raise UserError(
            f"the classifier takes images of at least {LEAST_SIZE} pixels per side, not "
            f"{images.images.shape[1]} x {images.images.shape[2]}"
        )
    return images.labels


def _unit(images: Array) -> Array:
    """Grey levels from 0 to 1; floats as they are."""
    return images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)


def _augmented(key: Array, x: Array) -> Array:
    """Images (batch, height, width, channels) shifted, and with noise added to them."""
    shift_key, deviation_key, noise_key = jax.random.split(key, 3)
    edges = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
    padded = jnp.pad(x, edges, mode="edge")
    corner = jax.random.randint(shift_key, (len(x), 2), 0, 2 * _SHIFT + 1)
    shifted = jax.vmap(
        lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:])
    )(padded, corner)
    deviation = jax.random.uniform(deviation_key, (len(x), 1, 1, 1), maxval=_NOISE)
    return shifted + deviation * jax.random.normal(noise_key, x.shape)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(
    model: Classifier,
    state: tuple[Any, optax.OptState],
    rate: Array,
    key: Array,
    mean: Array,
    images: Array,
    labels: Array,
    train: Array,
) -> tuple[Any, optax.OptState]:
    """One update at a learning rate, on images drawn from those that `train` indexes."""
    params, opt_state = state
    draw_key, augment_key = jax.random.split(key)
    chosen = train[jax.random.randint(draw_key, (_BATCH,), 0, len(train))]
    x = _unit(images[chosen])
    x = _augmented(augment_key, x - jnp.broadcast_to(mean, x.shape))

    def loss_of(params: Any) -> Array:
        _, logits = model.apply({"params": params}, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]))

    gradient = jax.grad(loss_of)(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to an integer count
        change, opt_state = _ADAM.update(gradient, opt_state)
    return jax.tree.map(lambda value, by: value - rate * by, params, change), opt_state
