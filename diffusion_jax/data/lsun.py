"""LSUN from its original LMDB folders, prepared once into ArrayRecord.

The images of a class are prepared in chunks, each a folder of its own that appears only when it is
complete: an interrupted preparation goes on after the last complete chunk.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusion_jax.data import lsun_files
from diffusion_jax.data.images import CROP, ImageSet, require_images
from diffusion_jax.data.lmdb_reader import DamagedLmdb, open_lmdb, read_lmdb
from diffusion_jax.data.lsun_files import OBJECTS, SCENES, URL, check_categories
from diffusion_jax.data.lsun_files import lmdb_folder as lmdb_folder
from diffusion_jax.data.prepared import VERSION, Chunk
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Fetched, Source
from diffusion_jax.data.storage import Store, stored, unwritten
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.lock import alone

CHUNK = 2048
_NEXT_KEY = "next_key"


def _chunk(prepared_dir: Path, category: str, image_size: int, start: int, stop: int) -> Chunk:
    """Images start..stop-1 of a category, at one size."""
    name = f"{category}-{image_size}px-{start:07d}-{stop:07d}"
    return Chunk(prepared_dir / "lsun" / name / VERSION, (image_size, image_size, 3))


def _source(chunk: Chunk) -> dict[str, int]:
    """Which LMDB a chunk was prepared from, see `_check_source`."""
    return {name: each for name, each in chunk.metadata().items() if name != _NEXT_KEY}


def _are_there(prepared_dir: Path, category: str, bounds: list[int], image_size: int) -> bool:
    chunks = (_chunk(prepared_dir, category, image_size, *span) for span in pairwise(bounds))
    return all(os.path.isdir(chunk.folder) for chunk in chunks)


def are_prepared(
    prepared_dir: Path,
    categories: tuple[str, ...],
    images_per_class: int,
    image_size: int,
    chunk: int = CHUNK,
    first: int = 0,
) -> bool:
    """Whether all chunks that `prepare` would make are there."""
    bounds = _bounds(first, images_per_class, chunk)
    return all(_are_there(prepared_dir, each, bounds, image_size) for each in categories)


def _bounds(first: int, count: int, chunk: int) -> list[int]:
    """The ranks at which chunks begin, and the rank after the last."""
    return [*range(first, first + count, chunk), first + count]


def _require_lmdb(folder: Path, category: str) -> None:
    if not os.path.isfile(folder / "data.mdb"):  # which one may not look into is none
        raise lsun_files.not_found(folder.parent, category)


def _check_source(folder: Path, category: str, first: int, count: int) -> dict[str, int]:
    """Number of entries and size of an LMDB, after checking that it holds enough."""
    _require_lmdb(folder, category)
    with open_lmdb(folder) as env:
        entries = env.stat()["entries"]
    if entries == 0:
        raise DamagedLmdb(f"the LMDB {folder} holds no images")
    require_images(f"{folder} holds {entries} images", entries, first, count)
    return {"entries": entries, "bytes": (folder / "data.mdb").stat().st_size}


def prepare(
    data_dir: Path,
    prepared_dir: Path,
    categories: tuple[str, ...],
    images_per_class: int,
    image_size: int,
    chunk: int = CHUNK,
    first: int = 0,
) -> dict[str, list[Chunk]]:
    """Prepares consecutive images of each category, with a progress bar; done chunks are kept.

    Chunks are counted from the first image wanted: held-out images, which come after those trained
    on, have chunks of their own and leave the others as they are. A category whose chunks are all
    there needs its LMDB no more; where the LMDB is there too, it must be the one that they came
    from. Where the chunks of all categories are there nothing is written, a lock included.

    Args:
      data_dir: holds CATEGORY_train_lmdb for each category.
      prepared_dir: the chunks go here.
      categories: LSUN categories.
      images_per_class: how many images, in the byte order of their keys.
      image_size: pixels per side.
      chunk: images per chunk.
      first: rank of the first of them.

    Returns:
      The chunks, in order, for each category.

    Raises:
      UserError: an LMDB that is missing, damaged, too small, or not the one that the prepared
        chunks came from; a folder that cannot be written to.
    """
    bounds = _bounds(first, images_per_class, chunk)
    complete = are_prepared(prepared_dir, categories, images_per_class, image_size, chunk, first)
    for category in categories:  # before any folder is made
        if not _are_there(prepared_dir, category, bounds, image_size):
            _require_lmdb(lsun_files.find(data_dir, category), category)
    try:
        # One process prepares, the others wait for it.
        with contextlib.nullcontext(False) if complete else alone(prepared_dir) as locked:
            return {
                category: _prepare_category(
                    lsun_files.find(data_dir, category),
                    prepared_dir,
                    category,
                    bounds,
                    image_size,
                    locked,
                )
                for category in categories
            }
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as the latter
        what = f"cannot write the prepared images to {prepared_dir}"
        room = "free some space (what is already prepared is kept)"
        raise unwritten(what, error, room) from error


def _prepare_category(
    folder: Path,
    prepared_dir: Path,
    category: str,
    bounds: list[int],
    image_size: int,
    locked: bool,
) -> list[Chunk]:
    source = None
    # An LMDB that only its owner may read is as good as none to those who need it no more.
    is_readable = os.access(folder / "data.mdb", os.R_OK)
    if is_readable or not _are_there(prepared_dir, category, bounds, image_size):
        source = _check_source(folder, category, bounds[0], bounds[-1] - bounds[0])
    progress = Progress(
        TextColumn("Preparing {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
    )
    task = progress.add_task(category, total=bounds[-1] - bounds[0], visible=False)

    def shown(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for image in images:
            yield image
            progress.update(task, advance=1, visible=True)

    def metadata(stop: int) -> dict[str, Any]:
        # Where the next chunk begins, if there is one.
        return (source or {}) | ({_NEXT_KEY: keys[stop].hex()} if stop in keys else {})

    chunks: list[Chunk] = []
    keys: dict[int, bytes] = {}
    with progress:
        for start, stop in pairwise(bounds):
            chunk = _chunk(prepared_dir, category, image_size, start, stop)
            if not chunk.folder.exists():
                images = read_lmdb(folder, start, stop, image_size, category in OBJECTS, keys)
                _prepare_chunk(chunk, shown(images), partial(metadata, stop), locked)
            else:
                progress.update(task, advance=stop - start)
            if source is not None and (was := _source(chunk)) != source:
                raise UserError(
                    f"the images in {prepared_dir} were prepared from another {folder.name} "
                    f"({was}, now {source}); remove {chunk.folder.parent} or name "
                    f"another folder with --prepared-dir"
                )
            if (next_key := chunk.metadata().get(_NEXT_KEY)) is not None:
                keys[stop] = bytes.fromhex(next_key)
            chunks.append(chunk)
    return chunks


def _prepare_chunk(
    chunk: Chunk,
    images: Iterator[np.ndarray],
    metadata: Callable[[], dict[str, Any]],
    locked: bool,
) -> None:
    if locked:  # What a killed preparation left behind; else another process may be at work.
        for unfinished in chunk.folder.parent.glob("incomplete.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    try:
        chunk.write(images, metadata)
    except OSError:
        if not chunk.folder.exists():  # else another process made the same meanwhile
            raise


def load(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    """Loads images of LSUN's categories, see `load_lmdb`.

    Raises:
      UserError: no such category, or see `prepare`.
    """
    check_categories(selection.classes)
    return load_lmdb(data_dir, image_size, selection, store, "unpack it again")


def load_lmdb(
    data_dir: Path, image_size: int, selection: Selection, store: Store, advice: str
) -> ImageSet:
    """Loads consecutive images of each category, preparing them if need be.

    Args:
      data_dir: see `prepare`.
      image_size: pixels per side.
      selection: categories, and which images of each; their number must be given.
      store: the prepared images go into its folder; and the images where they are larger than its
        limit (see `storage.stored`).
      advice: what to do about a damaged LMDB.

    Returns:
      Images of three channels, category after category.

    Raises:
      UserError: see `prepare`.
    """
    categories, count, prepared_dir = selection.classes, selection.count, store.folder
    assert count is not None  # data.load requires it
    try:
        chunks = prepare(
            data_dir, prepared_dir, categories, count, image_size, first=selection.first
        )
    except DamagedLmdb as error:
        raise UserError(f"{error}; {advice}") from error
    flat = [chunk for category in categories for chunk in chunks[category]]
    total = count * len(categories)

    def fill(images: np.ndarray) -> None:
        position = 0
        for chunk in flat:
            for image in chunk.images():
                if position < total:
                    images[position] = image
                position += 1
        if position != total:
            raise UserError(
                f"{prepared_dir} holds {position} of {total} images; remove it and run again"
            )

    key = [[chunk.name, _source(chunk)] for chunk in flat]
    images, file = stored(store, (total, image_size, image_size, 3), fill, key)
    labels = np.repeat(np.arange(len(categories)), count)
    return ImageSet(images, labels, categories, file=file)


PREPROCESSING = f"central {CROP} x {CROP}, antialiased"
SOURCE = Source(
    about="LSUN's scenes and objects",
    load=load,
    defaults=Defaults(("church_outdoor", "conference_room"), 20_000, 64),
    classes=f"{len(SCENES)} scenes and {len(OBJECTS)} objects",
    preprocessing=f"{PREPROCESSING}; for objects the largest central square",
    files="the unpacked LMDB folders: `CATEGORY_train_lmdb` for scenes, `CATEGORY` for objects",
    origin=f"<{URL}>",
    in_paper="n = 40 000, Lambda = 60.52; with n = 200 (`lsun_small`) also a collapse run",
    fetched=Fetched("lsun", lsun_files.archives, lsun_files.held, lsun_files.unpack),
)
