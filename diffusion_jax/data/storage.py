"""Where the images of a set lie: in memory, or above a limit in a file that is mapped into it."""

import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.images import FileState
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import memory
from diffusion_jax.runtime.lock import alone

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 2**20  # bytes written at a time


class Store(NamedTuple):
    """Where images go that are larger than the limit.

    Attributes:
      folder: a file for each such set, images-DIGEST.npy, goes here.
      memory_gib: the limit in GiB; by default half of what `memory.available` says now.
    """

    folder: Path
    memory_gib: float | None = None

    def fits(self, num_bytes: int) -> bool:
        """Whether this number of bytes is to be held in memory.

        Raises:
          UserError: a limit that is no size.
        """
        if self.memory_gib is None:
            return num_bytes <= memory.available().num_bytes / 2
        if not 0 <= self.memory_gib < math.inf:
            raise UserError(f"memory_gib = {self.memory_gib} must be a number of GiB, 0 or more")
        return num_bytes <= self.memory_gib * 2**30


def source_files(*paths: Path) -> list[tuple[str, int, int]]:
    """What tells a source's files from changed ones: names, sizes and times of modification."""
    states = map(FileState.of, paths)
    return [(state.path.name, state.size, state.modified) for state in states]


def unwritten(what: str, error: Exception, room: str, option: str = "--prepared-dir") -> UserError:
    """The error for prepared images that could not be written, with the advice that helps.

    Args:
      what: such as "cannot keep images in FILE".
      error: an OSError, or what ArrayRecord makes of one.
      room: what to do about a full disk.
      option: what names the folder.
    """
    number, reason = getattr(error, "errno", None), str(error).splitlines()[0]
    if number in _READ_ONLY:
        return UserError(
            f"{what}: {reason}; they are not complete there, and this process may not write there: "
            f"name a folder that it may write to with {option}"
        )
    if number in _FULL or any(os.strerror(full) in reason for full in _FULL):
        return UserError(f"{what}: {reason}; {room}, or name another folder with {option}")
    return UserError(f"{what}: {reason}; name another folder with {option}")


def stored(
    store: Store,
    shape: tuple[int, int, int, int],
    fill: Callable[[np.ndarray], None],
    key: Any,
) -> tuple[np.ndarray, FileState | None]:
    """An array of images that `fill` writes: in memory, or in a file where that is too small.

    The file appears once it is complete, and a file with the same key is mapped as it is, without
    `fill` and without writing anything, a lock included. Pages of a mapped file are the system's
    cache: it drops them where memory is short.

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
        if not path.exists():
            _write(path, shape, fill)
    except OSError as error:
        room = f"free {num_bytes / 2**30:.3g} GiB, allow more memory with --memory-gib"
        raise unwritten(f"cannot keep images in {path}", error, room) from error
    return _mapped(path, shape)


def _mapped(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, FileState]:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        state = FileState.of(path)
    except UserError:  # what is wrong with a source's files, from `fill`
        raise
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; name another folder with "
            f"--prepared-dir, and it is made there"
        ) from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and it is made again") from error
    if images.shape != shape or images.dtype != np.uint8:
        raise UserError(f"{path} is damaged; remove it, and it is made again")
    return images, state


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """Writes a file that appears when it is complete; where another process was first, its stays.

    One process writes, the others wait for it. Where nothing can be locked each writes its own.
    """
    with alone(path.parent) as locked:
        if path.exists():
            return
        partial = path.with_suffix(".partial" if locked else f".{uuid.uuid4().hex}.partial")
        try:
            images = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
            _take_room(partial, images.offset)
            fill(images)
            images.flush()
            _publish(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink()


def _take_room(path: Path, header: int) -> None:
    """Takes a file's room on the disk, beyond its header.

    A full disk is an error here, and would be the end of the process at a page's writing.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except AttributeError:  # macOS has none
            pass
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        file.seek(header)
        for start in range(header, size, _BLOCK):
            file.write(bytes(min(_BLOCK, size - start)))
        file.flush()
        os.fsync(file.fileno())


def _publish(partial: Path, path: Path) -> None:
    """Gives a complete file its name, unless there is one, which others may have mapped."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except (OSError, AttributeError, NotImplementedError):  # no hard links there
        partial.replace(path)
