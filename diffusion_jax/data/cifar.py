"""CIFAR-10 from its binary version, packed or unpacked; never from the Python version's pickles."""

import lzma
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np

from diffusion_jax.data import layouts
from diffusion_jax.data.faults import Faults
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.source import Defaults, Fetched, Source
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import MissingData, UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
FOLDER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
_ARCHIVES = (ARCHIVE, "cifar-10-binary.tar", "cifar-10-binary.tgz")
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
_KNOWN = {
    r"(?i)cifar-?10-(batches-py|python\..*)|data_batch_1": (
        "{path} is of the Python version, whose pickles are never read"
    ),
    r"(?i)cifar-?10-(batches-mat|matlab\..*)": "{path} is the Matlab version",
    r"(?i)cifar-?100.*": "{path} is CIFAR-100, another set",
    r"(?i)(archive|.*cifar-?10(?!0).*)\.zip": "{path} is not the binary version's archive",
}


def load(data_dir: Path, image_size: int, selection: Selection, store: Store) -> ImageSet:
    """Loads images of the training batches, class after class, in the batches' order.

    Args:
      data_dir: holds cifar-10-binary.tar.gz, of which nothing is unpacked, or the folder
        cifar-10-batches-bin that it unpacks to; or is that folder, or a folder in it is. Of several
        copies the first that is whole is read.
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
    records = np.concatenate(_read(data_dir))
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


def _read(data_dir: Path) -> list[np.ndarray]:
    """The records of each training batch."""
    copies = _copies(data_dir)
    if not copies:
        raise MissingData(
            f"CIFAR-10 was not found: {data_dir} should hold {ARCHIVE}, the binary version, or the "
            f"folder {FOLDER} that it unpacks to, but {layouts.what_lies(data_dir, _KNOWN)}; get "
            f"{URL}, put it there or name its folder with --data-dir, or run "
            f"python -m experiments.fetch cifar10"
        )
    return layouts.first_usable(copies, _batches, "CIFAR-10")


def held(data_dir: Path, name: str) -> Path | None:
    """Where a folder holds the training batches, whole, in any layout; None where it does not."""
    for copy in _copies(data_dir):
        with suppress(UserError):
            _batches(copy)
            return copy
    return None


def _copies(data_dir: Path) -> list[Path]:
    """Folders that hold a batch, and archives."""
    unpacked = [folder for folder, files in layouts.folders(data_dir) if {*BATCHES} & {*files}]
    return unpacked + layouts.found(data_dir, *_ARCHIVES)


def _batches(copy: Path) -> list[np.ndarray]:
    """The records of each training batch in a folder or an archive."""
    found = {}
    try:
        if copy.is_dir():
            for name in BATCHES:
                if (copy / name).is_file():
                    _check_size(copy / name, (copy / name).stat().st_size)
                    found[name] = (copy / name).read_bytes()
        else:
            found = _unpack(copy)
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{copy} cannot be read ({reason}); get {URL} again") from error
    if missing := [name for name in BATCHES if name not in found]:
        raise UserError(
            f"{', '.join(missing)} of CIFAR-10's binary version is missing from {copy}; get {URL} "
            f"again"
        )
    faults, records = Faults(), []
    for name in BATCHES:
        with faults.collected():
            records.append(_records(str(copy / name), found[name]))
    faults.refuse(f"batches in {copy}", len(BATCHES))
    return records


def _unpack(archive: Path) -> dict[str, bytes]:
    """The training batches in the archive; no member is written anywhere."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _check_size(Path(member.name), member.size)
            path = PurePosixPath(member.name)
            inside = not path.is_absolute() and ".." not in path.parts
            # A link's content would be another member's; a real archive holds none.
            if inside and path.name in BATCHES and member.isreg():
                file = tar.extractfile(member)
                assert file is not None  # a regular member
                found[path.name] = file.read()
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
    fetched=Fetched("cifar10", lambda classes: [ARCHIVE], held),
)
