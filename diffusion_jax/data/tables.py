"""Tables that say which image has which label: metadata.csv and its kin, as people share them."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from diffusion_jax.data import columns
from diffusion_jax.data.checks import require_memory
from diffusion_jax.data.faults import Faults
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import parse_json

# What the readers of texts and of Parquet raise at damaged files.
DAMAGED = (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException, MemoryError)
# Reads a Parquet file a page at a time, where pyarrow would hold a whole row group.
BY_PAGES: dict[str, Any] = {"buffer_size": 2**20, "pre_buffer": False}
# What a value takes as a Python object, at most, for each byte of the file.
_GROWTH = 8
# What stands in place of a file until Git LFS fetches it.
_POINTER = b"version https://git-lfs"
_Row = dict[str | None, Any]


class Table(NamedTuple):
    """The rows of a table, in its order.

    Attributes:
      path: the table.
      places: where each row stands, such as "line 2".
      files: what each row calls its image's file.
      labels: one label per row; None where there is no such column.
      notes: which columns were taken.
    """

    path: Path
    places: list[str]
    files: list[str]
    labels: list[Any] | None
    notes: tuple[str, ...]


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Makes whatever the readers raise in the block a UserError that names the file."""
    try:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise UserError(f"{path} is a pointer of Git LFS, not the file: run git lfs pull")
        yield
    except UserError:
        raise
    except DAMAGED as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read as {kind}: {reason}") from error


def names_of(path: Path) -> list[str]:
    """The names of a table's columns.

    Raises:
      UserError: it cannot be read.
    """
    with reading(path, "a table"):
        if path.suffix.lower() == ".parquet":
            return list(pq.read_schema(path).names)
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file, skipinitialspace=True), [])
        names: dict[str, None] = {}
        for place, row in _objects(path):
            if row is None and not names:
                raise UserError(f"{place} of {path} is no JSON object: write one per line")
            names.update(dict.fromkeys(map(str, row or ())))
        return list(names)


def first_row(path: Path) -> dict[str, Any]:
    """The first row of a table by column; empty where it has none.

    Raises:
      UserError: it cannot be read.
    """
    with reading(path, "a table"):
        _, row = next(_rows(path, None), ("", None))
    return {name: value for name, value in (row or {}).items() if name is not None}


def read(path: Path, memory_gib: float | None = None) -> Table:
    """Reads a table of files and labels.

    Args:
      path: a CSV with a header and commas, in UTF-8; a .jsonl, one JSON object per line; or a
        Parquet file.
      memory_gib: memory that it may take, in GiB; by default what is free.

    Raises:
      UserError: it cannot be read; no column names files; rows that name none, or have no label
        where others do, or name a file a second time.
    """
    names = names_of(path)
    files, label = columns.of_table(path, names)
    if files is None:
        held = f"{', '.join(names) or 'none':.500}"
        advice = "call the one that names the images' files file_name"
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            advice = "separate them by commas"
        raise UserError(f"no column of {path} names the images' files (it has: {held}); {advice}")
    if twice := [name for name, n in Counter(names).items() if n > 1 and name in (files, label)]:
        raise UserError(f"{path} has several columns {twice[0]}: keep the one that is meant")
    with reading(path, "a table"):
        require_memory(f"reading {path}", _GROWTH * path.stat().st_size, memory_gib)
    taken = Table(path, [], [], None if label is None else [], ())
    faults, total, known = Faults(), 0, dict[str, str]()
    is_csv = path.suffix.lower() == ".csv"
    with reading(path, "a table"):
        for place, row in _rows(path, [name for name in (files, label) if name is not None]):
            total += 1
            with faults.collected():
                if row is None:
                    raise UserError(f"{place} of {path} is no JSON object")
                if None in row:
                    raise UserError(f"{place} of {path} has more fields than the first line")
                name = _text(row.get(files), f"{files} in {place} of {path}")
                if name in known:
                    raise UserError(
                        f"{place} of {path} names {name:.200} again, after {known[name]}"
                    )
                known[name] = place
                value = row.get(label)
                value = value.strip() if is_csv and isinstance(value, str) else value
                if label is not None and value in (None, ""):
                    raise UserError(f"{place} of {path} has no {label}")
                taken.places.append(place)
                taken.files.append(name)
                if taken.labels is not None:
                    taken.labels.append(value)
    faults.refuse(f"rows of {path}", total)
    if not total:
        raise UserError(f"{path} has no rows")
    return taken._replace(notes=columns.note(path, names, files, label))


def _text(value: Any, what: str) -> str:
    """A file's name, which may be a number without an ending."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise UserError(f"{what} is {json.dumps(value, default=str)[:40]}, no name of a file")
    return value


def _rows(path: Path, wanted: list[str] | None) -> Iterator[tuple[str, _Row | None]]:
    """Each row's place, and its values by column; of Parquet those wanted, or all."""
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path, **BY_PAGES) as file:
            batches = file.iter_batches(2**12, columns=wanted)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"row {i}", row) for i, row in enumerate(rows))
    elif path.suffix.lower() == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, skipinitialspace=True)
            yield from ((f"line {reader.line_num}", row) for row in reader)
    else:
        yield from _objects(path)


def _objects(path: Path) -> Iterator[tuple[str, _Row | None]]:
    """The JSON objects of the lines that are not blank; None for what is none."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = parse_json(line)
                except ValueError:
                    row = None
                yield f"line {number}", row if isinstance(row, dict) else None
