"""CIFAR-10 from its binary version, packed or unpacked; never from the Python version's pickles."""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Source
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
FOLDER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SIZE = 32
# A label, then the red, the green and the blue pixels, each row by row.
_RECORD = 1 + 3 * SIZE * SIZE
_MOST_BYTES = 10_000 * _RECORD


def load(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    """Loads images of the training batches, class after class, in the batches' order.

    Args:
      data_dir: holds cifar-10-binary.tar.gz, of which nothing is unpacked, or the folder
        cifar-10-batches-bin that it unpacks to.
      image_size: 32.
      selection: names in `CLASSES`, and which images of each.
      store: not used, as all of CIFAR-10 is small.

    Returns:
      uint8 images of 32 x 32 pixels and three channels.

    Raises:
      UserError: files that are missing or damaged; no such class; fewer images than asked for.
    """
    wanted = selection.of("CIFAR-10", CLASSES)
    names = tuple(CLASSES[label] for label in wanted)
    records = np.concatenate([_records(name, data) for name, data in _read(data_dir).items()])
    places = selection.places("cifar10", records[:, 0], wanted, names)
    pixels = records[np.concatenate(places), 1:].reshape(-1, 3, SIZE, SIZE)
    labels = np.repeat(np.arange(len(names)), [len(each) for each in places])
    return ImageSet(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels, names)


def _records(name: str, data: bytes) -> np.ndarray:
    """The records of a batch, uint8 (n, 3073)."""
    records = np.frombuffer(data[: len(data) // _RECORD * _RECORD], np.uint8).reshape(-1, _RECORD)
    if len(data) % _RECORD or not len(records) or records[:, 0].max() >= len(CLASSES):
        raise UserError(
            f"{name} of CIFAR-10 is damaged: it should be records of {_RECORD} bytes, of which the "
            f"first is a label from 0 to 9, and has {len(data)} bytes; get {URL} again"
        )
    return records


def _read(data_dir: Path) -> dict[str, bytes]:
    """The content of each training batch."""
    folder, archive = data_dir / FOLDER, data_dir / ARCHIVE
    found = {}
    try:
        if folder.is_dir():
            for name in BATCHES:
                if (folder / name).is_file():
                    _check_size(folder / name, (folder / name).stat().st_size)
                    found[name] = (folder / name).read_bytes()
        elif archive.is_file():
            found = _unpack(archive)
        else:
            raise UserError(
                f"CIFAR-10 was not found: {data_dir} should hold {ARCHIVE}, the binary version, or "
                f"the folder {FOLDER} that it unpacks to; get {URL}, put it there or name its "
                f"folder with --data-dir"
            )
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"CIFAR-10 in {data_dir} cannot be read ({error}); get {URL} again") from (
            error
        )
    if missing := [name for name in BATCHES if name not in found]:
        raise UserError(
            f"{', '.join(missing)} of CIFAR-10's binary version is missing from "
            f"{folder if folder.is_dir() else archive}; get {URL} again"
        )
    return {name: found[name] for name in BATCHES}


def _unpack(archive: Path) -> dict[str, bytes]:
    """The training batches in the archive; no member is written anywhere."""
    found = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            _check_size(Path(member.name), member.size)
            folder, _, name = member.name.rpartition("/")
            # A link's content would be another member's; a real archive holds none.
            if folder == FOLDER and name in BATCHES and member.isreg():
                file = tar.extractfile(member)
                assert file is not None  # a regular member
                found[name] = file.read()
            if len(found) == len(BATCHES):
                break
    return found


def _check_size(name: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise UserError(
            f"{name} has {size} bytes, but no file of CIFAR-10 more than {_MOST_BYTES}: it is "
            f"another file; get {URL} again"
        )


SOURCE = Source(
    about="CIFAR-10: small colour photographs in ten classes",
    load=load,
    defaults=Defaults(("automobile", "horse"), 1500, SIZE),
    classes=CLASSES,
    files=f"`{ARCHIVE}` as it is, or the folder `{FOLDER}` in it",
    origin="<https://www.cs.toronto.edu/~kriz/cifar.html>, the binary version",
    sizes=(SIZE,),
    in_paper="n = 3 000, Lambda = 16.72",
)
