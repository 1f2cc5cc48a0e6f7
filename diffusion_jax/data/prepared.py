"""Chunks of prepared images: ArrayRecord files of tf.train.Example, a folder each.

The layout is that of TensorFlow Datasets, which prepared the chunks of earlier versions: theirs
are read as they are, several files a chunk included.
"""

import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from diffusion_jax.errors import UserError

VERSION = "1.0.0"
_FILE = "lsun-train.array_record-{:05d}-of-{:05d}"
_METADATA = "metadata.json"
_BLOCK = 64  # images read at a time


class Chunk(NamedTuple):
    """Images of one shape, in a folder that appears when it is complete.

    Attributes:
      folder: ends with the chunk's name and the version of the format.
      shape: of an image: height, width, channels.
    """

    folder: Path
    shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Tells it from the other chunks that lie beside it."""
        return self.folder.parent.name

    def metadata(self) -> dict[str, Any]:
        """What was written beside the images."""
        path = self.folder / _METADATA
        return json.loads(path.read_text()) if path.exists() else {}

    def images(self) -> Iterator[np.ndarray]:
        """The images in order, uint8.

        Raises:
          UserError: a file is damaged, or holds other images.
        """
        prefix, size = _prefix(math.prod(self.shape)), math.prod(self.shape)
        for path in sorted(self.folder.glob("*.array_record-*")):
            for record in _records(path):
                if len(record) != len(prefix) + size or not record.startswith(prefix):
                    raise _damaged(path, f"it holds no images of {self.shape}")
                yield np.frombuffer(record, np.uint8, offset=len(prefix)).reshape(self.shape)

    def write(self, images: Iterable[np.ndarray], metadata: Callable[[], dict[str, Any]]) -> None:
        """Writes the chunk; `metadata` is asked for what goes beside the images after the last.

        Raises:
          OSError, RuntimeError: it cannot be written (ArrayRecord's errors are the latter), or is
            there already.
        """
        partial = self.folder.with_name(f"incomplete.{uuid.uuid4().hex}_{VERSION}")
        partial.mkdir(parents=True)
        prefix = _prefix(math.prod(self.shape))
        try:
            # Each image is compressed by itself, so that any of them is read at once.
            writer = ArrayRecordWriter(str(partial / _FILE.format(0, 1)), "group_size:1")
            try:
                for image in images:
                    writer.write(prefix + image.astype(np.uint8, copy=False).tobytes())
            finally:
                writer.close()
            (partial / _METADATA).write_text(json.dumps(metadata()))
            partial.rename(self.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _records(path: Path) -> Iterator[bytes]:
    try:
        reader = ArrayRecordReader(str(path))
        for start in range(0, (count := reader.num_records()), _BLOCK):
            yield from reader.read(start, min(start + _BLOCK, count))
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise _damaged(path, str(error).partition("\n")[0]) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is damaged ({why}); remove {path.parent.parent}, and it is prepared again"
    )


def _prefix(size: int) -> bytes:
    """What comes before an image of so many bytes in an Example with the one feature `image`.

    An Example holds Features, Features a map's entry (the name, a Feature), a Feature a BytesList,
    and that the bytes: each is tagged by its field's number and prefixed by its length.
    """
    inner = b""
    for field, before in ((1, b""), (1, b""), (2, _tagged(1, 5) + b"image"), (1, b""), (1, b"")):
        inner = before + _tagged(field, size + len(inner)) + inner
    return inner


def _tagged(field: int, length: int) -> bytes:
    """The tag of a field that has a length, and its length as a varint (protobuf's encoding)."""
    coded, left = bytearray([field << 3 | 2]), length
    while left > 0x7F:
        coded.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes(coded) + bytes([left])
