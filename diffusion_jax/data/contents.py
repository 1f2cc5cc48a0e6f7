"""What a path of one's own holds: a table of files, Parquet files with images, or neither."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.data import cifar, columns, shards, tables, tree
from diffusion_jax.errors import UserError

# The first rules a folder by its name alone; the others where they name files and labels.
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_LISTS = ("train.csv", "labels.csv", "train_labels.csv")
_ENDINGS = (".csv", ".jsonl", ".parquet")
# As Hugging Face knows them in the names of files and folders.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"^(.*?)-?(\d{5})-of-(\d{5})")


class Contents(NamedTuple):
    """Where images and labels of a path stand.

    Attributes:
      files: one table of files, or Parquet files that hold the images.
      is_table: which of both.
      notes: what was passed over.
    """

    files: tuple[Path, ...]
    is_table: bool
    notes: tuple[str, ...] = ()


def find(path: Path) -> Contents | None:
    """The table or the Parquet files of a path; None for a folder of images alone.

    A folder's `metadata.csv`, `.jsonl` or `.parquet` rules it; so does a `train.csv`, `labels.csv`
    or `train_labels.csv` that has a column of files and one of labels; then come Parquet files.
    They may lie in a subfolder `data`, in one a split, or in the only one. Of several splits the
    training set is taken.

    Raises:
      UserError: several of these, splits without a training set, a set of which files are missing,
        or a format that is not read.
    """
    if path.is_file():
        return Contents((path,), _is_table(path)) if path.suffix.lower() in _ENDINGS else None
    entries = _entries(path)
    _refuse_others(path, entries)
    if there := _among(path, _METADATA) or [
        file for file in _among(path, _LISTS) if _has_labels(file)
    ]:
        if len(there) > 1:
            several = ", ".join(file.name for file in there)
            raise UserError(f"{path} holds {several}: give the one that is meant, {there[0]}")
        return Contents((there[0],), _is_table(there[0]))
    if parquet := [file for file in entries if file.suffix.lower() == ".parquet"]:
        return _of_one_split(path, parquet)
    holders = [each for each in entries if each.is_dir() and _holds(each)]
    if not holders:
        return None
    chosen, notes = _holder(path, holders, [each for each in entries if each.is_dir()])
    found = find(chosen) if chosen else None
    return found and found._replace(notes=(*notes, *found.notes))


def _entries(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in tree.entries(folder)]


def _among(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _is_table(path: Path) -> bool:
    """Whether a table names files, and does not hold images."""
    if path.suffix.lower() != ".parquet":
        return True
    names = tables.names_of(path)
    return columns.named(names, ("file_name",)) is not None and not shards.has_images(path)


def _has_labels(path: Path) -> bool:
    names = tables.names_of(path)
    return all(columns.named(names, wanted) for wanted in (columns.FILES, columns.LABELS))


def _holds(folder: Path) -> bool:
    files = _entries(folder)
    return any(file.name in _METADATA or file.suffix.lower() == ".parquet" for file in files)


def _split(name: str) -> str | None:
    """The split that a file's or a folder's name tells, if any."""
    words = re.split(r"[-._ \d]+", name.lower())
    return next((split for split, known in _SPLITS.items() if set(known) & set(words)), None)


def _holder(
    folder: Path, holders: list[Path], subfolders: list[Path]
) -> tuple[Path | None, tuple[str, ...]]:
    """The subfolder to read, and a note on those passed over; None where they are classes."""
    splits = {name: each for each in holders if (name := _split(each.name))}
    if "train" in splits:
        others = [each.name for each in holders if each != splits["train"]]
        return splits["train"], _passed_over(splits["train"], others)
    data = [each for each in holders if each.name == "data"]
    if data or len(subfolders) == 1:
        return (data or holders)[0], ()
    if len(holders) < len(subfolders):
        return None, ()
    several = ", ".join(each.name for each in holders)
    raise UserError(f"{folder} holds several sets, {several}: give one of them, {holders[0]}")


def _passed_over(taken: Path, others: Sequence[str]) -> tuple[str, ...]:
    if not others:
        return ()
    return (f"the training set {taken} is taken; not used: {', '.join(others)}",)


def _of_one_split(folder: Path, files: list[Path]) -> Contents:
    """The files of the training set, or of the only set there is."""
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split(file.stem), []).append(file)
    if len(by_split) > 1 and "train" not in by_split:
        held = ", ".join(split or "others" for split in by_split)
        raise UserError(f"{folder} holds several sets, {held}: give the files of one, in a folder")
    name = "train" if "train" in by_split else next(iter(by_split))
    taken = by_split.pop(name)
    _require_all(taken)
    others = [file.name for rest in by_split.values() for file in rest]
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


def _refuse_others(folder: Path, entries: list[Path]) -> None:
    """Refuses what looks like a known format that is not read, with what to do."""
    names = {each.name for each in entries} | {folder.name}
    if any(each.suffix == ".arrow" for each in entries) or "dataset_dict.json" in names:
        raise UserError(
            f"{folder} is what Hugging Face's save_to_disk writes (Arrow): give what to_parquet "
            f"writes, dataset.to_parquet('train.parquet')"
        )
    if "cifar-10-batches-py" in names or "cifar-100-python" in names:
        raise UserError(
            f"{folder} is CIFAR's Python version, pickles, which are never read: get the binary "
            f"version, {cifar.URL}, and give --data cifar10 --data-dir with its folder"
        )
