"""A folder of images: one subfolder per class, or the images themselves."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from diffusion_jax.data import pictures
from diffusion_jax.data.faults import Faults
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.named_files import endings
from diffusion_jax.data.pictures import FORMATS, ImageSize, Picture
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.storage import Store
from diffusion_jax.data.tree import Entry, entries, is_folder, require_inside, walk
from diffusion_jax.errors import UserError

_NONE = f"no images ({', '.join(FORMATS)}, known by their extension)"


def load(
    folder: Path,
    image_size: ImageSize | None = None,
    selection: Selection | None = None,
    memory_gib: float | None = None,
    store: Store | None = None,
    flat: bool = False,
) -> ImageSet:
    """Loads a folder of images.

    Each subfolder is a class, in the order of the names; images directly in the folder have no
    labels. Files are taken in the order of their names (so 10.png comes before 2.png), and with
    `flat` in that of their paths, name by name. They are known by their extension; hidden ones and
    what systems leave behind (`__MACOSX`, `@eaDir`, `lost+found`, Thumbs.db, ...) are passed over,
    others counted in the notes. What is made of an image is in `pictures.load`. Links within the
    folder are followed; those that lead out of it are refused, so that a folder from elsewhere
    shows no file that is not its own.

    Args:
      folder: holds PNG, JPEG, WebP, TIFF, BMP, GIF or PPM files of 8 bits per channel.
      image_size: pixels per side, or (height, width), see `pictures.load`. By default all images
        must have one size, and are taken as they are.
      selection: which images of each class, or of all where there are no classes; all by default.
      memory_gib: memory that the images may take, in GiB; by default what is free.
      store: where the images go if they are larger than its limit; without it they are refused.
      flat: take the images at every depth as one set without labels, whatever folders they lie in.

    Returns:
      uint8 images, class after class.

    Raises:
      UserError: a folder without images, or that mixes images and subfolders of images, or has
        images deeper than in its subfolders; a link that leads out of it; no such class, or fewer
        images than asked for; or as `pictures.load`.
    """
    if image_size is not None and np.min(image_size) < 1:
        raise UserError(f"image_size = {image_size} must be at least 1")
    selection = selection or Selection(exact=False)
    ignored: list[str] = []  # the endings of files that are no images
    if flat:
        classes = _everything(folder, selection, ignored)
    else:
        classes = _classes(folder, selection, ignored)
    faults, files = Faults(), []
    for path, found in classes.items():
        files.append(found[selection.ranks(f"{path} holds {len(found)} images", len(found))])
        for entry in files[-1]:
            with faults.collected():
                require_inside(folder, entry)
    faults.refuse(f"files of {folder}", sum(map(len, files)))
    images, file, notes = pictures.load(
        str(folder),
        [Picture(entry.path, Path(entry.path)) for found in files for entry in found],
        image_size,
        memory_gib,
        store,
        [str(folder), flat],
    )
    if ignored:
        kinds = ", ".join(sorted(set(ignored))[:5])
        text = f"{len(ignored)} files of {folder} are no images by their names ({kinds})"
        notes = (text, *notes)
    if folder in classes:
        return ImageSet(images, None, (), notes, file)
    labels = np.repeat(np.arange(len(files)), [len(found) for found in files])
    return ImageSet(images, labels, tuple(path.name for path in classes), notes, file)


def _everything(folder: Path, selection: Selection, ignored: list[str]) -> dict[Path, list[Entry]]:
    """The images at every depth of a folder, by its path."""
    selection.of(str(folder), ())
    if images := _images(walk(folder, folder), ignored):
        return {folder: images}
    raise UserError(f"{folder} holds {_NONE}, at any depth")


def _classes(folder: Path, selection: Selection, ignored: list[str]) -> dict[Path, list[Entry]]:
    """The images of each class by the path of its subfolder; or of the folder, where it has them.

    Subfolders that hold no images are passed over, except those that are classes.
    """
    found = entries(folder)
    subfolders = [entry for entry in found if is_folder(entry)]
    images = _images([entry for entry in found if not is_folder(entry)], ignored)
    if images or not subfolders:
        for subfolder in subfolders:
            if _first_image(folder, subfolder, ignored):
                raise UserError(
                    f"{folder} holds images, such as {images[0].name}, beside subfolders of images,"
                    f" such as {subfolder.name}: give either one subfolder per class or images "
                    f"alone, or take the images at every depth as one class with --flat"
                )
        selection.of(str(folder), ())
        if not images:
            raise UserError(f"{folder} holds {_NONE}")
        return {folder: images}
    chosen = [subfolders[i] for i in selection.of(str(folder), [each.name for each in subfolders])]
    faults, classes = Faults(), {}
    for subfolder in chosen:
        found = classes[Path(subfolder.path)] = _class(folder, subfolder, ignored)
        with faults.collected():
            if not found:
                raise UserError(f"{subfolder.path} holds {_NONE}; --classes can leave it out")
    faults.refuse(f"subfolders of {folder}", len(chosen))
    return classes


def _class(folder: Path, subfolder: Entry, ignored: list[str]) -> list[Entry]:
    """The images of a class, which lie in its subfolder itself."""
    require_inside(folder, subfolder)
    found = entries(subfolder.path)
    for entry in found:
        if is_folder(entry) and (deep := _first_image(folder, entry, ignored)):
            path = Path(deep.path).relative_to(folder)
            raise UserError(
                f"{folder} holds images {len(path.parts) - 1} folders deep, such as {path}, but "
                f"takes those directly in its subfolders, each of which is a class: --flat takes "
                f"the images at every depth as one class; where the classes lie deeper, give the "
                f"folder whose subfolders they are"
            )
    return _images([entry for entry in found if not is_folder(entry)], ignored)


def _images(files: Iterable[Entry], ignored: list[str]) -> list[Entry]:
    """The images among files; what the others are is added to those ignored."""
    known = endings()
    images = []
    for entry in files:
        ending = os.path.splitext(entry.name)[1]
        if ending.lower() in known:
            images.append(entry)
        else:
            ignored.append(ending or entry.name)
    return images


def _first_image(folder: Path, subfolder: Entry, ignored: list[str]) -> Entry | None:
    """An image at any depth of a subfolder; where there is none, its files are ignored ones."""
    require_inside(folder, subfolder)
    others: list[str] = []
    for entry in walk(folder, subfolder.path):
        if found := _images([entry], others):
            return found[0]
    ignored += others
    return None
