"""Data sets, one file a source; `load` picks by the configuration."""

from pathlib import Path

from diffusion_jax.config import DataConfig
from diffusion_jax.data import lsun, mnist, photographs
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError


def load(config: DataConfig) -> ImageSet:
    """Loads the images that the configuration names, preparing them if need be.

    Raises:
      UserError: files that are missing, damaged or fewer than asked for; the message says which.
    """
    if config.images_per_class < 1 or config.image_size < 1:
        raise UserError(
            f"images_per_class = {config.images_per_class} and image_size = {config.image_size} "
            f"must be at least 1"
        )
    if not config.classes or len(set(config.classes)) < len(config.classes):
        raise UserError(f"classes = {config.classes} must name at least one class, each once")
    if config.data == "mnist":
        return mnist.load(config.classes, config.images_per_class, config.image_size)
    data_dir = (config.data_dir or Path("data") / config.data).expanduser().absolute()
    prepared_dir = (config.prepared_dir or data_dir / "prepared").expanduser().absolute()
    if config.data == "photographs":
        photographs.write_lmdb(data_dir, config.classes)
    return lsun.load(
        data_dir, prepared_dir, config.classes, config.images_per_class, config.image_size
    )
