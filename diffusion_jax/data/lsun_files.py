"""LSUN's categories and the files that hold them: which there are, and where they lie."""

import os
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import Progress

from diffusion_jax.data import layouts
from diffusion_jax.data.lmdb_reader import open_lmdb
from diffusion_jax.errors import MissingData, UserError
from diffusion_jax.runtime.files import require_room, unwritten, writing

URL = "https://github.com/fyu/lsun"
# An LMDB fills whole pages, and its archive leaves out what is empty in them.
_MOST_EXPANSION = 4
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


def find(data_dir: Path, category: str) -> Path:
    """The folder of a category's training images: `lmdb_folder`, or where else it lies.

    It may lie in a folder of any name, once more in one of its own name, and be `data_dir` itself.
    """
    expected = lmdb_folder(data_dir, category)
    if os.path.isfile(expected / "data.mdb"):  # which one may not look into is none
        return expected
    for path in layouts.found(data_dir, "data.mdb"):
        parts = (data_dir.name, *path.relative_to(data_dir).parts)
        if expected.name in parts:
            return path.parent
    return expected


def not_found(data_dir: Path, category: str) -> MissingData:
    """Says what lies there in place of a category's training images."""
    folder = lmdb_folder(data_dir, category)
    known = {
        re.escape(folder.name) + r"\.zip": "{path} is still packed: {unzip}",
        f"{category}_val_lmdb.*": "{path} is the validation set",
    }
    return MissingData(
        f"LSUN's {category} was not found: {data_dir} should hold the folder {folder.name} with "
        f"its file data.mdb, but {layouts.what_lies(data_dir, known)}; get {folder.name}.zip as "
        f"{URL} describes, unpack it there or name its folder with --data-dir, or run "
        f"python -m experiments.fetch lsun --classes {category}"
    )


def archives(categories: tuple[str, ...]) -> list[str]:
    """The archives that hold these categories.

    Raises:
      UserError: a category that is none of LSUN's.
    """
    check_categories(categories)
    return [f"{lmdb_folder(Path(), category)}.zip" for category in categories]


def held(data_dir: Path, name: str) -> Path | None:
    """Where a folder holds the LMDB of an archive, whole; None where it does not."""
    folder = find(data_dir, name.removesuffix(".zip").removesuffix("_train_lmdb"))
    try:
        open_lmdb(folder).close()
    except (UserError, OSError):
        return None
    return folder


def unpack(archive: Path, target: Path) -> Path:
    """Unpacks the one file that is needed of an archive, data.mdb.

    Where it goes follows from `target` alone: no path in the archive is used.

    Args:
      archive: a zip, whatever it is called for now.
      target: what it is called where it belongs, such as DIR/tower_train_lmdb.zip.

    Returns:
      The folder that has data.mdb once that is complete: `target` without .zip.

    Raises:
      UserError: it is damaged or holds anything else, or there is no room for it.
    """
    folder = target.with_suffix("")
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [
                member
                for member in packed.infolist()
                if PurePosixPath(member.filename).name == "data.mdb"
            ]
            size = sum(member.file_size for member in members)
            if len(members) != 1 or size > _MOST_EXPANSION * archive.stat().st_size:
                raise UserError(
                    f"{archive} is no archive of LSUN: it holds {len(members)} files data.mdb, "
                    f"{size} bytes in all"
                )
            folder.mkdir(exist_ok=True)
            require_room(folder, size, f"what is in {archive}")
            with (
                writing(folder / "data.mdb") as partial,
                packed.open(members[0]) as content,
                partial.open("wb") as file,
            ):
                _copy(content, file, size, target.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); remove it and try again") from (
            error
        )
    except OSError as error:
        raise unwritten(folder, error) from error
    open_lmdb(folder).close()
    return folder


def _copy(content: IO[bytes], file: IO[bytes], size: int, name: str) -> None:
    """Copies an unpacked file, with a progress bar."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"Unpacking {name}", total=size)
        while chunk := content.read(2**20):
            file.write(chunk)
            bar.update(task, advance=len(chunk))
