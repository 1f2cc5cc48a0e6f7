"""A set of labelled images in memory, and the pixel arithmetic that all sources share."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

CROP = 256


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    Attributes:
      images: uint8 (n, height, width, channels).
      labels: int64 (n,), indices into class_names.
      class_names: one name a class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @cached_property
    def mean(self) -> np.ndarray:
        """Per-channel mean of the images scaled to [0, 1], float32 (channels,).

        Summed in integers, so that it is the same on every machine.
        """
        total = np.sum(self.images, axis=(0, 1, 2), dtype=np.int64)
        pixels = self.images.size // self.images.shape[-1]
        return (total / (255 * pixels)).astype(np.float32)


def centre_crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
    """The original's pre-processing: the central 256 x 256 pixels, resized with antialiasing.

    The crop's corner is rounded as torchvision rounds it. The result is within one grey level of
    the original's, which resizes in floating point.

    Args:
      image: both sides at least 256 pixels.
      size: pixels a side of the result.

    Returns:
      uint8 (size, size, 3).

    Raises:
      ValueError: the image is smaller than 256 pixels.
    """
    width, height = image.size
    if min(width, height) < CROP:
        raise ValueError(f"it is {width} x {height} pixels, less than {CROP} a side")
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    image = image.convert("RGB").crop((left, top, left + CROP, top + CROP))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
