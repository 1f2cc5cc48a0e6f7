"""Where the files of a set lie: a site, its archives and other programs each lay it out anew."""

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from diffusion_jax.data.faults import Faults

Copy = TypeVar("Copy")
T = TypeVar("T")
# ROOT/lsun/scenes/tower_train_lmdb/tower_train_lmdb is four deep.
_DEPTH = 4
_MOST_FOLDERS = 1000
_SHOWN = 6
_UNFINISHED = {r".*\.partial": "{path} has come so far: fetch it again, and it goes on from there"}


def folders(data_dir: Path) -> Iterator[tuple[Path, list[str]]]:
    """A data folder and the folders in it, up to four deep, the nearest first.

    Hidden ones, `prepared` and those that may not be read are left out. At most 1 000 are looked
    at: the folder may be anything that a user names.

    Yields:
      A folder, and the names of its files in order.
    """
    level, count = [data_dir], 0
    for _ in range(_DEPTH + 1):
        inner: list[Path] = []
        for folder in level:
            files = []
            try:
                with os.scandir(folder) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        if entry.is_file():
                            files.append(entry.name)
                        elif entry.name[0] != "." and entry.name != "prepared" and entry.is_dir():
                            inner.append(folder / entry.name)
            except OSError:
                continue
            yield folder, files
            count += 1
            if count == _MOST_FOLDERS:
                return
        level = inner


def found(data_dir: Path, *names: str) -> list[Path]:
    """The files of these names in a data folder and the folders in it, the nearest first."""
    return [folder / name for folder, files in folders(data_dir) for name in names if name in files]


def what_lies(data_dir: Path, known: Mapping[str, str] | None = None) -> str:
    """What a folder holds, in words that follow its name in a message.

    Args:
      data_dir: the folder.
      known: patterns of names that are often there in place of what is wanted, and what to say of
        such a file or folder, with {path} for it and {unzip} for the command that unpacks it.
    """
    if not data_dir.exists():
        return "it does not exist"
    if not data_dir.is_dir():
        return "it is a file: name the folder that it lies in"
    try:
        names = [_shown(path) for path in sorted(data_dir.iterdir())]
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    held = f"it holds {', '.join(names[:_SHOWN])}{more}" if names else "it is empty"
    return "; ".join([held, *_remarks(data_dir, known or {})])


def _shown(path: Path) -> str:
    if not path.is_dir():
        return path.name
    try:
        empty = not any(path.iterdir())
    except OSError:
        empty = False
    return f"{path.name}/ (empty)" if empty else f"{path.name}/"


def _remarks(data_dir: Path, known: Mapping[str, str]) -> Iterator[str]:
    """What is to be said of the nearest file or folder that each pattern fits."""
    paths = [path for folder, files in folders(data_dir) for path in _with(folder, files)]
    for pattern, text in {**known, **_UNFINISHED}.items():
        for path in paths:
            if re.fullmatch(pattern, path.name):
                unzip = shlex.join(["unzip", str(path), "-d", str(path.parent)])
                yield text.format(path=path, unzip=unzip)
                break


def _with(folder: Path, files: Iterable[str]) -> Iterator[Path]:
    yield folder
    yield from (folder / name for name in files)


def first_usable(copies: Iterable[Copy], read: Callable[[Copy], T], what: str) -> T:
    """What is read from the first copy that can be used.

    Args:
      copies: at least one; what stands for each is the caller's.
      read: reads one, or raises a `UserError`.
      what: what they are copies of, for the message.

    Raises:
      UserError: of all copies, as `Faults.refuse` says it.
    """
    faults, count = Faults(), 0
    for copy in copies:
        count += 1
        with faults.collected():
            return read(copy)
    faults.refuse(f"copies of {what}", count)
    raise AssertionError("no copy was given")
