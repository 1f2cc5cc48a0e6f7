"""Images and labels in a NumPy file: .npy, or .npz with names."""

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from diffusion_jax.data.checks import chunks, require_memory
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError

IMAGE_NAMES = ("images", "x")
LABEL_NAMES = ("labels", "y")
MAX_CHANNELS = 4

# What numpy and zipfile raise at damaged files.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

Header = tuple[tuple[int, ...], np.dtype]


def load(
    path: Path, images_per_class: int | None = None, memory_gib: float | None = None
) -> ImageSet:
    """Loads images, and labels if there are any.

    An .npy file holds the images alone. In an .npz file they are called `images` or `x`, or are the
    only array of numbers with two axes or more; labels are called `labels` or `y`, one integer or
    string an image. Nothing is ever unpickled.

    Images are (n, height, width), (n, height, width, channels) with 1 to 4 channels, or flattened,
    (n, d): these become square images of one channel where d is a square, else rows of d pixels, so
    that flattened colours count as one channel. Channels first are refused, not guessed.

    Integers must be grey levels from 0 to 255, where 255 stands for 1; booleans are 0 and 1. Floats
    are taken as they are, in float32. They belong in [0, 1], less a mean if you like: Lambda, t_S
    and the entropies depend on the scale. So values outside [0, 1] are noted, and floats that look
    like grey levels (whole numbers, some above 2) refused.

    Args:
      path: an .npy or .npz file.
      images_per_class: at most the first so many of each label; of all, without labels.
      memory_gib: memory that loading may take, in GiB; by default what is free.

    Returns:
      uint8 or float32 images in the file's order; classes in the order of the labels' values.

    Raises:
      UserError: a file that cannot be read or holds Python objects; no or several candidates for
        the images; another shape or type; values that are not finite, or no grey levels; labels
        that do not fit the images; too large an array for the memory.
    """
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    archived = path.suffix.lower() == ".npz"
    headers: dict[str, Header] = {}
    name, label_name = "", None
    try:
        if archived:
            with zipfile.ZipFile(path) as archive:
                headers = _headers(archive)
                name, label_name = _choose(path, headers)
                shape, dtype = headers[name]
                if label_name:
                    _check_labels(path, label_name, headers[label_name], shape)
                    names, labels = np.unique(_read(archive, label_name), return_inverse=True)
                    labels = labels.reshape(-1).astype(np.int64)
                    class_names = tuple(
                        v.decode() if isinstance(v, bytes) else str(v) for v in names
                    )
        else:
            with path.open("rb") as file:
                shape, dtype = _header(file)
        height, width, channels = _image_shape(path, shape, dtype)
        chosen = _first(shape[0], labels, images_per_class)
        result = np.dtype(np.float32 if dtype.kind == "f" else np.uint8)
        num_bytes = len(chosen) * math.prod(shape[1:]) * result.itemsize
        if archived:  # it is unpacked whole, beside the result
            num_bytes += math.prod(shape) * dtype.itemsize
        require_memory(f"loading {path}", num_bytes, memory_gib)
        if archived:
            with zipfile.ZipFile(path) as archive:
                stored = _read(archive, name)
        else:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as a NumPy file: {error}") from error
    images, notes = _convert(path, stored, chosen, result)
    if unused := ", ".join(sorted(set(headers) - {name, label_name})):
        notes = (*notes, f"{path} also holds {unused}, not used: labels are called labels or y")
    return ImageSet(
        images.reshape(-1, height, width, channels),
        None if labels is None else labels[chosen],
        class_names,
        notes,
    )


def _header(file: IO[bytes]) -> Header:
    """Shape and type of an array, from the beginning of its file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _headers(archive: zipfile.ZipFile) -> dict[str, Header]:
    found = {}
    for member in archive.namelist():
        if member.endswith(".npy"):
            with archive.open(member) as file:
                found[member.removesuffix(".npy")] = _header(file)
    return found


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _choose(path: Path, headers: dict[str, Header]) -> tuple[str, str | None]:
    """The names of the images and of the labels."""
    label_name = next((name for name in LABEL_NAMES if name in headers), None)
    candidates = [name for name in IMAGE_NAMES if name in headers] or [
        name
        for name, (shape, dtype) in headers.items()
        if len(shape) >= 2 and dtype.kind in "fiub" and name != label_name
    ]
    if len(candidates) != 1:
        held = ", ".join(f"{name} {dtype}{shape}" for name, (shape, dtype) in headers.items())
        raise UserError(
            f"{path} holds {'several arrays' if candidates else 'no array'} that could be the "
            f"images (it has: {held or 'nothing'}); save them with "
            f"numpy.savez(file, images=..., labels=...)"
        )
    return candidates[0], label_name


def _image_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """Height, width and channels, after checking that type and shape are those of images."""
    if dtype.hasobject:
        raise UserError(
            f"{path} holds Python objects, which are never unpickled (images of different sizes, "
            f"perhaps): save one array of numbers"
        )
    if dtype.kind not in "fiub":
        raise UserError(f"{path} holds {dtype}: images are integers, floats or booleans")
    if 0 in shape:
        raise UserError(f"{path} is empty: its images have shape {shape}")
    if len(shape) == 2:
        side = math.isqrt(shape[1])
        return (side, side, 1) if side**2 == shape[1] else (1, shape[1], 1)
    if len(shape) == 3 and shape[2] > MAX_CHANNELS:
        return shape[1], shape[2], 1
    if len(shape) == 4 and shape[3] <= MAX_CHANNELS:
        return shape[1], shape[2], shape[3]
    advice = "images are (n, height, width), (n, height, width, channels) or flattened, (n, d)"
    if len(shape) == 3:
        advice = (
            "its last axis is too short for the width of an image, and this may be one image with "
            "channels; give several, or (n, height, width, channels)"
        )
    elif len(shape) == 4 and shape[1] <= MAX_CHANNELS:
        advice = "channels come last; save images.transpose(0, 2, 3, 1)"
    elif len(shape) == 4:
        advice = f"there are at most {MAX_CHANNELS} channels, and they come last"
    raise UserError(f"{path} has shape {shape}: {advice}")


def _check_labels(path: Path, name: str, header: Header, images: tuple[int, ...]) -> None:
    shape, dtype = header
    if dtype.kind not in "iubUS":
        raise UserError(f"{name} of {path} are {dtype}: labels are integers or strings")
    if shape not in (images[:1], (*images[:1], 1)):
        raise UserError(
            f"{name} of {path} have shape {shape} for images of shape {images}: give one label an "
            f"image, {images[:1]}"
        )


def _first(n: int, labels: np.ndarray | None, count: int | None) -> np.ndarray:
    """The places of the first `count` images of each label, in order."""
    if labels is None or count is None:
        return np.arange(n)[:count]
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    rank = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < count])


def _refuse(path: Path, places: np.ndarray, values: np.ndarray, bad: np.ndarray, why: str) -> None:
    """Raises a UserError that names the first bad value and its place in the file."""
    if bad.any():
        first, *rest = np.argwhere(bad)[0].tolist()
        place = [int(places[first]), *rest]
        raise UserError(f"{path}: images{place} is {values[first, *rest]}, {why}")


def _convert(
    path: Path, stored: np.ndarray, chosen: np.ndarray, result: np.dtype
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The chosen images in their final type, checked, and notes on their values."""
    images = np.empty((len(chosen), *stored.shape[1:]), result)
    low, high, whole = math.inf, -math.inf, True
    for part in chunks(images):
        values = stored[chosen[part]]
        if stored.dtype.kind == "b":
            values = values.astype(np.uint8) * np.uint8(255)
        elif stored.dtype.kind in "iu":
            why = "no grey level: integers lie in 0..255, and 255 stands for 1"
            _refuse(path, chosen[part], values, (values < 0) | (values > 255), why)
        with np.errstate(over="ignore"):
            images[part] = values
        if result == np.float32:
            bad = ~np.isfinite(images[part])
            _refuse(path, chosen[part], values, bad, "not a finite number in float32")
            whole = whole and np.array_equal(images[part], np.rint(images[part]))
        low, high = min(low, float(images[part].min())), max(high, float(images[part].max()))
    if result == np.uint8:
        if 0 < high < 128:
            return images, (
                f"the largest grey level of {path} is {high:.0f}, taken out of 255: if that is not "
                f"its scale, save floats in [0, 1]",
            )
        return images, ()
    if high > 2 and whole:
        raise UserError(
            f"{path} holds floats that look like grey levels (whole numbers from {low:g} to "
            f"{high:g}): save them as uint8 if they are, else divided to lie in [0, 1]"
        )
    if low < 0 or high > 1:
        return images, (
            f"the values of {path} lie between {low:.4g} and {high:.4g}, not in [0, 1]; they are "
            f"taken as they are, and Lambda, t_S and t_C depend on their scale",
        )
    return images, ()
