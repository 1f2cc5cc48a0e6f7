"""What a path of one's own holds: a table of files, Parquet files with images, or neither."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.data import cifar, columns, shards, tables, tree
from diffusion_jax.data.named_files import endings, is_there
from diffusion_jax.data.splits import split_of, words
from diffusion_jax.errors import UserError

# These rule a folder, as for Hugging Face; any other .csv where it names its images and labels.
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_ENDINGS = (".csv", ".jsonl", ".parquet")
_SHARD = re.compile(r"^(.*?)-?(\d{5})-of-(\d{5})")
_SHOWN = 5


class Contents(NamedTuple):
    """Where images and labels of a path stand.

    Attributes:
      files: one table of files, or Parquet files that hold the images; none where the path is a
        folder of images alone, or another file.
      is_table: which of both.
      notes: what was passed over.
    """

    files: tuple[Path, ...] = ()
    is_table: bool = False
    notes: tuple[str, ...] = ()


class _Folder:
    """What lies in a folder.

    Attributes:
      path: the folder.
      files: its files.
      subfolders: its folders.
      galleries: those of them that have images directly in them.
      has_images: whether it has images directly in it.
      is_split: whether the galleries are parts of a data set by their names, each another.
      has_classes: whether it is a folder of classes without any doubt.
    """

    def __init__(self, path: Path) -> None:
        found = tree.entries(path)
        self.path = path
        self.files = [Path(each.path) for each in found if not tree.is_folder(each)]
        self.subfolders = [Path(each.path) for each in found if tree.is_folder(each)]
        self.galleries = [each for each in self.subfolders if _images(_files(each))]
        self.has_images = bool(_images(self.files))
        splits = {split_of(each.name) for each in self.galleries}
        self.is_split = None not in splits and 0 < len(self.galleries) == len(splits)
        self.has_classes = len(self.galleries) > 1 and not self.is_split and not self.has_images


def find(path: Path) -> Contents:
    """The table or the Parquet files of a path.

    A folder's `metadata.csv`, `.jsonl` or `.parquet` rules it; so does another `.csv` that has a
    column of files, which lie there, and one of labels, unless subfolders are the classes; then
    come Parquet files. They may lie in a subfolder `data`, in one a split, or in the only one. Of
    several splits the training set is taken. What does not belong to a folder's images is passed
    over with a note.

    Raises:
      UserError: several of these, splits without a training set, a set of which files are missing,
        or a format that is not read.
    """
    if path.is_file():
        is_ours = path.suffix.lower() in _ENDINGS
        return Contents((path,), _is_table(path)) if is_ours else Contents()
    folder = _Folder(path)
    _refuse_others(folder)
    metadata = [file for file in folder.files if file.name in _METADATA and _rules(file, folder)]
    if there := metadata or _lists(folder):
        if len(there) > 1:
            several = ", ".join(file.name for file in there)
            raise UserError(f"{path} holds {several}: give the one that is meant, {there[0]}")
        return Contents((there[0],), _is_table(there[0]))
    parquet = [file for file in folder.files if file.suffix.lower() == ".parquet"]
    pictured = folder.has_images or folder.galleries
    if parquet and (not pictured or any(map(_has_images, parquet))):
        found, others = _of_one_split(path, parquet), folder.galleries
        return found._replace(notes=(*found.notes, *_passed_over(found.files[0], others)))
    holders = [each for each in folder.subfolders if _holds(each, folder)]
    chosen = _holder(folder, holders)
    found = find(chosen) if chosen else Contents()
    if not chosen or not found.files:
        return Contents(notes=_doubts(folder))
    others = [each for each in folder.subfolders if each != chosen] + _images(folder.files)
    return found._replace(notes=(*_passed_over(chosen, others), *found.notes))


def _files(folder: Path) -> list[Path]:
    return [Path(each.path) for each in tree.entries(folder) if not tree.is_folder(each)]


def _images(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in endings()]


def _is_table(path: Path) -> bool:
    """Whether a table names files, and does not hold images."""
    if path.suffix.lower() != ".parquet":
        return True
    names = tables.names_of(path)
    return columns.named(names, ("file_name",)) is not None and not shards.has_images(path)


def _has_images(path: Path) -> bool:
    try:
        return shards.has_images(path)
    except UserError:
        return False


def _rules(path: Path, folder: _Folder) -> bool:
    """Whether a metadata.* is about the images of its folder, or all that there is."""
    if folder.has_images or not folder.galleries:
        return True
    files, label = _named(path)
    return files and (label or not folder.has_classes)


def _lists(folder: _Folder) -> list[Path]:
    """The other tables of images in a folder and their labels, best those called after these."""
    others = [file for file in folder.files if file.name not in _METADATA]
    found = [
        file
        for file in others
        if file.suffix.lower() == ".csv"
        and not words(file.stem) & {"submission"}
        and not folder.has_classes
        and all(_named(file))
    ]
    found = [each for each in found if split_of(each.stem) not in ("validation", "test")] or found
    return [each for each in found if columns.is_called_so(each)] or found


def _named(path: Path) -> tuple[bool, bool]:
    """Whether a table names images as Hugging Face does, or that lie there; and their labels."""
    try:
        row = tables.first_row(path)
    except UserError:
        return False, False
    files, label = columns.of_table(path, list(row))
    if files is None:
        return False, False
    is_theirs = path.name in _METADATA and files.lower().endswith("file_name")
    return is_theirs or is_there(path, str(row[files])), label is not None


def _holds(subfolder: Path, folder: _Folder) -> bool:
    """Whether there is a table or Parquet in a subfolder, deeper where it is surely no class.

    Links are not followed: they may lead anywhere.
    """
    if subfolder.is_symlink():
        return False
    if split_of(subfolder.name) or not folder.galleries:
        return bool(find(subfolder).files)
    files = _files(subfolder)
    return any(file.name in _METADATA or file.suffix.lower() == ".parquet" for file in files)


def _holder(folder: _Folder, holders: list[Path]) -> Path | None:
    """The subfolder to read; None where they are classes, or images alone."""
    splits = {name: each for each in holders if (name := split_of(each.name))}
    if "train" in splits:
        return splits["train"]
    data = [each for each in holders if each.name == "data"]
    if data:
        return data[0]
    if not holders or len(holders) < len(folder.subfolders):
        return None
    if len(holders) == 1:
        return holders[0]
    several = ", ".join(each.name for each in holders)
    raise UserError(f"{folder.path} holds several sets, {several}: give one of them, {holders[0]}")


def _doubts(folder: _Folder) -> tuple[str, ...]:
    """What is said where the images themselves are taken, without a table's word on them."""
    notes = []
    places = [folder.path, *folder.galleries] if folder.is_split else [folder.path]
    unused = [
        str(file) for place in places for file in _files(place) if file.suffix.lower() in _ENDINGS
    ]
    if unused:
        notes.append(
            f"tables that are not used: {_some(unused)}; for the labels of one, give its path, with"
            f" columns file_name and label"
        )
    if folder.is_split and not folder.has_images:
        names = ", ".join(each.name for each in folder.galleries)
        notes.append(
            f"the classes of {folder.path} are {names}, which are called as parts of a data set: "
            f"for the images of one part alone give its folder"
        )
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _passed_over(taken: Path, others: Sequence[Path]) -> tuple[str, ...]:
    if not others:
        return ()
    kind = "the training set " if split_of(taken.stem) == "train" else ""
    return (f"{kind}{taken} is taken; not used: {_some([each.name for each in others])}",)


def _of_one_split(folder: Path, files: list[Path]) -> Contents:
    """The files of the training set, or of the only set there is."""
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file.stem), []).append(file)
    if len(by_split) > 1 and "train" not in by_split:
        held = ", ".join(split or "others" for split in by_split)
        raise UserError(f"{folder} holds several sets, {held}: give the files of one, in a folder")
    name = "train" if "train" in by_split else next(iter(by_split))
    taken = by_split.pop(name)
    _require_all(taken)
    others = [file for rest in by_split.values() for file in rest]
    return Contents(tuple(taken), False, _passed_over(taken[0], others))


def _require_all(files: list[Path]) -> None:
    """Refuses a set of which files are missing, such as 00001-of-00003."""
    there: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.match(file.stem):
            there.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (name, count), numbers in there.items():
        if missing := sorted(set(range(count)) - numbers):
            raise UserError(
                f"{files[0].parent} holds {len(numbers)} of {count} files {name}-*-of-{count:05d}, "
                f"not number {missing[0]:05d}: get the rest, or give a single file"
            )


def _refuse_others(folder: _Folder) -> None:
    """Refuses what looks like a known format that is not read, with what to do."""
    path, names = folder.path, {each.name for each in (*folder.files, *folder.subfolders)}
    names.add(path.name)
    is_arrow = any(each.suffix == ".arrow" for each in folder.files)
    pictured = folder.has_images or folder.galleries
    if "dataset_dict.json" in names or (is_arrow and not pictured):
        raise UserError(
            f"{path} is what Hugging Face's save_to_disk writes (Arrow): give what to_parquet "
            f"writes, dataset.to_parquet('train.parquet')"
        )
    if "cifar-10-batches-py" in names or "cifar-100-python" in names:
        raise UserError(
            f"{path} is CIFAR's Python version, pickles, which are never read: get the binary "
            f"version, {cifar.URL}, and give --data cifar10 --data-dir with its folder"
        )
