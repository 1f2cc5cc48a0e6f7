"""Images in an LMDB folder of LSUN, read in the order of their keys."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from diffusion_jax.data.images import (
    UNREADABLE,
    centre_crop_and_resize,
    crop_and_resize,
    open_image,
)
from diffusion_jax.errors import UserError


class DamagedLmdb(UserError):
    """An LMDB that cannot be used as it is; what to do about it depends on who made it."""


def open_lmdb(folder: Path) -> lmdb.Environment:
    """Opens an LMDB for reading.

    Raises:
      DamagedLmdb: it is damaged or truncated. Reading past a truncated file's end would end the
        process without a word.
    """
    try:
        env = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DamagedLmdb(f"the LMDB {folder} cannot be read ({error})") from error
    expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    actual = (folder / "data.mdb").stat().st_size
    if actual < expected:
        env.close()
        raise DamagedLmdb(
            f"the LMDB {folder} is truncated: data.mdb has {actual} of at least {expected} bytes"
        )
    return env


def _decode(value: memoryview, image_size: int, is_object: bool) -> np.ndarray:
    with open_image(io.BytesIO(value), ("WEBP", "JPEG", "PNG")) as image:
        if not is_object:
            return centre_crop_and_resize(image, image_size)
        side = min(image.size)
        if side < image_size:
            raise ValueError(f"it is {image.width} x {image.height} pixels, and is not enlarged")
        return crop_and_resize(image.convert("RGB"), side, image_size)


def _entries(
    cursor: Any, start: int, keys: dict[int, bytes]
) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Rank, key and value from a rank on, by way of the last one before it whose key is known.

    An LMDB finds keys at once, but ranks by walking, and lmdb reads every value on the way.
    """
    known = max((rank for rank in keys if rank <= start), default=0)
    if not (known in keys and cursor.set_key(keys[known])):
        known, _ = 0, cursor.first()
    for rank, (key, value) in enumerate(cursor, known):
        if rank >= start:
            yield rank, key, value


def read_lmdb(
    folder: Path,
    start: int,
    stop: int,
    image_size: int,
    is_object: bool = False,
    keys: dict[int, bytes] | None = None,
) -> Iterator[np.ndarray]:
    """Reads the images of ranks start..stop-1 in the byte order of their keys.

    Args:
      folder: an LMDB folder of LSUN; values are WebP or JPEG images.
      start: first rank.
      stop: rank after the last.
      image_size: pixels per side.
      is_object: take the largest central square, since images of objects differ in size; by
        default the central 256 x 256 pixels, as the paper does for scenes.
      keys: keys of some ranks, so that the walk to `start` begins near it; that of `stop` is added
        at the end, if there is one.

    Yields:
      uint8 (image_size, image_size, 3), see `images.centre_crop_and_resize`.

    Raises:
      DamagedLmdb: it cannot be read, or an image in it cannot be decoded or is too small.
    """
    keys = {} if keys is None else keys
    with open_lmdb(folder) as env, env.begin(buffers=True) as transaction:
        try:
            for rank, key, value in _entries(transaction.cursor(), start, keys):
                if rank >= stop:
                    keys[rank] = bytes(key)
                    return
                try:
                    yield _decode(value, image_size, is_object)
                except UNREADABLE as error:
                    raise DamagedLmdb(
                        f"image {bytes(key).decode(errors='replace')} (number {rank}) of the LMDB "
                        f"{folder} cannot be used: {error}"
                    ) from error
        except lmdb.Error as error:
            raise DamagedLmdb(f"the LMDB {folder} cannot be read ({error})") from error
