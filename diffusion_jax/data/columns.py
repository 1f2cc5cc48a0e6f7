"""Which columns of a table name the images' files and their labels, and what the labels mean."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.splits import words
from diffusion_jax.errors import UserError

# In the order in which they are looked for, in small letters and with _ for spaces and hyphens.
FILES = (
    "file_name",
    "filename",
    "file",
    "image",
    "image_name",
    "image_file",
    "image_path",
    "img",
    "filepath",
    "path",
    "image_id",
    "id",
)
LABELS = (
    "label",
    "labels",
    "class",
    "class_name",
    "category",
    "breed",
    "species",
    "target",
)


def named(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first column that has one of the names, in the order of the names."""
    plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in columns}
    return next((plain[name] for name in wanted if name in plain), None)


def is_called_so(path: Path) -> bool:
    """Whether a table is called after labels or training."""
    return bool(words(path.stem) & {"train", "training", "label", "labels"})


def of_table(path: Path, columns: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of the images' files and of their labels, where a table has them.

    They are known by their names. Of two columns in a table that is called after labels or
    training, such as Kaggle's train.csv, one is the files and the other the labels.
    """
    files = named(columns, FILES) or next(
        (name for name in columns if name.lower().endswith("_file_name")), None
    )
    label = named([name for name in columns if name != files], LABELS)
    if len(columns) == 2 and is_called_so(path):
        files = files or next(name for name in columns if name != label)
        label = label or next((name for name in columns if name != files), None)
    return files, label


def note(path: Path, columns: Sequence[str], files: str, label: str | None) -> tuple[str, ...]:
    """What is said of a table's columns: nothing where all are used.

    Args:
      path: the table.
      columns: the names of all.
      files: the column of images, or of their files.
      label: the column of labels, if any.
    """
    others = f"{', '.join(name for name in columns if name not in (files, label)):.500}"
    if label is None:
        held = f"{path} has no column of labels, so that its images have none"
        return (f"{held}: of {others}, call the one that is meant label" if others else held,)
    if not others:
        return ()
    return (f"{path}: {files} names the images and {label} their labels; not used: {others}",)


def classes_of(what: str, values: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as indices of their classes, and the classes' names.

    Classes are in the order of the labels' values: texts in that of their characters, but whole
    numbers written as texts, as a CSV has them, in that of the numbers.

    Args:
      what: the column, for messages, such as "label of metadata.csv".
      values: a boolean, an integer or a text per image.

    Raises:
      UserError: other types, numbers that are not whole written as texts, nan, or several types
        at once.
    """
    kinds = {type(value) for value in values}
    if kinds - {bool, int, str} or len(kinds) > 1:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(
            f"{what} holds values of type {found}: labels are all integers, all texts or all "
            f"booleans"
        )
    different = set(values)
    if kinds != {str}:
        return _indices(values, sorted(different))
    if any("\ud800" <= character <= "\udfff" for name in different for character in name):
        raise UserError(f"{what} holds a text that is no Unicode")
    numbers = {text: _number(text) for text in sorted(different)}
    for text, number in numbers.items():
        if isinstance(number, float) and math.isnan(number):
            raise UserError(f"{what} holds {text}: take the rows out that have no label")
    if None not in numbers.values():
        for text, number in numbers.items():
            if isinstance(number, float):
                raise UserError(
                    f"{what} holds {text:.40}: labels are integers or texts, no fractions"
                )
        if all(text == str(number) for text, number in numbers.items()):
            return _indices(values, sorted(different, key=int))
    return _indices(values, sorted(different))


def _indices(values: Sequence[Any], order: list[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    place = {value: i for i, value in enumerate(order)}
    labels = np.fromiter((place[value] for value in values), np.int64, len(values))
    return labels, tuple(map(str, order))


def _number(text: str) -> int | float | None:
    """The number that a text writes, if any."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
