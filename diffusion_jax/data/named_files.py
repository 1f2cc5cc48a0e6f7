"""Files by the names that a table has for them."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import Image

from diffusion_jax.data.faults import Faults
from diffusion_jax.data.pictures import FORMATS
from diffusion_jax.data.splits import split_of
from diffusion_jax.data.tree import entries, is_folder
from diffusion_jax.errors import UserError


def locate(table: Path, names: Iterable[tuple[str, str]]) -> list[Path]:
    """The files that rows of a table name.

    They lie below the table's folder: the names are relative to it or, where the first is not
    there, to the one of its subfolders that has it, of several the training set's. A name may
    lack its ending (.jpg and so on).

    Args:
      table: its path.
      names: of each row where it stands, such as "line 2", and the file's name.

    Raises:
      UserError: files that are not there, are no plain files or lie elsewhere.
    """
    named = list(names)
    files = _Files(table.parent, _base(table, named[0][1]))
    faults, found = Faults(), []
    for place, name in named:
        with faults.collected():
            try:
                found.append(files.find(name))
            except (UserError, OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"{place} of {table} names {name!r:.200}: {reason}") from error
    faults.refuse(f"files that {table} names", len(named))
    return found


@cache
def endings() -> set[str]:
    """The endings of images, in small letters."""
    return {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}


def count_images(folder: Path) -> int:
    """How many images lie below a folder, except for links to folders.

    Raises:
      UserError: a folder cannot be read.
    """
    count, waiting = 0, [folder]
    while waiting:
        for entry in entries(waiting.pop()):
            if is_folder(entry):
                waiting += [] if entry.is_symlink() else [Path(entry.path)]
            else:
                count += Path(entry.name).suffix.lower() in endings()
    return count


def is_there(table: Path, name: str) -> bool:
    """Whether a name that a table has is that of a file, of several too."""
    try:
        return _has(_base(table, name), name)
    except UserError:
        return True


def _base(table: Path, name: str) -> Path:
    """The folder that the names are relative to."""
    folder = table.parent
    if _has(folder, name):
        return folder
    inner = [Path(each.path) for each in entries(folder) if is_folder(each)]
    inner += [each / each.name for each in inner if (each / each.name).is_dir()]  # Kaggle's
    there = [each for each in inner if _has(each, name)]
    there = [each for each in there if split_of(each.name) == "train"] or there
    if len(there) > 1:
        several = ", ".join(map(str, there))
        raise UserError(
            f"{table} names {name:.200}, which lies in each of {several}: keep one of them"
        )
    return there[0] if there else folder


def _has(folder: Path, name: str) -> bool:
    try:
        _Files(folder, folder).find(name)
    except (UserError, OSError, ValueError):
        return False
    return True


class _Files:
    """Finds files below a folder, and nowhere else."""

    def __init__(self, root: Path, base: Path) -> None:
        self._root, self._base = root.resolve(), base
        self._inside: dict[Path, bool] = {}
        self._stems: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path:
        """The file of that name.

        Raises:
          UserError: see `locate`.
          OSError, ValueError: the name is none that the system takes.
        """
        parts = Path(name).parts
        if name.startswith(("/", "\\")) or ".." in parts or "://" in name or not parts:
            raise UserError("give names of files below the table's folder")
        path = self._base / name
        if not path.exists() and not path.is_symlink():
            path = self._without_ending(path)
        folder = path.parent
        if folder not in self._inside:
            self._inside[folder] = folder.resolve().is_relative_to(self._root)
        if not self._inside[folder] or (
            path.is_symlink() and not path.resolve().is_relative_to(self._root)
        ):
            raise UserError(f"it leads out of {self._root}; copy the file there")
        if not path.is_file():
            raise UserError("it is no file" if path.exists() else "there is no such file")
        return path

    def _without_ending(self, path: Path) -> Path:
        folder = path.parent
        if folder not in self._stems:
            self._stems[folder] = {}
            for entry in entries(folder) if folder.is_dir() else ():
                each = Path(entry.path)
                if each.suffix.lower() in endings():
                    self._stems[folder].setdefault(each.stem, []).append(each)
        found = self._stems[folder].get(path.name, [])
        if len(found) > 1:
            raise UserError(f"there are {', '.join(each.name for each in found)}: add the ending")
        return found[0] if found else path
