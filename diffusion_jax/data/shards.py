"""Parquet files that hold images themselves, as Hugging Face's data sets are shared."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffusion_jax.data import columns
from diffusion_jax.data.checks import require_memory
from diffusion_jax.data.tables import BY_PAGES, reading
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import parse_json

IMAGES = ("image", "images", "img")
KIND = "Parquet"
# Images that are taken from a file at once.
_BATCH = 16
# What a row takes in memory beside its pixels: its label, its place, its name.
_ROW_BYTES = 300


class Columns(NamedTuple):
    """The columns taken of some Parquet files with the same columns.

    Attributes:
      image: encoded images: bytes, or a struct of bytes and path.
      label: the labels; None where there is no such column.
      class_names: what integers in the labels stand for; empty where they stand for themselves.
      notes: what is said of the choice.
    """

    image: str
    label: str | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def columns_of(path: Path) -> Columns:
    """Which columns of a Parquet file are the images and their labels.

    Raises:
      UserError: it cannot be read; no or several columns could be the images or the labels.
    """
    with reading(path, KIND):
        schema = pq.read_schema(path)
    features = _features(path, schema)
    held = ", ".join(f"{field.name} {field.type}"[:60] for field in schema)
    held = f"{held or 'nothing':.500}"
    images = [field.name for field in schema if _is_image(field.type)]
    images = [name for name in images if features.get(name) == "Image"] or images
    image = images[0] if len(images) == 1 else columns.named(images, IMAGES)
    if image is None:
        raise UserError(
            f"{path} has {'several columns' if images else 'no column'} of encoded images (it has: "
            f"{held}); images are bytes of PNG, JPEG and so on, or a struct of bytes and path, in "
            f"one column: call it image, or save pixels in an .npz"
        )
    classes = [name for name, kind in features.items() if isinstance(kind, tuple)]
    label = (
        classes[0] if len(classes) == 1 else columns.named(classes or schema.names, columns.LABELS)
    )
    if label is None and classes:
        raise UserError(
            f"{path} has several columns of classes, {', '.join(classes)}: call the one that is "
            f"meant label, and save the file again"
        )
    if label is not None and not _is_label(kind := _plain(schema.field(label).type)):
        raise UserError(f"{label} of {path} is {kind}: labels are integers, texts or booleans")
    named = features.get(label or "", ())
    notes = columns.note(path, schema.names, image, label)
    return Columns(image, label, named if isinstance(named, tuple) else (), notes)


def has_images(path: Path) -> bool:
    """Whether a Parquet file has a column of encoded images.

    Raises:
      UserError: it cannot be read.
    """
    with reading(path, KIND):
        return any(_is_image(field.type) for field in pq.read_schema(path))


def _features(path: Path, schema: pa.Schema) -> dict[str, str | tuple[str, ...]]:
    """What Hugging Face's metadata say of columns: "Image", or the names of a column of classes."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    found: dict[str, str | tuple[str, ...]] = {}
    try:
        for name, feature in parse_json(text)["info"]["features"].items():
            kind = feature.get("_type") if isinstance(feature, dict) else None
            if name not in schema.names:
                continue
            if kind == "ClassLabel":
                found[name] = tuple(feature["names"])
                if len(set(map(str.encode, found[name]))) < len(found[name]):
                    raise ValueError(f"classes of {name} have the same name")
            elif kind == "Image":
                found[name] = kind
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has damaged metadata (huggingface): {error!r:.200}") from error
    return found


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_image(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    known = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(is_kind(kind) for is_kind in known)


def _is_label(kind: pa.DataType) -> bool:
    known = (
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
    )
    return any(is_kind(kind) for is_kind in known)


class Group(NamedTuple):
    """A row group of one of several files.

    Attributes:
      path: the file.
      number: which of its row groups this is.
      start: its first row among those of all files.
      before: how many rows of its own file are before it.
      rows: how many it has.
    """

    path: Path
    number: int
    start: int
    before: int
    rows: int


def groups_of(paths: Sequence[Path], memory_gib: float | None = None) -> list[Group]:
    """The row groups of some files, one file after the other.

    Raises:
      UserError: a file that cannot be read; more rows than the memory has room for.
    """
    groups: list[Group] = []
    start = 0
    for path in paths:
        with reading(path, KIND):
            metadata, first = pq.read_metadata(path), start
            for index in range(metadata.num_row_groups):
                rows = metadata.row_group(index).num_rows
                if rows < 0:
                    raise ValueError(f"row group {index} has {rows} rows")
                groups.append(Group(path, index, start, start - first, rows))
                start += rows
    what = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files such as {paths[0]}"
    require_memory(f"listing the {start} rows of {what}", _ROW_BYTES * start, memory_gib)
    return groups


def labels_of(groups: Sequence[Group], taken: Columns) -> tuple[np.ndarray, tuple[str, ...]]:
    """The label of each row, as indices of classes, and the classes' names.

    Classes are in the order of the file's own list of names, where it has one and without those
    that no row has, else as `columns.classes_of` has them.

    Raises:
      UserError: labels that are missing, or none of the file's classes.
    """
    values: list[Any] = []
    for group in groups:
        for batch in batches(group, str(taken.label), 2**14):
            values += batch
    what = f"{taken.label} of {groups[0].path.parent}"
    if missing := [row for row, value in enumerate(values) if value is None]:
        raise UserError(f"{what} is missing in {len(missing)} rows, the first {missing[0]}")
    if not taken.class_names:
        return columns.classes_of(what, values)
    count = len(taken.class_names)
    for row, value in enumerate(values):
        if not isinstance(value, int) or not 0 <= value < count:
            raise UserError(
                f"{what} is {value} in row {row}, none of its {count} classes: take the rows out "
                f"that have no class"
            )
    there, labels = np.unique(np.asarray(values, np.int64), return_inverse=True)
    return labels.astype(np.int64), tuple(taken.class_names[place] for place in there)


def batches(group: Group, column: str, size: int) -> Iterator[list[Any]]:
    """A column of a row group, some rows at a time.

    Raises:
      UserError: the file is damaged, or has not the column.
    """
    with reading(group.path, KIND), pq.ParquetFile(group.path, **BY_PAGES) as file:
        if column not in file.schema_arrow.names:
            raise ValueError(f"it has no column {column}, as the files beside it do")
        found = 0
        for batch in file.iter_batches(size, row_groups=[group.number], columns=[column]):
            found += batch.num_rows
            yield batch.column(0).to_pylist()
        if found != group.rows:
            raise ValueError(f"row group {group.number} has {found} rows, not {group.rows}")


class Rows:
    """The values of a column by row, in memory a batch at a time: cheap in increasing order."""

    def __init__(self, groups: Sequence[Group], column: str) -> None:
        self._groups = [group for group in groups if group.rows]
        self._starts = [group.start for group in self._groups]
        self._column = column
        self._place, self._first = -1, 0
        self._batch: list[Any] = []
        self._batches: Iterator[list[Any]] = iter(())
        self._fault: UserError | None = None

    def place(self, row: int) -> tuple[Path, str]:
        """The file that a row is in, and which it is there."""
        group = self._groups[bisect_right(self._starts, row) - 1]
        return group.path, f"row {row - group.start + group.before}"

    def __getitem__(self, row: int) -> Any:
        """The value in a row.

        Raises:
          UserError: the file is damaged.
        """
        place = bisect_right(self._starts, row) - 1
        if place != self._place or row < self._first:
            self._place, self._first, self._batch = place, self._starts[place], []
            self._batches = batches(self._groups[place], self._column, _BATCH)
            self._fault = None
        while row >= self._first + len(self._batch):
            if self._fault is not None:  # all rows after it are lost
                raise self._fault
            self._first += len(self._batch)
            self._batch = []
            try:
                self._batch = next(self._batches)  # raises where there are too few rows
            except UserError as error:
                self._fault = error
        return self._batch[row - self._first]
