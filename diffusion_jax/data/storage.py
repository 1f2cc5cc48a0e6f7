"""Where the images of a set lie: in memory, or above a limit in a file that is mapped into it."""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from diffusion_jax.data.images import FileState
from diffusion_jax.errors import UserError


class Store(NamedTuple):
    """Where images go that are larger than the limit.

    Attributes:
      folder: a file for each such set, images-DIGEST.npy, goes here.
      memory_gib: the limit in GiB; by default half of the memory that is free now.
    """

    folder: Path
    memory_gib: float | None = None

    def fits(self, num_bytes: int) -> bool:
        """Whether so many bytes are to be held in memory.

        Raises:
          UserError: a limit that is no size.
        """
        if self.memory_gib is None:
            return num_bytes <= psutil.virtual_memory().available / 2
        if not 0 <= self.memory_gib < math.inf:
            raise UserError(f"memory_gib = {self.memory_gib} must be a number of GiB, 0 or more")
        return num_bytes <= self.memory_gib * 2**30


def source_files(*paths: Path) -> list[tuple[str, int, int]]:
    """What tells a source's files from changed ones: names, sizes and times of modification."""
    states = map(FileState.of, paths)
    return [(state.path.name, state.size, state.modified) for state in states]


def stored(
    store: Store,
    shape: tuple[int, int, int, int],
    fill: Callable[[np.ndarray], None],
    key: Any,
) -> tuple[np.ndarray, FileState | None]:
    """An array of images that `fill` writes: in memory, or in a file where that is too small.

    The file appears once it is complete, and a file with the same key is mapped as it is, without
    `fill`. Pages of a mapped file are the system's cache: it drops them where memory is short.

    Args:
      store: the folder and the limit.
      shape: (n, height, width, channels).
      fill: writes all of the uint8 array that it is given.
      key: tells these images from all others that the folder may hold; JSON must know its types.

    Returns:
      The array, and the file that it is mapped from, if any.

    Raises:
      UserError: the file cannot be written or read.
    """
    num_bytes = math.prod(shape)
    if store.fits(num_bytes):
        images = np.empty(shape, np.uint8)
        fill(images)
        return images, None
    digest = hashlib.sha256(json.dumps([shape, key]).encode()).hexdigest()[:16]
    path = store.folder / f"images-{digest}.npy"
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        with (store.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process writes, the others wait for it
            if not path.exists():
                _write(path, shape, fill)
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        state = FileState.of(path)
    except UserError:  # what is wrong with a source's files, from `fill`
        raise
    except OSError as error:
        raise UserError(
            f"cannot keep {num_bytes / 2**30:.3g} GiB of images in {path}: {error}; free some "
            f"space, name another folder with --prepared-dir, or allow more memory with "
            f"--memory-gib"
        ) from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and it is made again") from error
    if images.shape != shape or images.dtype != np.uint8:
        raise UserError(f"{path} is damaged; remove it, and it is made again")
    return images, state


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    partial = path.with_suffix(".partial")
    try:
        images = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        with partial.open("r+b") as file:
            # A full disk is an error here, and would be the end of the process at a page's writing.
            os.posix_fallocate(file.fileno(), 0, os.stat(partial).st_size)
        fill(images)
        images.flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
