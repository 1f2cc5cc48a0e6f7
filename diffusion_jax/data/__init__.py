"""Data sets, one file a source; `load` picks by the configuration, `load_images` by the path."""

from pathlib import Path

import numpy as np

from diffusion_jax.config import DataConfig
from diffusion_jax.data import (
    arrays,
    celeba,
    cifar,
    folder,
    imagenet,
    lsun,
    mnist,
    photographs,
)
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import UserError

# The names that DataConfig.data knows; anything else is the path of a user's own images.
IMAGENET = {f"imagenet{size}": size for size in (16, 32, 64)}
NAMES = ("lsun", "mnist", "mnist_full", "cifar10", *IMAGENET, "celeba", "photographs")


def load(config: DataConfig) -> ImageSet:
    """Loads the training images that the configuration names, preparing them if need be.

    Raises:
      UserError: files that are missing, damaged or fewer than asked for; the message says which.
    """
    return _load(config, 0, config.images_per_class)


def load_split(config: DataConfig) -> tuple[ImageSet, ImageSet | None]:
    """Loads the training images, and the held_out_per_class of each class that follow them.

    Those held out are for evaluations alone: the mean to remove from them is that of the training
    images. None is among these, though crops of one photograph overlap.

    Returns:
      The training images, and those held out, class after class; None where the configuration
      holds out none.

    Raises:
      UserError: a negative number, no images_per_class to follow, or as `load`.
    """
    # First: it knows at once whether all are there.
    held_out = _load_held_out(config)
    return load(config), held_out


def _load_held_out(config: DataConfig) -> ImageSet | None:
    if config.held_out_per_class < 0:
        raise UserError(f"held_out_per_class = {config.held_out_per_class} must not be negative")
    if config.held_out_per_class == 0:
        return None
    if config.images_per_class is None:
        raise UserError(
            f"held_out_per_class = {config.held_out_per_class} are the images after those trained "
            f"on: give images_per_class too"
        )
    return _load(config, config.images_per_class, config.held_out_per_class)


def _load(config: DataConfig, first: int, count: int | None) -> ImageSet:
    """Images first..first + count - 1 of each class."""
    for name in ("images_per_class", "image_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} = {value} must be at least 1")
    if len(set(config.classes)) < len(config.classes):
        raise UserError(f"classes = {config.classes} must name each class once")
    is_path = config.data not in NAMES
    name = Path(config.data).expanduser().absolute().name if is_path else config.data
    data_dir = (config.data_dir or Path("data") / name).expanduser().absolute()
    prepared_dir = (config.prepared_dir or data_dir / "prepared").expanduser().absolute()
    store = Store(prepared_dir, config.memory_gib)
    if is_path:
        return _load_own(config, Selection(config.classes, first, count), store)
    size = config.image_size
    if not config.classes or count is None or size is None:
        raise UserError(
            f"{config.data} needs at least one class, images_per_class and image_size, not "
            f"{config.classes}, {count} and {size}"
        )
    own_size = {"cifar10": cifar.SIZE, **IMAGENET}.get(config.data, size)
    if size != own_size:
        raise UserError(f"image_size = {size}: {config.data} has {own_size} pixels a side")
    if config.data == "mnist":
        return mnist.load(config.classes, count, size, first)
    if config.data == "mnist_full":
        return mnist.load(config.classes, count, size, first, data_dir)
    selection = Selection(config.classes, first, count)
    if config.data == "cifar10":
        return cifar.load(data_dir, selection)
    if config.data in IMAGENET:
        return imagenet.load(data_dir, size, selection, store)
    if config.data == "celeba":
        return celeba.load(data_dir, size, selection, store)
    return _load_lmdb(config, data_dir, store, size, first, count)


def _load_lmdb(
    config: DataConfig, data_dir: Path, store: Store, size: int, first: int, count: int
) -> ImageSet:
    classes, advice = config.classes, "unpack it again"
    if config.data == "photographs":
        photographs.write_lmdb(data_dir, classes)
        advice = "remove that folder, and it is made again"
    else:
        lsun.check_categories(classes)
    try:
        return lsun.load(data_dir, store.folder, classes, count, size, first, store.memory_gib)
    except lsun.DamagedLmdb as error:
        raise UserError(f"{error}; {advice}") from error


def _load_own(config: DataConfig, selection: Selection, store: Store) -> ImageSet:
    """A user's own images, in the grey levels that training takes."""
    path = _existing(config.data)
    if path.is_dir():
        return folder.load(path, config.image_size, selection, store=store)
    _refuse_size(path, config.image_size)
    images = arrays.load(path, selection, store=store)
    if images.images.dtype != np.uint8:
        raise UserError(
            f"{path} holds floats: training takes grey levels from 0 to 255, where 255 stands for "
            f"1; save numpy.uint8(numpy.round(255 * images))"
        )
    return images


def load_images(
    path: Path | str,
    image_size: int | None = None,
    images_per_class: int | None = None,
    memory_gib: float | None = None,
    classes: tuple[str, ...] = (),
) -> ImageSet:
    """Loads a user's own images: a folder of them, or a NumPy file.

    Args:
      path: a folder (see `folder.load`), or an .npy or .npz file (see `arrays.load`).
      image_size: pixels a side to which the files of a folder are cropped and resized.
      images_per_class: at most the first so many of each class; of all, without labels.
      memory_gib: memory that loading may take, in GiB; by default what is free.
      classes: names of the classes wanted, all by default.

    Raises:
      UserError: no such path, or one that holds no usable images; the message says why.
    """
    if images_per_class is not None and images_per_class < 1:
        raise UserError(f"images_per_class = {images_per_class} must be at least 1")
    path = _existing(str(path))
    selection = Selection(classes, count=images_per_class, exact=False)
    if path.is_dir():
        return folder.load(path, image_size, selection, memory_gib)
    _refuse_size(path, image_size)
    return arrays.load(path, selection, memory_gib)


def _existing(data: str) -> Path:
    """The path of a user's own images."""
    path = Path(data).expanduser()
    if path.is_dir():
        return path
    if not path.exists():
        raise UserError(
            f"{path} does not exist: data are {', '.join(NAMES)}, or the path of a folder of "
            f"images, an .npy or an .npz"
        )
    if path.suffix.lower() not in (".npy", ".npz"):
        raise UserError(f"{path} is neither a folder of images nor an .npy or .npz file")
    return path


def _refuse_size(path: Path, image_size: int | None) -> None:
    if image_size is not None:
        raise UserError(f"image_size is for folders of images: {path} is taken as it is")
