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

import lmdb
import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusion_jax.data.images import (
    UNREADABLE,
    ImageSet,
    centre_crop_and_resize,
    crop_and_resize,
    open_image,
    require_images,
)
from diffusion_jax.data.storage import Store, stored
from diffusion_jax.errors import UserError

CHUNK = 2048
SCENES = (
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
)
OBJECTS = (
    "airplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining_table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted_plant",
    "sheep",
    "sofa",
    "train",
    "tv-monitor",
)


class DamagedLmdb(UserError):
    """An LMDB that cannot be used as it is; what to do about it depends on who made it."""


def lmdb_folder(data_dir: Path, category: str) -> Path:
    """The folder of a category's training images, as LSUN's archives name it."""
    return data_dir / (category if category in OBJECTS else f"{category}_train_lmdb")


def check_categories(categories: tuple[str, ...]) -> None:
    """Raises a UserError with the list of LSUN's categories where one is none of them."""
    if unknown := [name for name in categories if name not in SCENES + OBJECTS]:
        raise UserError(
            f"LSUN has no category {', '.join(unknown)}; its scenes are {', '.join(SCENES)}; its "
            f"objects are {', '.join(OBJECTS)}"
        )


def _open(folder: Path) -> lmdb.Environment:
    """Opens an LMDB for reading.

    Raises:
      DamagedLmdb: it is damaged or truncated. Reading past a truncated file's end would end the
        process without a word.
    """
    try:
        env = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DamagedLmdb(f"the LMDB {folder} cannot be read ({error})") from error
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    actual = (folder / "data.mdb").stat().st_size
    if actual < expected:
        env.close()
        raise DamagedLmdb(
            f"the LMDB {folder} is truncated: data.mdb has {actual} of at least {expected} bytes"
        )
    return env


def _decode(value: memoryview, image_size: int, is_object: bool) -> np.ndarray:
    with open_image(io.BytesIO(value), ("WEBP", "JPEG", "PNG")) as image:
        if not is_object:
            return centre_crop_and_resize(image, image_size)
        side = min(image.size)
        if side < image_size:
            raise ValueError(f"it is {image.width} x {image.height} pixels, and is not enlarged")
        return crop_and_resize(image.convert("RGB"), side, image_size)


def read_lmdb(
    folder: Path, start: int, stop: int, image_size: int, is_object: bool = False
) -> Iterator[np.ndarray]:
    """Reads the images of ranks start..stop-1 in the byte order of their keys.

    Args:
      folder: an LMDB folder of LSUN; values are WebP or JPEG images.
      start: first rank.
      stop: rank after the last.
      image_size: pixels a side.
      is_object: take the largest central square, since images of objects differ in size; by
        default the central 256 x 256 pixels, as the paper does for scenes.

    Yields:
      uint8 (image_size, image_size, 3), see `images.centre_crop_and_resize`.

    Raises:
      DamagedLmdb: it cannot be read, or an image in it cannot be decoded or is too small.
    """
    with _open(folder) as env, env.begin(buffers=True) as transaction:
        try:
            for rank, (key, value) in enumerate(transaction.cursor()):
                if rank >= stop:
                    return
                if rank < start:
                    continue
                try:
                    yield _decode(value, image_size, is_object)
                except UNREADABLE as error:
                    raise DamagedLmdb(
                        f"image {bytes(key).decode(errors='replace')} (number {rank}) of the LMDB "
                        f"{folder} cannot be used: {error}"
                    ) from error
        except lmdb.Error as error:
            raise DamagedLmdb(f"the LMDB {folder} cannot be read ({error})") from error


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
    MANUAL_DOWNLOAD_INSTRUCTIONS = "LSUN's LMDB folders, from https://github.com/fyu/lsun"

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        shape = (config.image_size, config.image_size, 3)
        # Raw bytes: reading them is several times faster than decoding PNG.
        image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description="The first images of an LSUN category, centre crop 256, resized.",
            homepage="https://github.com/fyu/lsun",
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
        raise UserError(
            f"LSUN's {category} was not found: {folder} should be a folder with a file data.mdb. "
            f"Get {folder.name}.zip as https://github.com/fyu/lsun describes, unpack it "
            f"there or name its parent with --data-dir; without LSUN, run: "
            f"python -m experiments.train_lsun --preset sample"
        )
    with _open(folder) as env:
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
                    lmdb_folder(data_dir, category), prepared_dir, category, bounds, image_size
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
        TextColumn("Preparing {task.description}"),
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


def load(
    data_dir: Path,
    prepared_dir: Path,
    categories: tuple[str, ...],
    images_per_class: int,
    image_size: int,
    first: int = 0,
    memory_gib: float | None = None,
) -> ImageSet:
    """Loads consecutive images of each category, preparing them if need be.

    Args: see `prepare`; and memory_gib, above which they are mapped from a file in prepared_dir
      (see `storage.stored`).

    Returns:
      Images of three channels, category after category.

    Raises:
      UserError: see `prepare`.
    """
    chunks = prepare(data_dir, prepared_dir, categories, images_per_class, image_size, first=first)
    builders = [builder for category in categories for builder in chunks[category]]
    total = images_per_class * len(categories)

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

    store = Store(prepared_dir, memory_gib)
    key = [[builder.builder_config.name, dict(builder.info.metadata)] for builder in builders]
    images, file = stored(store, (total, image_size, image_size, 3), fill, key)
    labels = np.repeat(np.arange(len(categories)), images_per_class)
    return ImageSet(images, labels, categories, file=file)
