"""Data sets, one file per source; `load` picks by the configuration, `load_images` by the path."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion_jax.config import DataConfig
from diffusion_jax.data import (
    arrays,
    celeba,
    cifar,
    contents,
    folder,
    imagenet,
    lsun,
    mnist,
    own,
    photographs,
)
from diffusion_jax.data.images import ImageSet, in_grey
from diffusion_jax.data.names import FILES, name_of
from diffusion_jax.data.pictures import ImageSize
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults as Defaults
from diffusion_jax.data.source import Source as Source
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import expanded

# What DataConfig.data may name; anything else is the path of a user's own images. A source from
# outside the package is added here too: SOURCES["mine"] = Source(...).
SOURCES: dict[str, Source] = {
    "lsun": lsun.SOURCE,
    "mnist": mnist.SHIPPED,
    "mnist_full": mnist.FULL,
    "cifar10": cifar.SOURCE,
    "imagenet16": imagenet.SOURCES[16],
    "imagenet32": imagenet.SOURCES[32],
    "imagenet64": imagenet.SOURCES[64],
    "celeba": celeba.SOURCE,
    "photographs": photographs.SOURCE,
}


def listing() -> str:
    """All that DataConfig.data may be, one line each, for the help of commands."""
    lines = [f"  {name:<12} {source.about}" for name, source in SOURCES.items()]
    path = "  a path       a folder of images, a table of them, Parquet, .npy or .npz"
    return "\n".join(["data sets, for --data:", *lines, path])


def load(config: DataConfig) -> ImageSet:
    """Loads the training images that the configuration names, preparing them if need be.

    Raises:
      UserError: files that are missing, damaged or fewer than asked for; the message says which.
    """
    _check_numbers(config)
    return _load(config, config.skip_per_class, config.images_per_class)


def load_split(config: DataConfig) -> tuple[ImageSet, ImageSet | None]:
    """Loads the training images, and held_out_per_class others of each class.

    These follow the training images, or the first held_out_after of each class. They are for
    evaluations alone: the mean to remove from them is that of the training images. None is among
    these, though crops of one photograph overlap.

    Returns:
      The training images, and those held out, class after class; None where the configuration
      holds out none.

    Raises:
      UserError: a negative number, no images_per_class to follow, held_out_after among the
        training images, or as `load`.
    """
    # First: it knows at once whether all are there.
    held_out = _load_held_out(config)
    return load(config), held_out


def _load_held_out(config: DataConfig) -> ImageSet | None:
    _check_numbers(config)
    if config.held_out_per_class == 0:
        return None
    if config.images_per_class is None:
        raise UserError(
            f"held_out_per_class = {config.held_out_per_class} are the images after those trained "
            f"on: give images_per_class too"
        )
    end, first = config.skip_per_class + config.images_per_class, config.held_out_after
    if first is not None and first < end:
        raise UserError(
            f"held_out_after = {first}: the images trained on are among the first {end} of each "
            f"class, and those held out must come after them"
        )
    return _load(config, end if first is None else first, config.held_out_per_class)


def _check_numbers(config: DataConfig) -> None:
    for name, least, bound in (
        ("images_per_class", 1, "must be at least 1"),
        ("image_size", 1, "must be at least 1"),
        ("held_out_per_class", 0, "must not be negative"),
        ("skip_per_class", 0, "must not be negative"),
        ("held_out_after", 0, "must not be negative"),
    ):
        value = getattr(config, name)
        if value is not None and not isinstance(value, int | np.integer):
            raise UserError(f"{name} = {value!r} must be a whole number")
        if value is not None and value < least:
            raise UserError(f"{name} = {value} {bound}")


def _load(config: DataConfig, first: int, count: int | None) -> ImageSet:
    """Images first..first + count - 1 of each class, grey where that is asked for."""
    images = _in_color(config, first, count)
    return in_grey(images) if config.grey else images


def _in_color(config: DataConfig, first: int, count: int | None) -> ImageSet:
    if len(set(config.classes)) < len(config.classes):
        raise UserError(f"classes = {config.classes} must name each class once")
    source = SOURCES.get(config.data)
    selection = Selection(config.classes, first, count)
    data_dir = expanded(config.data_dir or Path("data") / name_of(config.data)).absolute()
    prepared_dir = expanded(config.prepared_dir or data_dir / "prepared").absolute()
    store = Store(prepared_dir, config.memory_gib)
    if source is None:
        return _load_own(config, selection, store)
    if config.flat:
        raise UserError(f"flat is for folders of your own images, not for {config.data}")
    size = config.image_size
    words = source.classes if isinstance(source.classes, str) else ", ".join(source.classes)
    if not config.classes or count is None or size is None:
        raise UserError(
            f"{config.data} needs at least one class, images_per_class and image_size, not "
            f"{config.classes}, {count} and {size}; its classes are {words}"
        )
    if source.sizes and size not in source.sizes:
        sizes = " or ".join(map(str, source.sizes))
        raise UserError(f"image_size = {size}: {config.data} has {sizes} pixels per side")
    if not isinstance(source.classes, str):
        selection.of(config.data, source.classes)
    return _grey_levels(config.data, source.load(data_dir, size, selection, store))


def _load_own(config: DataConfig, selection: Selection, store: Store) -> ImageSet:
    """A user's own images, in the grey levels that training takes."""
    path = _existing(config.data)
    images = _read_own(path, config.image_size, selection, None, store, config.flat)
    return _grey_levels(path, images)


def _read_own(
    path: Path,
    image_size: ImageSize | None,
    selection: Selection,
    memory_gib: float | None,
    store: Store | None,
    flat: bool,
) -> ImageSet:
    """A user's own images, by the reader of what the path holds."""
    if path.is_dir() and flat:
        return folder.load(path, image_size, selection, memory_gib, store, flat)
    if path.is_dir() and (digits := mnist.own(path, image_size, selection)):
        return digits
    found = contents.find(path)
    if found.files:
        _refuse_for_file(path, None, flat)
        return own.load(found, image_size, selection, memory_gib, store)
    if path.is_dir():
        images = folder.load(path, image_size, selection, memory_gib, store)
        return replace(images, notes=(*found.notes, *images.notes))
    _refuse_for_file(path, image_size, flat)
    return arrays.load(path, selection, memory_gib, store)


def _grey_levels(what: Path | str, images: ImageSet) -> ImageSet:
    """The images, which training takes as uint8 alone."""
    if images.images.dtype != np.uint8:
        raise UserError(
            f"{what} holds floats: training takes grey levels from 0 to 255, where 255 stands for "
            f"1; save numpy.uint8(numpy.round(255 * images))"
        )
    return images


def load_images(
    path: Path | str,
    image_size: ImageSize | None = None,
    images_per_class: int | None = None,
    memory_gib: float | None = None,
    classes: tuple[str, ...] = (),
    flat: bool = False,
) -> ImageSet:
    """Loads a user's own images: a folder of them, or a NumPy file.

    Args:
      path: a folder (see `folder.load`), a table of images or Parquet files that hold them (see
        `contents.find`), or an .npy or .npz file (see `arrays.load`).
      image_size: pixels per side, or (height, width), to which the files of a folder are cropped
        and resized.
      images_per_class: at most this many of each class, the first ones; of all images, without
        labels.
      memory_gib: memory that loading may take, in GiB; by default what is free.
      classes: names of the classes wanted, all by default.
      flat: take a folder's images at every depth as one set without labels, whatever tables say.

    Raises:
      UserError: no such path, or one that holds no usable images; the message says why.
    """
    if images_per_class is not None and images_per_class < 1:
        raise UserError(f"images_per_class = {images_per_class} must be at least 1")
    path = _existing(str(path))
    selection = Selection(classes, count=images_per_class, exact=False)
    return _read_own(path, image_size, selection, memory_gib, None, flat)


def _existing(data: str) -> Path:
    """The path of a user's own images."""
    path = expanded(data)
    if path.is_dir():
        return path
    if not path.exists():
        raise UserError(
            f"{path} does not exist: data are {', '.join(SOURCES)}, or the path of a folder of "
            f"images or of one of {', '.join(FILES)}"
        )
    if path.suffix.lower() not in FILES:
        raise UserError(f"{path} is neither a folder of images nor one of {', '.join(FILES)}")
    return path


def _refuse_for_file(path: Path, image_size: ImageSize | None, flat: bool) -> None:
    for name, given in (("image_size", image_size is not None), ("flat", flat)):
        if given:
            raise UserError(f"{name} is for folders of images: {path} is taken as it is")
