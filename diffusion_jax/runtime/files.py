"""Files that are there as a whole or not at all."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError


def expanded(path: Path | str) -> Path:
    """A path with ~ or ~NAME at its beginning replaced by the home folder that it stands for.

    Raises:
      UserError: a ~NAME that is nobody's.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} is no path: {error}; write ./{path} if it is a name") from error


def unwritten(path: Path, error: OSError) -> UserError:
    """The error for a file that could not be written, such as on a full disk."""
    reason = error.strerror or str(error)
    return UserError(
        f"cannot write {path}: {reason}; free some space or mend the folder, and try again"
    )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Replaces a file by what is written meanwhile, once all of that is on the disk.

    A kill or a full disk leaves the file that was there before, if any.

    Args:
      path: the file.

    Yields:
      The path to write to, in the same folder.

    Raises:
      UserError: it cannot be written.
    """
    partial = path.parent / f"{path.name}.partial"
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise unwritten(path, error) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file; see `writing`."""
    with writing(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Replaces a file by what `plain` makes of a value; see `writing`."""
    text = json.dumps(plain(value), indent=indent, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def parse_json(text: str | bytes) -> Any:
    """The value that a text of JSON stands for.

    Raises:
      ValueError: it is no JSON, is nested deeper than Python reads, or holds an integer that is
        too large for a float.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _integer(text: str) -> int:
    value = int(text)
    try:
        float(value)
    except OverflowError as error:
        raise ValueError(f"{text[:20]}... is too large") from error
    return value


def write_npy(path: Path, array: np.ndarray) -> None:
    """Replaces an .npy file; see `writing`."""
    with writing(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def plain(value: Any) -> Any:
    """What JSON knows: lists, dictionaries and numbers, with null for what is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (np.ndarray, list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def require_room(folder: Path, num_bytes: int, what: str) -> None:
    """Refuses what its disk has no room for.

    Raises:
      UserError: fewer bytes than these are free where the folder lies.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"there is no room for {what}: {num_bytes / 2**30:.3g} GiB, and {folder} has "
            f"{free / 2**30:.3g} GiB free; free some space or name a folder on another disk"
        )
