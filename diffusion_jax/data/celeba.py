"""CelebA's aligned faces in two classes, by the attribute Male."""

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from diffusion_jax.data.images import UNREADABLE, ImageSet, crop_and_resize, open_image
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Source
from diffusion_jax.data.storage import Store, source_files, stored
from diffusion_jax.errors import UserError

URL = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FOLDER, ARCHIVE, ATTRIBUTES = "img_align_celeba", "img_align_celeba.zip", "list_attr_celeba.txt"
CLASSES = ("female", "male")
WIDTH, HEIGHT = 178, 218
_MOST_BYTES = 2**20  # of a file; the largest has some 40 kB


def load(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    """Loads aligned faces, class after class, in the order of their numbers.

    The central 178 x 178 pixels of the 178 x 218 are cut out and resized with antialiasing. The
    training partition comes first in CelebA: files 000001 to 162770.

    Args:
      data_dir: holds list_attr_celeba.txt, and img_align_celeba.zip, of which nothing is unpacked,
        or the folder img_align_celeba that it unpacks to.
      image_size: pixels a side, 178 at most.
      selection: female and male, and which images of each.
      store: where the images go if they are larger than its limit.

    Returns:
      uint8 images of three channels.

    Raises:
      UserError: files that are missing or damaged; no such class; fewer images than asked for; a
        size that is too large.
    """
    if image_size > WIDTH:
        raise UserError(f"image_size = {image_size}: CelebA's images are {WIDTH} pixels wide")
    wanted = selection.of("CelebA", CLASSES)
    classes = tuple(CLASSES[label] for label in wanted)
    source = data_dir / FOLDER if (data_dir / FOLDER).is_dir() else data_dir / ARCHIVE
    for path in (source, data_dir / ATTRIBUTES):
        if not path.exists():
            raise UserError(
                f"CelebA was not found: {data_dir} should hold {ATTRIBUTES} and {ARCHIVE} (or the "
                f"folder {FOLDER} that it unpacks to), and {path.name} is missing; get them from "
                f"{URL} (Align&Cropped Images, Attributes Annotations), put them there or name "
                f"their folder with --data-dir"
            )
    files, male = _attributes(data_dir / ATTRIBUTES)
    places = selection.places("celeba", male, wanted, classes)
    names = [files[place] for place in chain(*places)]

    def fill(images: np.ndarray) -> None:
        bar = track(names, "Reading CelebA", console=Console(stderr=True), transient=True)
        for place, face in enumerate(_faces(source, bar, image_size)):
            images[place] = face

    key = [
        "celeba",
        source_files(source, data_dir / ATTRIBUTES),
        classes,
        selection.first,
        selection.count,
    ]
    pixels, file = stored(store, (len(names), image_size, image_size, 3), fill, key)
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in places])
    return ImageSet(pixels, labels, classes, file=file)


def _attributes(path: Path) -> tuple[list[str], np.ndarray]:
    """The files' names, in order, and whether each shows a man (n,)."""
    names, male = [], []
    try:
        with path.open(encoding="ascii") as file:
            next(file)  # the number of images
            column = 1 + next(file).split().index("Male")
            for line in file:
                name, value = line.split()[0], line.split()[column]
                # The name becomes a path.
                if not re.fullmatch(r"\d{6}\.jpg", name) or value not in ("1", "-1"):
                    raise ValueError(f"{name} is {value}")
                names.append(name)
                male.append(value == "1")
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise UserError(
            f"{path} holds other things than CelebA's attributes after {len(names)} lines of them "
            f"({error}); get it again: {URL}"
        ) from error
    return names, np.array(male, bool)


def _faces(source: Path, names: Iterable[str], image_size: int) -> Iterator[np.ndarray]:
    """Reads the files named, from the archive or the folder."""
    with ExitStack() as stack:
        archive = None
        try:
            if source.suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(source))
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{source} cannot be read ({error}); get it again: {URL}") from error
        for name in names:
            try:
                if archive is None:
                    size = (source / name).stat().st_size
                else:
                    size = archive.getinfo(f"{FOLDER}/{name}").file_size
                if size > _MOST_BYTES:
                    raise ValueError(f"it has {size} bytes")
                data = (
                    (source / name).read_bytes()
                    if archive is None
                    else archive.read(f"{FOLDER}/{name}")
                )
                with open_image(io.BytesIO(data), ("JPEG",)) as image:
                    if image.size != (WIDTH, HEIGHT):
                        raise ValueError(f"it is {image.width} x {image.height} pixels")
                    face = crop_and_resize(image.convert("RGB"), WIDTH, image_size)
            except (*UNREADABLE, KeyError, RuntimeError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"{name} of {source} is no aligned face of CelebA, {WIDTH} x {HEIGHT} pixels "
                    f"({error}); get {ARCHIVE} again: {URL}"
                ) from error
            yield face


SOURCE = Source(
    about="faces of women and men, by the attribute Male of CelebA",
    load=load,
    defaults=Defaults(CLASSES, 10_000, 64),
    classes=CLASSES,
    preprocessing=f"central {WIDTH} x {WIDTH}, antialiased",
    files=f"`{ATTRIBUTES}`, and `{ARCHIVE}` as it is or the folder in it",
    origin=f"<{URL}>",
)
