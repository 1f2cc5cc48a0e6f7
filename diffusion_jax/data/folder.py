"""A folder of images: a subfolder a class, or the images themselves."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data import pictures
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.pictures import FORMATS, Picture
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import UserError


def load(
    folder: Path,
    image_size: int | None = None,
    selection: Selection | None = None,
    memory_gib: float | None = None,
    store: Store | None = None,
) -> ImageSet:
    """Loads a folder of images.

    Each subfolder is a class, in the order of the names; images directly in the folder have no
    labels. Files are taken in the order of their names (so 10.png comes before 2.png) and known by
    their extension; hidden ones are passed over, others counted in the notes. Grey images have one
    channel; if any image has colour, all have three. Transparency is dropped, palettes are turned
    into their colours, and orientations in EXIF are not applied. Links within the folder are
    followed; those that lead out of it are refused, so that a folder from elsewhere shows no file
    that is not its own.

    Args:
      folder: holds PNG, JPEG, WebP, TIFF, BMP, GIF or PPM files of 8 bits a channel.
      image_size: pixels a side. The largest central square of each image is cut out and resized to
        it with antialiasing (Pillow's BILINEAR, as for LSUN), never enlarged. By default all images
        must have one size, and are taken as they are.
      selection: which images of each class, or of all where there are no classes; all by default.
      memory_gib: memory that the images may take, in GiB; by default what is free.
      store: where the images go if they are larger than its limit; without it they are refused.

    Returns:
      uint8 images, class after class.

    Raises:
      UserError: a folder without images or that mixes images and subfolders; a file that cannot be
        read, holds several frames or more than 8 bits a channel; images of different sizes without
        image_size, or smaller than it; too many images for the memory; a link that leads out of
        the folder; no such class, or fewer images than asked for.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size = {image_size} must be at least 1")
    selection = selection or Selection(exact=False)
    class_names, files, notes = _find(folder, selection)
    entries = [Picture(str(path), path) for found in files for path in found]
    images, file, seen = pictures.load(
        str(folder), entries, image_size, memory_gib, store, str(folder)
    )
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files])
    labels = labels if class_names else None
    return ImageSet(images, labels, class_names, (*notes, *seen), file)


def _visible(folder: Path) -> list[Path]:
    """A folder's entries in the order of their names, but for the hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error}") from error


def _find(
    folder: Path, selection: Selection
) -> tuple[tuple[str, ...], list[list[Path]], list[str]]:
    """Class names (none for images directly in the folder), the files of each, and notes."""
    subfolders = [path for path in _visible(folder) if path.is_dir()]
    wanted = selection.of(str(folder), [path.name for path in subfolders])
    chosen = [subfolders[place] for place in wanted]
    for subfolder in subfolders:
        if nested := [path for path in _visible(subfolder) if path.is_dir()]:
            raise UserError(
                f"{nested[0]} is a folder in a class: each subfolder of {folder} should be a class "
                f"and hold nothing but its images; name {subfolder} if its subfolders are the "
                f"classes"
            )
    known = {ext for ext, kind in Image.registered_extensions().items() if kind in FORMATS}
    ignored, files = set(), []
    for place in chosen or [folder]:
        entries = _visible(place)
        files.append([path for path in entries if path.suffix.lower() in known])
        ignored |= set(entries) - set(files[-1])
        if not files[-1]:
            raise UserError(
                f"{place} holds no images ({', '.join(FORMATS)}, known by their extension)"
            )
    if subfolders:
        others = set(_visible(folder)) - set(subfolders)
        if stray := sorted(path for path in others if path.suffix.lower() in known):
            raise UserError(
                f"{folder} holds images, such as {stray[0].name}, beside subfolders, such as "
                f"{subfolders[0].name}: give either a subfolder a class or images alone"
            )
        ignored |= others
    notes = []
    if ignored:
        kinds = ", ".join(sorted({path.suffix or path.name for path in ignored})[:5])
        notes.append(f"{len(ignored)} files of {folder} are no images by their names ({kinds})")
    for i, place in enumerate(chosen or [folder]):
        held = f"{place} holds {len(files[i])} images"
        files[i] = files[i][selection.ranks(held, len(files[i]))]
        _require_inside(folder, files[i])
    return tuple(path.name for path in chosen), files, notes


def _require_inside(folder: Path, paths: list[Path]) -> None:
    """Refuses links out of the folder, and whatever is no plain file, before it is opened."""
    root = folder.resolve()
    links = {path.parent for path in paths if path.parent.is_symlink()}
    for path in paths:
        if path.is_symlink() or path.parent in links:
            target = path.resolve()
            if not target.is_relative_to(root):
                raise UserError(
                    f"{path} leads out of {folder}, to {target}: copy the file there, or give the "
                    f"folder that it leads to"
                )
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; take it out of the folder")
