"""A user's own images, where a table or Parquet files say which they are."""

import hashlib
import io
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from diffusion_jax.data import columns, pictures, shards, tables
from diffusion_jax.data.contents import Contents
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.named_files import count_images, locate
from diffusion_jax.data.pictures import ImageSize, Picture
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.splits import split_of
from diffusion_jax.data.storage import Store, source_files
from diffusion_jax.errors import UserError

_EMBED = (
    "embed the images before to_parquet, dataset.with_format('arrow').map("
    "datasets.table.embed_table_storage, batched=True)"
)


def load(
    contents: Contents,
    image_size: ImageSize | None,
    selection: Selection,
    memory_gib: float | None = None,
    store: Store | None = None,
) -> ImageSet:
    """Loads the images that a table names, or that Parquet files hold.

    Classes are in the order of the labels' values (see `columns.classes_of`), or of the list of
    names in the files. See `pictures.load` for what is done to the images.

    Args:
      contents: see `contents.find`.
      image_size: pixels per side, or (height, width), see `pictures.load`; by default as the images
        are.
      selection: which images of each class, or of all where there are no labels.
      memory_gib: memory that the images may take, in GiB; by default what is free. Not with store.
      store: where the images go if they are larger than its limit; without it they are refused.

    Returns:
      uint8 images in the order of the rows.

    Raises:
      UserError: see `tables.read`, `named_files.locate`, `shards.columns_of`, `pictures.load`.
    """
    if image_size is not None and np.min(image_size) < 1:
        raise UserError(f"image_size = {image_size} must be at least 1")
    read = _of_table if contents.is_table else _of_shards
    return read(contents, image_size, selection, memory_gib, store)


def _of_table(
    contents: Contents,
    image_size: ImageSize | None,
    selection: Selection,
    memory_gib: float | None,
    store: Store | None,
) -> ImageSet:
    path = contents.files[0]
    table = _of_training(tables.read(path, memory_gib))
    labels, names = None, tuple[str, ...]()
    if table.labels is not None:
        labels, names = columns.classes_of(f"the column of labels of {path}", table.labels)
    chosen, labels, names = selection.rows(str(path), len(table.files), labels, names)
    files = locate(path, ((table.places[row], table.files[row]) for row in chosen))
    images, file, seen = pictures.load(
        str(path.parent),
        [Picture(str(file), file) for file in files],
        image_size,
        memory_gib,
        store,
        [str(file) for file in files],
    )
    notes, there = [*contents.notes, *table.notes, *seen], count_images(path.parent)
    if there > len(table.files):
        notes.append(
            f"{path} gives {len(table.files)} of the {there} images in its folder; the others are "
            f"not used"
        )
    return ImageSet(images, labels, names, tuple(notes), file)


def _of_training(table: tables.Table) -> tables.Table:
    """The rows of the training set, of a table that names files in folders of several sets."""
    folders = [Path(name).parts[:-1] for name in table.files]
    sets = [next(filter(None, map(split_of, parts)), None) for parts in folders]
    if len(set(sets)) < 2 or None in sets:
        return table
    others = ", ".join(sorted({str(each) for each in sets} - {"train"}))
    if "train" not in sets:
        raise UserError(f"{table.path} names files of several sets, {others}: keep those of one")
    rows = [row for row, each in enumerate(sets) if each == "train"]
    return table._replace(
        places=[table.places[row] for row in rows],
        files=[table.files[row] for row in rows],
        labels=table.labels and [table.labels[row] for row in rows],
        notes=(*table.notes, f"the training set of {table.path} is taken; not used: {others}"),
    )


def _of_shards(
    contents: Contents,
    image_size: ImageSize | None,
    selection: Selection,
    memory_gib: float | None,
    store: Store | None,
) -> ImageSet:
    paths = contents.files
    what = str(paths[0] if len(paths) == 1 else paths[0].parent)
    taken = shards.columns_of(paths[0])
    if other := [path for path in paths[1:] if shards.columns_of(path)[:3] != taken[:3]]:
        raise UserError(f"{other[0]} has other columns or classes than {paths[0]}")
    groups = shards.groups_of(paths, memory_gib)
    n = sum(group.rows for group in groups)
    if not n:
        raise UserError(f"{what} has no rows")
    labels, names = None, tuple[str, ...]()
    if taken.label is not None:
        labels, names = shards.labels_of(groups, taken)
    notes = [*contents.notes, *taken.notes]
    if empty := [name for name in taken.class_names if name not in names]:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        notes.append(
            f"classes of {what} without an image are left out: {', '.join(empty[:5])}{more}"
        )
    chosen, labels, names = selection.rows(what, n, labels, names)
    rows = shards.Rows(groups, taken.image)
    digest = hashlib.sha256(np.asarray(chosen, np.int64).tobytes()).hexdigest()
    images, file, seen = pictures.load(
        what,
        [_picture(rows, int(row)) for row in chosen],
        image_size,
        memory_gib,
        store,
        [list(map(str, paths)), source_files(*paths), taken.image, digest],
    )
    return ImageSet(images, labels, names, (*notes, *seen), file)


def _picture(rows: shards.Rows, row: int) -> Picture:
    path, place = rows.place(row)
    return Picture(f"{place} of {path}", partial(_opened, rows, row))


def _opened(rows: shards.Rows, row: int) -> IO[bytes]:
    """The bytes of an image, in the row itself or in a file that it names."""
    value = rows[row]
    path, place = rows.place(row)
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            name = str(value["path"])
            if Path(name).is_absolute():
                raise UserError(
                    f"{place} of {path} names {name!r:.200} and does not hold it: {_EMBED}"
                )
            (file,) = locate(path, [(place, name)])
            return file.open("rb")
        value = value["bytes"]
    if not value:
        raise UserError(f"{place} of {path} holds no image")
    return io.BytesIO(value)
