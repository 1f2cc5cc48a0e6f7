"""Crops of the colour photographs that scikit-image ships, as LMDB folders in LSUN's format.

They stand in for LSUN where nothing can be downloaded: the very same reader and builder run.
"""

import hashlib
import io
import os
import shutil
import uuid
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image
from rich.progress import track

from diffusion_jax.data import lsun
from diffusion_jax.data.images import CROP, ImageSet
from diffusion_jax.data.lsun import lmdb_folder
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Source
from diffusion_jax.data.storage import Store, unwritten
from diffusion_jax.errors import UserError

# The photographs of each class. Crops overlap: this is a set to try things on, not to publish on.
CLASSES = {
    "everyday": ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"),
    "medical": ("ihc.png", "retina.jpg"),
}
CROPS_PER_CLASS = 1000


def _crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of 40 to 100 % of the shorter side, mirrored half the time, at 256 pixels."""
    side = round(rng.uniform(0.4, 1.0) * min(photograph.size))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    crop = photograph.resize((CROP, CROP), Image.Resampling.BICUBIC, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def write_lmdb(
    data_dir: Path, classes: tuple[str, ...], crops_per_class: int = CROPS_PER_CLASS
) -> None:
    """Writes one LMDB folder per class, as LSUN's archives have them, where it is missing.

    Values are WebP images; keys are 40 hexadecimal digits of a hash, so that their order mixes the
    photographs. The same crops come out each time. A folder appears only once it is complete.

    Args:
      data_dir: folder to write to.
      classes: names in `CLASSES`.
      crops_per_class: images in each LMDB.

    Raises:
      UserError: an unknown class, or a folder that cannot be written to.
    """
    if unknown := set(classes) - set(CLASSES):
        raise UserError(
            f"photographs has no class {', '.join(sorted(unknown))}; its classes are "
            f"{', '.join(CLASSES)}"
        )
    for name in classes:
        folder = lmdb_folder(data_dir, name)
        if os.path.isdir(folder):
            continue
        try:
            partial = data_dir / f".{folder.name}.{uuid.uuid4().hex}"
            partial.mkdir(parents=True)  # as others may read it, unlike a temporary folder
            try:
                _write_class(partial, name, crops_per_class)
                partial.rename(folder)
            except OSError:
                if not os.path.isdir(folder):  # else another process made the same meanwhile
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except (OSError, lmdb.Error) as error:
            what = f"cannot write the photographs to {data_dir}"
            raise unwritten(what, error, "free some space", "--data-dir") from error


def _write_class(folder: Path, name: str, crops: int) -> None:
    import skimage

    source = Path(skimage.__file__).parent / "data"
    photographs = [Image.open(source / file).convert("RGB") for file in CLASSES[name]]
    rng = np.random.default_rng(list(name.encode()))
    with (
        lmdb.open(str(folder), map_size=2**32, lock=False) as env,
        env.begin(write=True) as transaction,
    ):
        for i in track(range(crops), f"Cropping photographs: {name}", transient=True):
            image = _crop(photographs[i % len(photographs)], rng)
            value = io.BytesIO()
            image.save(value, "WEBP", quality=90, method=0)
            key = hashlib.sha1(f"{name}-{i}".encode()).hexdigest()
            transaction.put(key.encode(), value.getvalue())


def load(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    """Loads crops as `lsun.load_lmdb` does, making them first where they are not yet prepared.

    Raises:
      UserError: see `write_lmdb` and `lsun.prepare`.
    """
    classes, count, first = selection.classes, selection.count, selection.first
    assert count is not None  # data.load requires it
    if not lsun.are_prepared(store.folder, classes, count, image_size, first=first):
        write_lmdb(data_dir, classes)
    advice = "remove that folder, and it is made again"
    return lsun.load_lmdb(data_dir, image_size, selection, store, advice)


SOURCE = Source(
    about="crops of scikit-image's photographs, made on the spot",
    load=load,
    defaults=Defaults(tuple(CLASSES), 500, 16),
    classes=tuple(CLASSES),
    preprocessing=lsun.PREPROCESSING,
    files="none: crops of scikit-image's photographs, made on the spot",
)
