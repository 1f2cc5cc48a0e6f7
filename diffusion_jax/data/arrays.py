"""Images and labels in a NumPy file: .npy, or .npz with names."""

import io
import math
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from diffusion_jax.data.checks import chunks, grey_notes, require_memory
from diffusion_jax.data.images import FileState, ImageSet
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import UserError

IMAGE_NAMES = ("images", "x")
LABEL_NAMES = ("labels", "y")
MAX_CHANNELS = 4
_MOST_HEADER = 2**16

# What numpy and zipfile raise at damaged files.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class Header(NamedTuple):
    """What an array's file says of it: shape, whether in Fortran's order, type."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def load(
    path: Path,
    selection: Selection | None = None,
    memory_gib: float | None = None,
    store: Store | None = None,
) -> ImageSet:
    """Loads images, and labels if there are any.

    An .npy file holds the images alone. In an .npz file they are called `images` or `x`, or are the
    only array of numbers with two axes or more; labels are called `labels` or `y`, one integer or
    string per image. Nothing is ever unpickled.

    Images are (n, height, width), (n, height, width, channels) with 1 to 4 channels, or flattened,
    (n, d): these become square images of one channel where d is a square, else rows of d pixels, so
    that flattened colours count as one channel. Channels first are refused, not guessed.

    Integers must be grey levels from 0 to 255, where 255 stands for 1; booleans are 0 and 1. Floats
    are taken as they are, in float32. They belong in [0, 1], minus a mean if you like: Lambda, t_S
    and the entropies depend on the scale. So values outside [0, 1] are noted, and floats that look
    like grey levels (whole numbers, some above 2) refused.

    Args:
      path: an .npy or .npz file.
      selection: which images of each label, or of all where there are no labels; all by default.
      memory_gib: memory that loading may take, in GiB; by default what is free.
      store: an .npy of uint8 that is larger than its limit is mapped in place, not loaded.

    Returns:
      uint8 or float32 images in the file's order; classes in the order of the labels' values, or of
      the selection.

    Raises:
      UserError: a file that cannot be read or holds Python objects; no or several candidates for
        the images; another shape or type; values that are not finite, or no grey levels; labels
        that do not fit the images; too large an array for the memory; no such class, or fewer
        images than asked for.
    """
    selection = selection or Selection(exact=False)
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    archived = path.suffix.lower() == ".npz"
    found: dict[str, Header] = {}
    name, label_name, state = "", None, None
    with reading(path):
        if archived:
            with zipfile.ZipFile(path) as archive:
                found = headers(archive)
                name, label_name = _choose(path, found)
                header = found[name]
                if label_name:
                    each = found[label_name]
                    _check_labels(path, label_name, each.shape, each.dtype, header.shape)
                    require_memory(f"loading the labels of {path}", each.num_bytes, memory_gib)
                    labels, class_names = _labels(read(archive, label_name))
        else:
            with path.open("rb") as file:
                header = read_header(file)
        height, width, channels = _image_shape(path, header.shape, header.dtype)
        n = header.shape[0]
        chosen, labels, class_names = selection.rows(str(path), n, labels, class_names)
        result = np.dtype(np.float32 if header.dtype.kind == "f" else np.uint8)
        num_bytes = len(chosen) * math.prod(header.shape[1:]) * result.itemsize
        mapped = store is not None and not archived and not store.fits(num_bytes)
        mapped = mapped and header.dtype == np.uint8 and not header.fortran
        if archived:  # it is unpacked whole, beside the result
            num_bytes += header.num_bytes
        if not mapped:
            require_memory(f"loading {path}", num_bytes, memory_gib)
        if archived:
            with zipfile.ZipFile(path) as archive:
                stored = read(archive, name)
        else:
            state = FileState.of(path) if mapped else None
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped:  # an .npy has no labels, so that the images chosen are consecutive
        images = stored[chosen[0] : chosen[-1] + 1]
        notes = grey_notes(path, images)
    else:
        images, notes = _convert(path, stored, chosen, result)
    notes += _channel_notes(path, channels)
    if unused := ", ".join(sorted(set(found) - {name, label_name})):
        notes = (*notes, f"{path} also holds {unused}, not used: labels are called labels or y")
    return ImageSet(
        images.reshape(-1, height, width, channels),
        labels,
        class_names,
        notes,
        state,
    )


def image_set(images: np.ndarray, labels: np.ndarray | None = None) -> ImageSet:
    """Images and labels that are in memory already, by the rules of `load`.

    Args:
      images: as an .npy file holds them, see `load`.
      labels: one integer or string per image (n,).

    Raises:
      UserError: see `load`.
    """
    what = "the array of images"
    try:
        stored, labels = np.asarray(images), None if labels is None else np.asarray(labels)
    except ValueError as error:  # rows of unequal length
        raise UserError(
            f"images and labels are arrays, or lists of equal shapes: {error}"
        ) from error
    height, width, channels = _image_shape(what, stored.shape, stored.dtype)
    found: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    if labels is not None:
        if labels.dtype == object and all(isinstance(label, str) for label in labels.flat):
            labels = labels.astype(str)  # as pandas holds them
        _check_labels(what, "labels", labels.shape, labels.dtype, stored.shape)
        found, class_names = _labels(labels)
    result = np.dtype(np.float32 if stored.dtype.kind == "f" else np.uint8)
    converted, notes = _convert(what, stored, range(len(stored)), result)
    notes += _channel_notes(what, channels)
    return ImageSet(converted.reshape(-1, height, width, channels), found, class_names, notes)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Makes whatever numpy and zipfile raise in the block a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as a NumPy file: {reason:.300}") from error


def read_header(file: IO[bytes]) -> Header:
    """Shape and type of an array, from the beginning of its file.

    Raises:
      ValueError: it is no array, or of a negative length.
    """
    # No more, whatever length of the header is claimed: numpy takes at most 10 000 bytes.
    start, head = file.tell(), io.BytesIO(file.read(_MOST_HEADER))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    header = Header(*read(head))
    file.seek(start + head.tell())
    if min(header.shape, default=0) < 0:
        raise ValueError(f"its shape is {header.shape}")
    return header


def headers(archive: zipfile.ZipFile) -> dict[str, Header]:
    """The headers of an .npz file's arrays, by name."""
    found = {}
    for member in archive.namelist():
        if member.endswith(".npy"):
            with archive.open(member) as file:
                found[member.removesuffix(".npy")] = read_header(file)
    return found


def read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an .npz file; check its header before, which says how large it is."""
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _labels(stored: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Indices into the names of the labels, and the names."""
    if stored.dtype.kind == "U" and stored.dtype.itemsize:
        codes = np.ascontiguousarray(stored).view(f"{stored.dtype.byteorder}u4")
        if codes.max() > sys.maxunicode:
            raise ValueError("labels hold characters that are none")
    names, labels = np.unique(stored, return_inverse=True)
    texts = (
        value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
        for value in names
    )
    return labels.reshape(-1).astype(np.int64), tuple(texts)


def _choose(path: Path, headers: dict[str, Header]) -> tuple[str, str | None]:
    """The names of the images and of the labels."""
    label_name = next((name for name in LABEL_NAMES if name in headers), None)
    candidates = [name for name in IMAGE_NAMES if name in headers] or [
        name
        for name, header in headers.items()
        if len(header.shape) >= 2 and header.dtype.kind in "fiub" and name != label_name
    ]
    if len(candidates) != 1:
        held = ", ".join(f"{name} {each.dtype}{each.shape}" for name, each in headers.items())
        raise UserError(
            f"{path} holds {'several arrays' if candidates else 'no array'} that could be the "
            f"images (it has: {held or 'nothing'}); save them with "
            f"numpy.savez(file, images=..., labels=...)"
        )
    return candidates[0], label_name


def _image_shape(path: Path | str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """Height, width and channels, after checking that type and shape are those of images."""
    if dtype.hasobject:
        raise UserError(
            f"{path} holds Python objects, which are never unpickled (images of different sizes, "
            f"perhaps): give one array of numbers"
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
        advice = "channels come last; give images.transpose(0, 2, 3, 1)"
    elif len(shape) == 4:
        advice = f"there are at most {MAX_CHANNELS} channels, and they come last"
    raise UserError(f"{path} has shape {shape}: {advice}")


def _check_labels(
    path: Path | str,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    images: tuple[int, ...],
) -> None:
    if dtype.kind not in "iubUS":
        raise UserError(f"{name} of {path} are {dtype}: labels are integers or strings")
    if shape not in (images[:1], (*images[:1], 1)):
        raise UserError(
            f"{name} of {path} have shape {shape} for images of shape {images}: give one label per "
            f"image, {images[:1]}"
        )


def _refuse(
    path: Path | str, places: np.ndarray, values: np.ndarray, bad: np.ndarray, why: str
) -> None:
    """Raises a UserError that names the first bad value and its place in the file."""
    if bad.any():
        first, *rest = np.argwhere(bad)[0].tolist()
        place = [int(places[first]), *rest]
        raise UserError(f"{path}: images{place} is {values[first, *rest]}, {why}")


def _channel_notes(path: Path | str, channels: int) -> tuple[str, ...]:
    if channels not in (2, 4):  # grey or colours, and most often transparency
        return ()
    return (
        f"{path} is taken as {channels} channels: if the last is transparency, give "
        f"images[..., :{channels - 1}]",
    )


def _convert(
    path: Path | str, stored: np.ndarray, chosen: np.ndarray | range, result: np.dtype
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The chosen images in their final type, checked, and notes on their values."""
    images = np.empty((len(chosen), *stored.shape[1:]), result)
    low, high, whole = math.inf, -math.inf, True
    for part in chunks(images):
        places = np.asarray(chosen[part])
        values = stored[places]
        if stored.dtype.kind == "b":
            values = values.astype(np.uint8) * np.uint8(255)
        elif stored.dtype.kind in "iu" and stored.dtype != np.uint8:
            why = "no grey level: integers lie in 0..255, and 255 stands for 1"
            _refuse(path, places, values, (values < 0) | (values > 255), why)
        with np.errstate(over="ignore"):
            images[part] = values
        if result == np.float32:
            bad = ~np.isfinite(images[part])
            _refuse(path, places, values, bad, "not a finite number in float32")
            whole = whole and np.array_equal(images[part], np.rint(images[part]))
        low, high = min(low, float(images[part].min())), max(high, float(images[part].max()))
    if result == np.uint8:
        return images, grey_notes(path, images)
    if high > 2 and whole:
        raise UserError(
            f"{path} holds floats that look like grey levels (whole numbers from {low:g} to "
            f"{high:g}): give them as uint8 if they are, else divided to lie in [0, 1]"
        )
    if low < 0 or high > 1:
        return images, (
            f"the values of {path} lie between {low:.4g} and {high:.4g}, not in [0, 1]; they are "
            f"taken as they are, and Lambda, t_S and t_C depend on their scale",
        )
    return images, ()
