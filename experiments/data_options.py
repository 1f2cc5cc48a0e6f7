"""The options that name a data set, for commands that need no run, and its default folder."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_jax import data
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.presets import data_defaults
from diffusion_jax.runtime.files import expanded, parse_json


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data, and which of their images."""

    data: str | None
    """A data set of the list above, or the path of a folder of images, a table of them, Parquet,
    an .npy or an .npz."""
    classes: tuple[str, ...] | None = None
    """Names of the data set's classes; by default those of the paper (1 and 8, church_outdoor and
    conference_room, and so on) or of the sample run; of your own files, all."""
    images_per_class: int | None = None
    """Images of each class, the first in the source's order."""
    image_size: int | None = None
    """Pixels per side, to which images are cropped and resized."""
    flat: bool = False
    """Take the images at every depth of a folder of your own as one class; by default each of its
    subfolders is a class."""
    data_dir: Path | None = None
    """Where the data set's files lie; by default data/NAME below the current folder."""
    prepared_dir: Path | None = None
    """Where prepared images lie; by default DATA_DIR/prepared."""
    memory_gib: float | None = None
    """Memory that may be used, in GiB; by default what is free."""


def load(name: str, options: DataOptions) -> ImageSet:
    """The images of a data set, or of a path.

    Raises:
      UserError: options that do not belong to the data named, and all that the sources raise.
    """
    if name in data.SOURCES:
        if not data.SOURCES[name].has_folder and (options.data_dir or options.prepared_dir):
            raise UserError(f"{name} comes with a package: it has no --data-dir and --prepared-dir")
        chosen = {
            field: value
            for field in ("classes", "images_per_class", "image_size", "data_dir", "prepared_dir")
            if (value := getattr(options, field)) is not None
        }
        return data.load(replace(data_defaults(name), flat=options.flat, **chosen))
    for field in ("data_dir", "prepared_dir"):
        if getattr(options, field) is not None:
            raise UserError(f"--{field.replace('_', '-')} is not for files of your own")
    return data.load_images(
        name,
        options.image_size,
        options.images_per_class,
        options.memory_gib,
        options.classes or (),
        options.flat,
    )


def place_of(name: str, data_dir: str | Path | None) -> str:
    """Where a data set lies: that tells it from others of its name."""
    if name in data.SOURCES:
        return f"{name} {os.path.realpath(expanded(data_dir or Path('data') / name))}"
    return os.path.realpath(expanded(name))


def default_folder(
    room: str, name: str, data_dir: Path | None, endings: tuple[str, ...] = ()
) -> Path:
    """ROOM/NAME; and ROOM/NAME-DIGEST for data other than those whose results NAME holds.

    The digest is that of the data's place, so that the same data have the same folder again.

    Args:
      room: the folder that holds the results of one command.
      name: of a data set, or its path.
      data_dir: where the data set's files lie.
      endings: what NAME has at its end, each after a low line.
    """
    place = place_of(name, data_dir)
    plain = Path(room) / "_".join([data.name_of(name), *endings])
    own = plain.with_name(f"{plain.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}")
    if own.exists():
        return own
    try:
        there = parse_json((plain / "result.json").read_bytes())["settings"]
        return plain if place_of(there["data"], there["data_dir"]) == place else own
    except (FileNotFoundError, NotADirectoryError):  # the latter is refused as --out
        return plain
    except (ValueError, LookupError, TypeError, UserError):  # not written by this command
        return own
