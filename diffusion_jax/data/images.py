"""A set of images, and the pixel arithmetic that all sources share."""

import os
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion_jax.errors import UserError

CROP = 256
# Images that are made grey at a time.
_BLOCK = 1024
# What Pillow raises at a damaged file, whatever its format.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    MemoryError,  # a chunk that claims gigabytes
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class FileState(NamedTuple):
    """A file as it was at one moment; writing to it or replacing it changes one of these."""

    path: Path
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The state of a file now.

        Raises:
          OSError: there is none.
        """
        status = os.stat(path)
        return cls(path, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class ImageSet:
    """Images in memory or mapped from a file, with or without labels.

    Attributes:
      images: (n, height, width, channels): uint8 grey levels, where 255 stands for 1, or float32,
        which are taken as they are. Larger sets are an np.memmap, which reads what is asked for.
      labels: int64 (n,), indices into class_names; None where there are none.
      class_names: one name per class; empty without labels.
      notes: what the source found worth telling a reader of the results, one sentence each.
      file: the file that the images are mapped from, as it was then; None for images in memory.
      kept_mean: what `mean` is to be, where it is not that of the images to the last bit.

    Raises:
      UserError: images of another rank, or not one label each that is the index of a class.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    file: FileState | None = None
    kept_mean: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or (self.labels is not None and self.labels.shape != (n,)):
            shape = None if self.labels is None else self.labels.shape
            raise UserError(
                f"a set of images is (n, height, width, channels) with a label each, not "
                f"{self.images.shape} with labels {shape}"
            )
        if self.labels is not None:
            self._check_labels(self.labels, len(self.class_names))

    @staticmethod
    def _check_labels(labels: np.ndarray, count: int) -> None:
        if labels.dtype.kind not in "iu":
            raise UserError(f"labels are indices of class names, integers, not {labels.dtype}")
        wrong = (labels < 0) | (labels >= count)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise UserError(
                f"labels[{place}] = {labels[place]} is no index of the {count} class name(s): "
                f"labels lie between 0 and {count - 1}"
            )

    @cached_property
    def mean(self) -> np.ndarray:
        """Per-channel mean of the images on the scale of [0, 1], float32 (channels,).

        Summed in integers for uint8, so that it is the same on every machine; in float64 for
        float32.
        """
        if self.kept_mean is not None:
            return self.kept_mean
        integer = self.images.dtype == np.uint8
        total = np.zeros(self.images.shape[-1], np.int64 if integer else np.float64)
        # Image by image, which is 20 times faster than over all axes, and so few that 32 bits do.
        step = max(1, min(2**16, 2**26 // max(1, self.images[:1].nbytes)))
        for start in range(0, len(self.images), step):
            part = self.images[start : start + step]
            summed: np.ndarray = part.sum(axis=0, dtype=np.uint32 if integer else np.float64)
            total += summed.sum(axis=(0, 1), dtype=total.dtype)
        pixels = self.images.size // self.images.shape[-1]
        return (total / ((255 if integer else 1) * pixels)).astype(np.float32)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Least and largest value that `centred` images may have, float32 (channels,) each.

        0 and 1 minus the mean for grey levels; None for floats.
        """
        return (-self.mean, 1 - self.mean) if self.images.dtype == np.uint8 else None

    def centred(self, chosen: Any = slice(None)) -> np.ndarray:
        """Images on the scale of [0, 1], minus the mean of all, float32.

        Args:
          chosen: indices or a slice; all images by default.
        """
        images = self.images[chosen]
        return images / np.float32(255 if images.dtype == np.uint8 else 1) - self.mean


def in_grey(images: ImageSet) -> ImageSet:
    """The same images in one channel: ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B, rounded.

    As Pillow's mode L has it, to the last bit. Images of one channel stay as they are.

    Raises:
      UserError: images that are neither grey nor RGB.
    """
    channels = images.images.shape[-1]
    if channels == 1:
        return images
    if channels != 3:
        raise UserError(f"grey needs images of 1 or 3 channels, and these have {channels}")
    luma = np.empty((*images.images.shape[:-1], 1), np.uint8)
    for i in range(0, len(luma), _BLOCK):
        red, green, blue = np.moveaxis(images.images[i : i + _BLOCK].astype(np.uint32), -1, 0)
        luma[i : i + _BLOCK, ..., 0] = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return replace(images, images=luma, file=None)


def require_images(held: str, available: int, first: int, count: int) -> None:
    """Refuses more images of a class than its source holds, those held out among them.

    Args:
      held: the beginning of the message, such as "mnist holds 500 images of each digit".
      available: how many a class has.
      first: rank of the first image wanted: for held-out images, how many come before them.
      count: how many are wanted from there on.

    Raises:
      UserError: the ranks wanted go beyond `available`.
    """
    if first + count > available:
        wanted, most = f"images_per_class = {count}", f"{available} or fewer"
        if first > 0:
            wanted = (
                f"those before (trained on, or left out) and those asked for = {first} + {count}"
            )
            most += " in all"
        raise UserError(f"{held}, fewer than {wanted}; ask for {most}")


def open_image(source: IO[bytes], formats: tuple[str, ...]) -> Image.Image:
    """Opens an image, of which only the header is read, and refuses absurd ones.

    Args:
      source: a file.
      formats: Pillow's names of the formats that may be tried, and no others.

    Raises:
      Image.DecompressionBombError, Image.DecompressionBombWarning: the header claims more than
        Image.MAX_IMAGE_PIXELS pixels (89 million), of which Pillow itself only warns.
      OSError, ValueError, ...: see `UNREADABLE`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF, which nobody reads here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(source, formats=formats)
        except UnidentifiedImageError as error:
            raise ValueError(_reason(source, formats)) from error


def _reason(file: IO[bytes], formats: tuple[str, ...]) -> str:
    """Why none of these formats is that of a file: Pillow itself says no more than that."""
    file.seek(0)
    beginning = file.read(16)
    for name in formats:
        reader, accepts = Image.OPEN[name]
        if accepts is not None and accepts(beginning) is True:
            file.seek(0)
            try:
                reader(file, "")
            except Exception as error:  # whatever a damaged header makes Pillow raise
                return f"{name}: {error}"
    return f"it is none of {', '.join(formats)}" if len(formats) > 1 else f"it is no {formats[0]}"


def crop_and_resize(image: Image.Image, side: int, size: int) -> np.ndarray:
    """The central square of an image, resized with antialiasing (Pillow's BILINEAR).

    The crop's corner is rounded as torchvision rounds it.

    Args:
      image: both sides at least `side` pixels, mode L or RGB.
      side: pixels per side of the square.
      size: pixels per side of the result.

    Returns:
      uint8 (size, size) or (size, size, 3).
    """
    left, top = (round((length - side) / 2) for length in image.size)
    return fit(image.crop((left, top, left + side, top + side)), size, size)


def fit(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The largest central part of an image that has a shape, resized to it with antialiasing.

    Args:
      image: at least as large, mode L or RGB.
      height: pixels of the result.
      width: pixels of the result.

    Returns:
      uint8 (height, width) or (height, width, 3); an image of this size as it is.
    """
    scale = min(image.width / width, image.height / height)
    across, down = round(scale * width), round(scale * height)
    left, top = round((image.width - across) / 2), round((image.height - down) / 2)
    image = image.crop((left, top, left + across, top + down))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def centre_crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
    """The original's pre-processing: the central 256 x 256 pixels, resized with antialiasing.

    The result is within one grey level of the original's, which resizes in floating point.

    Args:
      image: both sides at least 256 pixels.
      size: pixels per side of the result.

    Returns:
      uint8 (size, size, 3).

    Raises:
      ValueError: the image is smaller than 256 pixels.
    """
    width, height = image.size
    if min(width, height) < CROP:
        raise ValueError(f"it is {width} x {height} pixels, less than {CROP} per side")
    return crop_and_resize(image.convert("RGB"), CROP, size)
