"""What lies in a folder of people's own, except for what nobody put there."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.errors import UserError

Entry = os.DirEntry[str]

# What systems leave in folders, and what begins with a dot.
_LEFTOVERS = {
    "__macosx",  # archives made on macOS
    "temporary items",
    "network trash folder",
    "icon\r",
    "@eadir",  # Synology
    "@tmp",
    "#recycle",
    "#snapshot",
    "@recycle",  # QNAP
    "@recently-snapshot",
    "~snapshot",  # NetApp
    "lost+found",  # ext4
    "lost.dir",  # Android
    "$recycle.bin",  # Windows
    "recycler",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__pycache__",
}
# What disk checks of Windows recover; Synology's attributes of a file, after its name or alone.
_PATTERNS = re.compile(r"found\.\d+|.*@syno(resource|eastream)", re.IGNORECASE | re.DOTALL)


def entries(folder: Path | str) -> list[Entry]:
    """A folder's files and subfolders in the order of their names.

    Passed over are hidden ones, what systems leave behind, and prepared images of our own.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(filter(_is_wanted, found), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path | str, error: OSError) -> UserError:
    return UserError(f"the folder {folder} cannot be read: {error}")


def _is_wanted(entry: Entry) -> bool:
    name = entry.name
    if name == "prepared" and is_folder(entry):  # by default it lies in the folder of the data
        return not all(map(_is_prepared, os.listdir(entry.path)))
    return not (name.startswith(".") or name.lower() in _LEFTOVERS or _PATTERNS.fullmatch(name))


def _is_prepared(name: str) -> bool:
    """Whether a file is one of `storage.stored` and `pictures.load`, its lock included."""
    return name.startswith(".") or (
        name.startswith("images-") and name.endswith((".npy", ".json", ".partial"))
    )


def is_folder(entry: Entry) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def walk(root: Path, folder: Path | str) -> Iterator[Entry]:
    """All files below a folder, in the order of their paths, name by name.

    Each folder is gone through once, however many links lead to it, so that links in a circle end.

    Args:
      root: links may lead anywhere in it, and not out of it.
      folder: `root`, or a folder in it.

    Raises:
      UserError: a folder cannot be read, or is a link that leads out of the root.
    """
    seen = {_identity(folder)}
    waiting = entries(folder)[::-1]
    while waiting:
        entry = waiting.pop()
        if not is_folder(entry):
            yield entry
            continue
        require_inside(root, entry)
        if (identity := _identity(entry.path)) not in seen:
            seen.add(identity)
            waiting += entries(entry.path)[::-1]


def _identity(folder: Path | str) -> int:
    """A number of its own for each folder, in less memory than a pair."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev << 64 | status.st_ino


def require_inside(root: Path, entry: Entry) -> None:
    """Refuses a link out of a folder, and what is neither file nor folder, before it is opened.

    Raises:
      UserError: it is one.
    """
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if not target.is_relative_to(os.path.realpath(root)):
            raise UserError(
                f"{entry.path} leads out of {root}, to {target}: copy it there, or give the folder "
                f"that it leads to"
            )
    if not (entry.is_file() or is_folder(entry)) and os.path.exists(entry.path):
        raise UserError(f"{entry.path} is no file; take it out of the folder")
