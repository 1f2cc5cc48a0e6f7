"""CelebA's aligned faces in two classes, by the attribute Male."""

import io
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from diffusion_jax.data import layouts
from diffusion_jax.data.faults import Faults, with_others
from diffusion_jax.data.images import UNREADABLE, ImageSet, crop_and_resize, open_image
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Source
from diffusion_jax.data.storage import Store, source_files, stored
from diffusion_jax.errors import MissingData, UserError

URL = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FOLDER, ARCHIVE = "img_align_celeba", "img_align_celeba.zip"
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
CLASSES = ("female", "male")
WIDTH, HEIGHT = 178, 218
_MOST_BYTES = 2**20  # of an image; the largest has some 40 kB
_MOST_BYTES_OF_LIST = 2**26  # it has 27 MB
_IMAGE = re.compile(r"\d{6}\.jpg")
_DAMAGED_ZIP = (KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError)
_KNOWN = {
    r"\d{6}\.png|img_align_celeba_png.*": (
        f"{{path}} is of the PNG version, which is not read: get {ARCHIVE}"
    ),
    r"img_celeba(\..*)?": "{path} holds the images before they were aligned",
}


class _Holder(NamedTuple):
    """A folder or an archive that holds some of the files."""

    path: Path
    members: dict[str, str]  # where in it each lies, by its name
    archive: zipfile.ZipFile | None = None

    def read(self, name: str, most_bytes: int) -> bytes:
        """The content of a file, whose size is checked first."""
        member = self.members[name]
        if self.archive is None:
            size = (self.path / member).stat().st_size
        else:
            size = self.archive.getinfo(member).file_size
        if size > most_bytes:
            raise ValueError(f"it has {size} bytes")
        if self.archive is None:
            return (self.path / member).read_bytes()
        return self.archive.read(member)


def load(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    """Loads aligned faces, class after class, in the order of their numbers.

    The central 178 x 178 pixels of the 178 x 218 are cut out and resized with antialiasing. The
    training partition comes first in CelebA: files 000001 to 162770.

    Args:
      data_dir: holds list_attr_celeba.txt or Kaggle's .csv, and img_align_celeba.zip, of which
        nothing is unpacked, or the images in it; or folders in it do, or Kaggle's archive of them
        all. An image is read from whichever of these has it whole.
      image_size: pixels per side, 178 at most.
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
    with ExitStack() as stack:
        unopened = Faults()
        holders = [*_unpacked(data_dir), *_packed(data_dir, stack, unopened)]
        list_path, files, male = _attributes(data_dir, holders)
        places = selection.places("celeba", male, wanted, classes)
        names = [files[place] for place in chain(*places)]
        used = [each for each in holders if not each.members.keys().isdisjoint(names)]
        if missing := [name for name in names if not any(name in each.members for each in used)]:
            unopened.refuse(f"archives in {data_dir}", len(unopened))
            raise _not_whole(data_dir, used, names, missing)

        def fill(images: np.ndarray) -> None:
            for place, face in _faces(used, names, image_size):
                images[place] = face

        sources = source_files(*(each.path for each in used), list_path)
        key = ["celeba", sources, classes, selection.first, selection.count]
        pixels, file = stored(store, (len(names), image_size, image_size, 3), fill, key)
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in places])
    return ImageSet(pixels, labels, classes, file=file)


def _unpacked(data_dir: Path) -> list[_Holder]:
    """The folders that hold images, those that are called as in the archive first."""
    holders = [
        _Holder(folder, {name: name for name in files if _IMAGE.fullmatch(name)})
        for folder, files in layouts.folders(data_dir)
    ]
    return sorted((each for each in holders if each.members), key=lambda h: h.path.name != FOLDER)


def _packed(data_dir: Path, stack: ExitStack, unopened: Faults) -> Iterator[_Holder]:
    """The archives, open until the stack closes."""
    for folder, files in layouts.folders(data_dir):
        for path in (folder / name for name in files if name.lower().endswith(".zip")):
            with unopened.collected():
                try:
                    archive = stack.enter_context(zipfile.ZipFile(path))
                except (OSError, ValueError, *_DAMAGED_ZIP) as error:
                    raise UserError(
                        f"{path} cannot be read ({error!s:.300}); get it again: {URL}"
                    ) from error
                # Where there are other images too, the aligned ones are taken: they come last.
                members = sorted(archive.namelist(), key=lambda name: FOLDER in name)
                yield _Holder(path, {PurePosixPath(name).name: name for name in members}, archive)


def _not_whole(
    data_dir: Path, used: list[_Holder], names: list[str], missing: list[str]
) -> UserError:
    """Says how many of the images are where."""
    held = " and ".join(
        f"{each.path} holds {sum(name in each.members for name in names)} of them" for each in used
    )
    text = (
        f"CelebA is not whole in {data_dir}: {len(missing)} of the {len(names)} images wanted are "
        f"missing, the first {min(missing)}; {held or layouts.what_lies(data_dir, _KNOWN)}; put "
        f"{ARCHIVE} there as it is, or unpack all of it: {URL}"
    )
    present = sorted({*names} - {*missing})
    return with_others(text, lambda: deque(_faces(used, present, WIDTH), maxlen=0))


def _attributes(data_dir: Path, holders: list[_Holder]) -> tuple[Path, list[str], np.ndarray]:
    """Where the list lies, the files' names, in order, and whether each shows a man (n,)."""
    alone = [
        _Holder(path.parent, {path.name: path.name})
        for path in layouts.found(data_dir, *ATTRIBUTES)
    ]
    lists = [
        (holder, name)
        for holder in [*alone, *(each for each in holders if each.archive is not None)]
        for name in ATTRIBUTES
        if name in holder.members
    ]
    if not lists:
        raise MissingData(
            f"CelebA was not found: {data_dir} should hold {ATTRIBUTES[0]} and {ARCHIVE} (or the "
            f"folder {FOLDER} that it unpacks to), and {ATTRIBUTES[0]} is missing: "
            f"{layouts.what_lies(data_dir, _KNOWN)}; get them from {URL} (Align&Cropped Images, "
            f"Attributes Annotations), put them there or name their folder with --data-dir"
        )
    return layouts.first_usable(lists, _parsed, "CelebA's attributes")


def _parsed(where: tuple[_Holder, str]) -> tuple[Path, list[str], np.ndarray]:
    """Where a list lies, the files' names and whether each shows a man."""
    holder, file = where
    names: list[str] = []
    male: list[bool] = []
    try:
        lines = holder.read(file, _MOST_BYTES_OF_LIST).decode("utf-8-sig").splitlines()
        rows = (line.replace(",", " ").replace('"', "").split() for line in lines)
        header = next(rows, [])
        if len(header) == 1:  # the number of images, which a .csv does not tell
            header = next(rows, [])
        column = header.index("Male") - len(header)
        for row in filter(None, rows):
            values = {*row[1:]}
            # The name becomes a path. Kaggle's header has a name for its column too.
            if not _IMAGE.fullmatch(row[0]) or len(header) - len(row) not in (-1, 0):
                raise ValueError(f"the next is {' '.join(row)[:60]}")
            if not (values <= {"1", "-1"} or values <= {"1", "0"}):
                raise ValueError(f"{row[0]} has {', '.join(sorted(values))[:60]}")
            names.append(row[0])
            male.append(row[column] == "1")
        if not names:
            raise ValueError("it ends there")
    except (OSError, ValueError, IndexError, *_DAMAGED_ZIP) as error:
        raise UserError(
            f"{holder.path / file} holds other things than CelebA's attributes after {len(names)} "
            f"lines of them ({error}); get it again: {URL}"
        ) from error
    path = holder.path if holder.archive is not None else holder.path / file
    return path, names, np.array(male, bool)


def _faces(
    holders: list[_Holder], names: list[str], image_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The places and the pixels of the images that can be read; at the end the others are named."""
    bar = track(names, "Reading CelebA", console=Console(stderr=True), transient=True)
    damaged = Faults()
    for place, name in enumerate(bar):
        with damaged.collected():
            face = _face(holders, name, image_size)
            yield place, face
    damaged.refuse("images of CelebA", len(names))


def _face(holders: list[_Holder], name: str, image_size: int) -> np.ndarray:
    """Reads an image from the first holder that has it whole."""

    def read(holder: _Holder) -> np.ndarray:
        try:
            content = io.BytesIO(holder.read(name, _MOST_BYTES))
            with open_image(content, ("JPEG",)) as image:
                if image.size != (WIDTH, HEIGHT):
                    raise ValueError(f"it is {image.width} x {image.height} pixels")
                return crop_and_resize(image.convert("RGB"), WIDTH, image_size)
        except (*UNREADABLE, *_DAMAGED_ZIP) as error:
            raise UserError(
                f"{name} of {holder.path} is no aligned face of CelebA, {WIDTH} x {HEIGHT} pixels "
                f"({error!s:.300}); get {ARCHIVE} again: {URL}"
            ) from error

    return layouts.first_usable([each for each in holders if name in each.members], read, name)


SOURCE = Source(
    about="faces of women and men, by the attribute Male of CelebA",
    load=load,
    defaults=Defaults(CLASSES, 10_000, 64),
    classes=CLASSES,
    preprocessing=f"central {WIDTH} x {WIDTH}, antialiased",
    files=f"`{ATTRIBUTES[0]}`, and `{ARCHIVE}` as it is or the folder in it",
    origin=f"<{URL}>",
    steps=(
        f"Read at {URL} what the images may be used for, and follow its link to Google Drive.",
        f"In a browser take Img/{ARCHIVE} (Align&Cropped Images) and Anno/{ATTRIBUTES[0]}.",
        "Put both into {folder} as they are: nothing need be unpacked.",
    ),
)
