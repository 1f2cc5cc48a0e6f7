"""Features of images that need no download, each named for what it is.

None is the pretrained network's of the published distances. What two sets' distance says is what
the features see: patches without their place, or the directions in which the data vary most, or
what tells the classes apart. Look at more than one.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.covariance import Rows, principal_modes
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.nn.plain import DIMENSIONS

FeatureMap = Callable[[np.ndarray], np.ndarray]

KERNEL_SIZES = (3, 5, 7)
FILTERS = 32
VARIANCE_SHARE = 0.9

# Standard deviation of a bias: the order of an image's contrast, on the scale of [0, 1].
_BIAS = 0.25
_LEAST_SIZE = 8
# Training images that the modes come from: their Gram matrix is of this size at most.
_MODES_FROM = 2048
# Images of one call of the compiled program.
_BLOCK = 128


def random_convolution_features(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means over the pixels of rectified random convolutions: what patches there are, not where.

    f_j = 1/(places) sum_p max(w_j . patch_p + b_j, 0),    w_j of length 1, b_j ~ N(0, 1/16),

    over the 3 x 3, 5 x 5 and 7 x 7 patches that lie within the image, 32 filters for each size.
    The filters are drawn by NumPy from the seed and the number of channels, and applied in full
    float32: they are the same on every device, the features up to float32's rounding.

    Args:
      images: (N, height, width, channels), 8 x 8 or larger; floats are taken as they are, uint8 is
        scaled to [0, 1].
      seed: of the filters. Features of one seed alone may be compared.

    Returns:
      float32 (N, 96).

    Raises:
      UserError: images of another shape or smaller.
    """
    _check(images)
    filters = _filters(images.shape[3], seed)
    parts = [np.zeros((0, len(KERNEL_SIZES) * FILTERS), np.float32)]
    for start in range(0, len(images), _BLOCK):
        block = _as_floats(images[start : start + _BLOCK])
        padded = np.zeros((_BLOCK, *images.shape[1:]), np.float32)
        padded[: len(block)] = block
        parts.append(np.asarray(_convolved(padded, filters))[: len(block)])
    return np.concatenate(parts)


def leading_components(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Coordinates along the training set's leading principal components.

    As many as explain 90 % of its variance: the least k with l_1 + ... + l_k >= 0.9 tr C. Of more
    than 2 048 training images the components are those of 2 048 evenly spaced ones. A Gaussian fit
    to these coordinates is that of the images themselves on the subspace; what is off in the tenth
    of the variance that is left out, fine detail and noise, they do not see.

    Args:
      images: (N, height, width, channels) in the units of the training set.
      training: (n, height, width, channels), n >= 2; uint8 of either is scaled to [0, 1].

    Returns:
      float32 (N, k), minus those of the training images' mean.

    Raises:
      UserError: images of another shape than the training set's, or training images that are all
        equal.
    """
    return component_map(training)(images)


def component_map(training: np.ndarray) -> FeatureMap:
    """`leading_components` with the components found once.

    Args:
      training: (n, height, width, channels), n >= 2.

    Raises:
      UserError: training images that are all equal, or see `covariance.Rows`.
    """
    places = np.linspace(0, len(training) - 1, min(len(training), _MODES_FROM)).round().astype(int)
    rows = Rows(training[places], all_channels=True, dtype=np.float64)
    values, modes, rest = principal_modes(rows)
    if len(values) == 0:
        raise UserError("the training images are all equal: they have no principal components")
    share = np.cumsum(values) / (values.sum() + rest)
    # The share may end a rounding below 1.
    count = min(int(np.searchsorted(share, VARIANCE_SHARE)) + 1, len(values))
    basis, origin = modes[:count].T.astype(np.float32), modes[:count] @ rows.mean

    def project(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != training.shape[1:]:
            raise UserError(
                f"images of shape {images.shape[1:]} and training images of shape "
                f"{training.shape[1:]}: give images of one shape"
            )
        parts = [np.zeros((0, count), np.float32)]
        for start in range(0, len(images), _BLOCK):
            block = _as_floats(images[start : start + _BLOCK])
            parts.append(block.reshape(len(block), -1) @ basis - origin.astype(np.float32))
        return np.concatenate(parts)

    return project


def feature_maps(
    training: np.ndarray, seed: int = 0, classifier: TrainedClassifier | None = None
) -> dict[str, FeatureMap]:
    """The features that there are of images like these, by name.

    Args:
      training: images (n, height, width, channels), n >= 2, as whatever the maps will be given.
      seed: of `random_convolution_features`.
      classifier: with it, its features too, of floats without the mean that it was trained without;
        see `TrainedClassifier`.

    Returns:
      From images (N, height, width, channels) to float32 (N, F): "random_convolutions",
      "leading_components", and "classifier" where there is one.

    Raises:
      UserError: see `random_convolution_features` and `component_map`.
    """
    _check(training)
    maps: dict[str, FeatureMap] = {
        "random_convolutions": partial(random_convolution_features, seed=seed),
        "leading_components": component_map(training),
    }
    if classifier is not None:
        maps["classifier"] = classifier.features
    return maps


def _check(images: np.ndarray) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < _LEAST_SIZE:
        raise UserError(
            f"images of shape {images.shape}: random convolutions take (N, height, width, "
            f"channels) of {_LEAST_SIZE} x {_LEAST_SIZE} pixels or more"
        )


def _as_floats(images: np.ndarray) -> np.ndarray:
    floats = images.astype(np.float32)
    return floats / np.float32(255) if images.dtype == np.uint8 else floats


def _filters(channels: int, seed: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Filters (size, size, channels, 32) of length 1 and their biases (32,), of each size."""
    rng = np.random.default_rng(seed)
    drawn = []
    for size in KERNEL_SIZES:
        kernel = rng.standard_normal((size, size, channels, FILTERS))
        kernel /= np.sqrt(np.sum(kernel**2, axis=(0, 1, 2)))
        bias = _BIAS * rng.standard_normal(FILTERS)
        drawn.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return tuple(drawn)


@jax.jit
def _convolved(x: Array, filters: tuple[tuple[Array, Array], ...]) -> Array:
    parts = []
    for kernel, bias in filters:
        response = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=DIMENSIONS, precision="highest"
        )
        parts.append(jnp.mean(jax.nn.relu(response + bias[None, None, None]), axis=(1, 2)))
    return jnp.concatenate(parts, axis=1)
