"""LSUN's categories and the files that hold them: which there are, and where they lie."""

import re
from pathlib import Path

from diffusion_jax.data import layouts
from diffusion_jax.errors import UserError

URL = "https://github.com/fyu/lsun"
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
    if (expected / "data.mdb").is_file():
        return expected
    for path in layouts.found(data_dir, "data.mdb"):
        parts = (data_dir.name, *path.relative_to(data_dir).parts)
        if expected.name in parts:
            return path.parent
    return expected


def not_found(data_dir: Path, category: str) -> UserError:
    """Says what lies there in place of a category's training images."""
    folder = lmdb_folder(data_dir, category)
    known = {
        re.escape(folder.name) + r"\.zip": "{path} is still packed: {unzip}",
        f"{category}_val_lmdb.*": "{path} is the validation set",
    }
    return UserError(
        f"LSUN's {category} was not found: {folder} should be a folder with a file data.mdb, and "
        f"of {data_dir}: {layouts.what_lies(data_dir, known)}. Get {folder.name}.zip as {URL} "
        f"describes, unpack it there or name its parent with --data-dir, or run python -m "
        f"experiments.fetch lsun --classes {category}; without LSUN, run: python -m "
        f"experiments.train_lsun --preset sample"
    )
