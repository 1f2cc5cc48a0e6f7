"""LSUN from its original LMDB folders, prepared once into ArrayRecord by a TFDS builder.

The images of a class are prepared in chunks, each a TFDS data set of its own that appears only
when it is complete: an interrupted preparation goes on after the last complete chunk.
"""

import contextlib
import fcntl
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusion_jax.data import lsun_files
from diffusion_jax.data.images import CROP, ImageSet, require_images
from diffusion_jax.data.lmdb_reader import DamagedLmdb, open_lmdb, read_lmdb
from diffusion_jax.data.lsun_files import OBJECTS, SCENES, URL, check_categories
from diffusion_jax.data.lsun_files import lmdb_folder as lmdb_folder
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Fetched, Source
from diffusion_jax.data.storage import Store, stored
from diffusion_jax.errors import UserError

CHUNK = 2048


@dataclass
class ChunkConfig(tfds.core.BuilderConfig):
    """Images start..stop-1 of one category, at one size."""

    folder: Path = Path()
    start: int = 0
    stop: int = 0
    image_size: int = 64
    is_object: bool = False
    source: dict[str, int] | None = None
    advance: Callable[[], None] | None = None


class Lsun(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of one chunk of a category."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"LSUN's LMDB folders, from {URL}"

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        return builder_config  # TFDS warns of each that is not listed in the class

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        shape = (config.image_size, config.image_size, 3)
        # Raw bytes: reading them is several times faster than decoding PNG.
        image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description="The first images of an LSUN category, centre crop 256, resized.",
            homepage=URL,
            features=tfds.features.FeaturesDict({"image": image}),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(config.source or {}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        config = self.builder_config
        images = read_lmdb(
            config.folder, config.start, config.stop, config.image_size, config.is_object
        )
        for rank, image in enumerate(images, config.start):
            yield rank, {"image": image}
            if config.advance is not None:
                config.advance()


def _builder(prepared_dir: Path, category: str, **fields: Any) -> Lsun:
    name = f"{category}-{fields['image_size']}px-{fields['start']:07d}-{fields['stop']:07d}"
    config = ChunkConfig(name=name, **fields)
    return Lsun(data_dir=str(prepared_dir), config=config, file_format="array_record")


def _check_source(folder: Path, category: str, first: int, count: int) -> dict[str, int]:
    """Number of entries and size of an LMDB, after checking that it holds enough."""
    if not (folder / "data.mdb").is_file():
        raise lsun_files.not_found(folder.parent, category)
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
) -> dict[str, list[Lsun]]:
    """Prepares consecutive images of each category, with a progress bar; done chunks are kept.

    Chunks are counted from the first image wanted: held-out images, which come after those trained
    on, have chunks of their own and leave the others as they are. A category whose chunks are all
    there needs its LMDB no more; where the LMDB is there too, it must be the one that they came
    from.

    Args:
      data_dir: holds CATEGORY_train_lmdb for each category.
      prepared_dir: the chunks go here.
      categories: LSUN categories.
      images_per_class: how many images, in the byte order of their keys.
      image_size: pixels a side.
      chunk: images a chunk.
      first: rank of the first of them.

    Returns:
      The chunks' builders, in order, for each category.

    Raises:
      UserError: an LMDB that is missing, damaged, too small, or not the one that the prepared
        chunks came from; a folder that cannot be written to.
    """
    stop = first + images_per_class
    bounds = [*range(first, stop, chunk), stop]
    try:
        prepared_dir.mkdir(parents=True, exist_ok=True)
        with (prepared_dir / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process prepares, the others wait for it
            return {
                category: _prepare_category(
                    lsun_files.find(data_dir, category), prepared_dir, category, bounds, image_size
                )
                for category in categories
            }
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as the latter
        raise UserError(
            f"cannot write the prepared images to {prepared_dir}: {str(error).splitlines()[0]}; "
            f"free some space or name another folder with --prepared-dir (what is already prepared "
            f"is kept)"
        ) from error


def _prepare_category(
    folder: Path, prepared_dir: Path, category: str, bounds: list[int], image_size: int
) -> list[Lsun]:
    spans = [
        {"start": start, "stop": stop, "image_size": image_size} for start, stop in pairwise(bounds)
    ]
    source = None
    if (folder / "data.mdb").is_file() or not all(
        Path(_builder(prepared_dir, category, **span).data_dir).exists() for span in spans
    ):
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
    builders = []
    tfds.disable_progress_bar()
    with progress:
        for span in spans:
            builder = _builder(
                prepared_dir,
                category,
                **span,
                folder=folder,
                is_object=category in OBJECTS,
                source=source,
                advance=lambda: progress.update(task, advance=1, visible=True),
            )
            target = Path(builder.data_dir)
            if not target.exists():
                # What a killed preparation left behind.
                for partial in target.parent.glob("incomplete.*"):
                    shutil.rmtree(partial, ignore_errors=True)
                with contextlib.redirect_stdout(io.StringIO()):  # its own announcements
                    builder.download_and_prepare(
                        download_config=tfds.download.DownloadConfig(manual_dir=str(folder.parent))
                    )
            elif source is not None and (was := dict(builder.info.metadata)) != source:
                raise UserError(
                    f"the images in {prepared_dir} were prepared from another {folder.name} "
                    f"({was}, now {source}); remove {target.parent} or name another folder with "
                    f"--prepared-dir"
                )
            else:
                progress.update(task, advance=span["stop"] - span["start"])
            builders.append(builder)
    return builders


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
      image_size: pixels a side.
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
    builders = [builder for category in categories for builder in chunks[category]]
    total = count * len(categories)

    def fill(images: np.ndarray) -> None:
        position = 0
        for builder in builders:
            for example in builder.as_data_source(split="train"):
                images[position] = example["image"]
                position += 1
        if position != total:
            raise UserError(
                f"{prepared_dir} holds {position} of {total} images; remove it and run again"
            )

    key = [[builder.builder_config.name, dict(builder.info.metadata)] for builder in builders]
    images, file = stored(store, (total, image_size, image_size, 3), fill, key)
    labels = np.repeat(np.arange(len(categories)), count)
    return ImageSet(images, labels, categories, file=file)


PREPROCESSING = f"central {CROP} x {CROP}, antialiased"
SOURCE = Source(
    about="LSUN's scenes and objects",
    load=load,
    defaults=Defaults(("church_outdoor", "conference_room"), 20_000, 64),
    classes=f"{len(SCENES)} scenes and {len(OBJECTS)} objects",
    preprocessing=f"{PREPROCESSING}; of objects the largest central square",
    files="the unpacked LMDB folders: `CATEGORY_train_lmdb` for scenes, `CATEGORY` for objects",
    origin=f"<{URL}>",
    in_paper="n = 40 000, Lambda = 60.52; with n = 200 (`lsun_small`) also a collapse run",
    fetched=Fetched("lsun", lsun_files.archives, lsun_files.held, lsun_files.unpack),
)
