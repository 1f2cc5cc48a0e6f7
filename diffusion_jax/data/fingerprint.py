"""Which data a run was trained on, and whether their file has changed since it was opened."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diffusion_jax.data.images import FileState, ImageSet

_BLOCK_BYTES = 2**23


def fingerprint(images: ImageSet) -> str:
    """A digest of all pixels, labels and class names, in their order.

    SHA-256 over a header (shape, type, class names), the labels, and the SHA-256 of each 8 MiB of
    images. Equal sets have equal digests on every machine, however they are stored; another pixel,
    label, name or order gives another digest. Blocks are hashed by several threads, each of which
    has no more than one block in memory.

    Args:
      images: a set of images, in memory or mapped from a file.

    Returns:
      64 hexadecimal digits.
    """
    pixels = images.images
    header = {
        "shape": pixels.shape,
        "dtype": pixels.dtype.name,
        "classes": images.class_names,
        "labelled": images.labels is not None,
    }
    digest = hashlib.sha256(json.dumps(header).encode())
    if images.labels is not None:
        digest.update(images.labels.astype("<i8").tobytes())
    with ThreadPoolExecutor() as pool:
        for block in pool.map(_digest, _blocks(pixels)):
            digest.update(block)
    return digest.hexdigest()


def _blocks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    size = max(1, _BLOCK_BYTES // max(1, pixels[:1].nbytes))
    return (pixels[start : start + size] for start in range(0, len(pixels), size))


def _digest(block: np.ndarray) -> bytes:
    plain = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
    return hashlib.sha256(plain.data).digest()


def changed(images: ImageSet) -> str | None:
    """Tells whether the file that images are mapped from is still as it was when it was opened.

    It reads the file's size, time of modification and inode, no pixels, so it may be called as
    often as one likes. Images in memory cannot change.

    Returns:
      What happened to the file, as a clause for a message ("FILE was written to"); None where all
      is well.
    """
    opened = images.file
    if opened is None:
        return None
    try:
        now = FileState.of(opened.path)
    except OSError as error:
        return f"{opened.path} is gone ({error.strerror})"
    if now.inode != opened.inode:
        return f"{opened.path} was replaced by another file"
    if now.size != opened.size:
        return f"{opened.path} had {opened.size} bytes and has {now.size}"
    if now.modified != opened.modified:
        return f"{opened.path} was written to"
    return None
