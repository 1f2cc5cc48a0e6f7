"""Data sets, one file a source; `load` picks by the configuration, `load_files` by the path."""

from pathlib import Path

from diffusion_jax.config import DataConfig
from diffusion_jax.data import arrays, folder, lsun, mnist, photographs
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError


def load(config: DataConfig) -> ImageSet:
    """Loads the training images that the configuration names, preparing them if need be.

    Raises:
      UserError: files that are missing, damaged or fewer than asked for; the message says which.
    """
    return _load(config, 0, config.images_per_class)


def load_held_out(config: DataConfig) -> ImageSet | None:
    """Loads the held_out_per_class images of each class that follow those trained on.

    They are for evaluations alone: the mean to remove from them is that of `load`'s. None is among
    `load`'s, though crops of one photograph overlap.

    Returns:
      The images, class after class; None where the configuration holds out none.

    Raises:
      UserError: a negative number, or as `load`.
    """
    if config.held_out_per_class < 0:
        raise UserError(f"held_out_per_class = {config.held_out_per_class} must not be negative")
    if config.held_out_per_class == 0:
        return None
    return _load(config, config.images_per_class, config.held_out_per_class)


def _load(config: DataConfig, first: int, count: int) -> ImageSet:
    """Images first..first + count - 1 of each class."""
    if config.images_per_class < 1 or config.image_size < 1:
        raise UserError(
            f"images_per_class = {config.images_per_class} and image_size = {config.image_size} "
            f"must be at least 1"
        )
    if not config.classes or len(set(config.classes)) < len(config.classes):
        raise UserError(f"classes = {config.classes} must name at least one class, each once")
    if config.data == "mnist":
        return mnist.load(config.classes, count, config.image_size, first)
    data_dir = (config.data_dir or Path("data") / config.data).expanduser().absolute()
    prepared_dir = (config.prepared_dir or data_dir / "prepared").expanduser().absolute()
    advice = "unpack it again"
    if config.data == "photographs":
        photographs.write_lmdb(data_dir, config.classes)
        advice = "remove that folder, and it is made again"
    try:
        return lsun.load(data_dir, prepared_dir, config.classes, count, config.image_size, first)
    except lsun.DamagedLmdb as error:
        raise UserError(f"{error}; {advice}") from error


def load_files(
    path: Path,
    image_size: int | None = None,
    images_per_class: int | None = None,
    memory_gib: float | None = None,
) -> ImageSet:
    """Loads a user's own images: a folder of them, or a NumPy file.

    Args:
      path: a folder (see `folder.load`), or an .npy or .npz file (see `arrays.load`).
      image_size: pixels a side to which the files of a folder are cropped and resized.
      images_per_class: at most the first so many of each class; of all, without labels.
      memory_gib: memory that loading may take, in GiB; by default what is free.

    Raises:
      UserError: no such path, or one that holds no usable images; the message says why.
    """
    if images_per_class is not None and images_per_class < 1:
        raise UserError(f"images_per_class = {images_per_class} must be at least 1")
    path = path.expanduser()
    if path.is_dir():
        return folder.load(path, image_size, images_per_class, memory_gib)
    if not path.exists():
        raise UserError(f"{path} does not exist: it should be a folder of images, an .npy or .npz")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise UserError(f"{path} is neither a folder of images nor an .npy or .npz file")
    if image_size is not None:
        raise UserError(f"image_size is for folders of images: {path} is taken as it is")
    return arrays.load(path, images_per_class, memory_gib)
