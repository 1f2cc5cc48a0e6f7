"""People's own image files: what their headers say, and all of them read into one array.

A reader of such images (of a folder, of a table) makes a list of `Picture`s and hands it to `load`,
which holds them all to the same rules:

    pictures = [Picture(str(path), path) for path in paths]         # files
    pictures = [Picture(f"{table} row {i}", partial(open_row, i)) for i in rows]  # or bytes
    images, file, notes = pictures.load(str(folder), pictures, image_size, store=store, key=key)
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from rich.console import Console
from rich.progress import track

from diffusion_jax.data.checks import grey_notes, require_memory
from diffusion_jax.data.faults import Faults
from diffusion_jax.data.images import UNREADABLE, FileState, fit, open_image
from diffusion_jax.data.orientation import size_as_seen, upright
from diffusion_jax.data.storage import Store, source_files, stored
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import write_json

ImageSize = int | tuple[int, int]
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")


class Picture(NamedTuple):
    """An image file, wherever its bytes are.

    Attributes:
      name: what messages call it, such as its path.
      source: its path, or a function that opens its bytes; it is opened twice, for the header and
        for the pixels.
    """

    name: str
    source: Path | Callable[[], IO[bytes]]


class Header(NamedTuple):
    """What is known of an image before its pixels are read.

    Attributes:
      size: width and height as the image is seen, after its orientation was applied.
      grey: whether it has no colours.
      transparent: whether it may be transparent somewhere.
    """

    size: tuple[int, int]
    grey: bool
    transparent: bool


class Loaded(NamedTuple):
    """What `load` makes of pictures.

    Attributes:
      images: uint8 (n, height, width, channels), in the order of the pictures.
      file: the file that they are mapped from, if they are.
      notes: what a reader of the results should know, one sentence each.
    """

    images: np.ndarray
    file: FileState | None
    notes: tuple[str, ...]


def inspect(picture: Picture) -> Header:
    """What an image's header says.

    Raises:
      UserError: it cannot be read, holds several frames, or has more than 8 bits per channel.
    """
    with _opened(picture) as image:
        if (bits := _bits(image)) > 8:
            raise UserError(
                f"{picture.name} has more than 8 bits per channel ({bits}): convert to 8 bits, or "
                f"save the images as floats in [0, 1] in an .npy file"
            )
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview in it
            raise UserError(f"{picture.name} holds {frames} images: save each as a file of its own")
        grey = image.mode in ("1", "L", "LA", "La")
        if image.mode == "P":
            palette = np.reshape(image.getpalette() or [], (-1, 3))
            grey = bool(np.all(palette == palette[:, :1]))
        return Header(size_as_seen(image), grey, image.has_transparency_data)


def load(
    what: str,
    pictures: Sequence[Picture],
    image_size: ImageSize | None = None,
    memory_gib: float | None = None,
    store: Store | None = None,
    key: Any = None,
) -> Loaded:
    """Reads images into one array.

    Each is taken as it is seen: the orientation in its EXIF is applied. Palettes are turned into
    their colours, and transparency is dropped, which a note says. The images have one channel if
    all are grey, else three.

    Args:
      what: what holds the pictures, for messages, such as the path of their folder.
      pictures: one or more.
      image_size: pixels per side, or (height, width). The largest central part of that shape is cut
        out of each image and resized to it with antialiasing (Pillow's BILINEAR, as for LSUN),
        never enlarged. By default all images must have one size, and are taken as they are.
      memory_gib: memory that the images may take, in GiB; by default what is free. Not with store.
      store: where the images go if they are larger than its limit; without it they are refused.
      key: for the store: tells these pictures from all others, beside the names, sizes and times
        of those that are files; JSON must know its types.

    Raises:
      UserError: pictures that cannot be used, all of which are named at once (see `inspect`; and
        damaged pixels); images of different sizes without image_size, or smaller than it; too many
        images for the memory.
    """
    headers = _headers(what, pictures, image_size)
    width, height = _common_size(pictures, [header.size for header in headers], image_size)
    mode, channels = ("L", 1) if all(header.grey for header in headers) else ("RGB", 3)
    shape = (len(pictures), height, width, channels)
    translucent = [
        picture for picture, header in zip(pictures, headers, strict=True) if header.transparent
    ]
    target = None if image_size is None else (height, width)
    counted: list[int] = []  # by `fill`, unless the images were prepared at an earlier start

    def fill(images: np.ndarray) -> None:
        faults, transparent = Faults(), 0
        for place, picture in enumerate(_watched(pictures, "Reading images")):
            with faults.collected():
                pixels, is_transparent = _read(picture, mode, target)
                if pixels.shape != shape[1:]:
                    raise UserError(f"{picture.name} was changed while it was read")
                images[place] = pixels
                transparent += is_transparent
        faults.refuse(f"images of {what}", len(pictures))
        counted.append(transparent)
        if translucent and isinstance(images, np.memmap):
            write_json(memo, transparent)

    if store is None:
        require_memory(f"loading {len(pictures)} images of {what}", math.prod(shape), memory_gib)
        images, file = np.empty(shape, np.uint8), None
        fill(images)
    else:
        key = [_RULES, image_size, key, _states(what, pictures)]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        memo = store.folder / f"images-{digest}.transparent.json"
        images, file = stored(store, shape, fill, key)
    count = counted[0] if counted else _transparent(translucent, memo)
    text = f"{count} of {len(pictures)} images have transparency, which was dropped"
    return Loaded(images, file, (*grey_notes(what, images), *([text] if count else [])))


# Changes where the same files are read into other pixels than by the version before, so that none
# of its prepared files is taken for ours.
_RULES = "as seen"


def _transparent(translucent: list[Picture], memo: Path) -> int:
    """How many images are transparent, of a set that was prepared at an earlier start.

    Args:
      translucent: those that may be.
      memo: where that start wrote it down; where it is not there, they are read again.
    """
    if not translucent:
        return 0
    with suppress(OSError, ValueError, TypeError):
        return int(json.loads(memo.read_text()))
    return sum(_read(picture, "L", None)[1] for picture in translucent)


def _watched(pictures: Sequence[Picture], text: str) -> Iterable[Picture]:
    """The pictures, under a progress bar where somebody watches."""
    console = Console(stderr=True)
    return track(pictures, text, console=console, transient=True, disable=not console.is_terminal)


def _headers(what: str, pictures: Sequence[Picture], image_size: ImageSize | None) -> list[Header]:
    """The headers of all, or one error that names all that cannot be used."""
    faults, headers, whole = Faults(), [], []
    for picture in _watched(pictures, "Reading headers"):
        with faults.collected():
            headers.append(inspect(picture))
            whole.append(picture)
    if faults and whole:  # all else that is wrong with the others is said at once
        with faults.collected():
            _common_size(whole, [header.size for header in headers], image_size)
        for picture in _watched(whole, "Reading images"):
            with faults.collected():
                _read(picture, "RGB", None)
    faults.refuse(f"images of {what}", len(pictures))
    return headers


def _states(what: str, pictures: Sequence[Picture]) -> list[tuple[str, int, int]]:
    """What tells the files among the pictures from changed ones."""
    faults, states = Faults(), []
    for picture in pictures:
        if isinstance(picture.source, Path):
            with faults.collected(), _naming(picture):
                states += source_files(picture.source)
    faults.refuse(f"images of {what}", len(pictures))
    return states


@contextmanager
def _naming(picture: Picture) -> Iterator[None]:
    """Whatever goes wrong with an image in the block names it."""
    try:
        yield
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(
            f"{picture.name} cannot be read as an image ({error}); repair it or take it out"
        ) from error


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    source = picture.source
    with (
        _naming(picture),
        source.open("rb") if isinstance(source, Path) else source() as file,
        open_image(file, FORMATS) as image,
    ):
        yield image


def _bits(image: Image.Image) -> int:
    """Bits per channel, as far as they are more than 8, of an image that is not loaded yet.

    Pillow opens 16-bit images of several channels in its modes of 8 bits, and drops the lower half.
    """
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))))  # type: ignore[attr-defined]
    if image.mode == "F":
        return 32
    how = image.tile[0][3] if image.tile else ""  # type: ignore[attr-defined]
    if image.format == "PPM" and isinstance(how, tuple):
        return int(how[-1]).bit_length()  # of the largest level
    return 16 if image.mode[0] == "I" or (image.format == "PNG" and ";16" in how) else 8


def _read(picture: Picture, mode: str, shape: tuple[int, int] | None) -> tuple[np.ndarray, bool]:
    """The pixels (height, width, channels), cut and resized to a shape if one is given.

    And whether any is transparent.
    """
    with _opened(picture) as image:
        image = upright(image)
        transparent = False
        if image.has_transparency_data:
            image = image.convert("RGBA")
            transparent = bool(np.asarray(image.getchannel("A")).min() < 255)
        image = image.convert(mode)
        pixels = np.asarray(image) if shape is None else fit(image, *shape)
        return pixels.reshape(*pixels.shape[:2], -1), transparent


def _common_size(
    pictures: Sequence[Picture], sizes: list[tuple[int, int]], image_size: ImageSize | None
) -> tuple[int, int]:
    """Width and height of the loaded images."""
    if image_size is not None:
        shape = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        height, width = shape
        rooms = [min(size[0] / width, size[1] / height) for size in sizes]
        smallest = int(np.argmin(rooms))
        if rooms[smallest] < 1:
            least = (
                f"; give --image-size {min(sizes[smallest])} or less"
                if image_size == height
                else ""
            )
            raise UserError(
                f"{pictures[smallest].name} is {' x '.join(map(str, sizes[smallest]))} pixels, "
                f"smaller than image_size = {image_size}: images are not enlarged{least}"
            )
        return width, height
    common, count = Counter(sizes).most_common(1)[0]
    if count < len(sizes):
        other = next(i for i, size in enumerate(sizes) if size != common)
        alone, side = count == len(sizes) - 1, min(map(min, sizes))
        raise UserError(
            f"{pictures[other].name} is {' x '.join(map(str, sizes[other]))} pixels, but "
            f"{pictures[sizes.index(common)].name} is {' x '.join(map(str, common))}"
            f"{'' if alone else f', and {len(sizes) - count} of {len(sizes)} images are not'}: "
            f"--image-size {side} (or less) cuts out the central square of each and resizes it"
        )
    return common
