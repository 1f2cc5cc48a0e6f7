"""Small LMDB folders in LSUN's format, and what their images must become, for the tests."""

import io

import lmdb
import numpy as np
from PIL import Image


def smooth_image(rng, width, height):
    """A colour image with structure at every scale, so that a wrong crop or filter shows."""
    noise = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(folder, sizes, seed=0, fmt="WEBP", key=lambda i: b"%02x" % (255 - i)):
    """Writes one image a (width, height) of `sizes`, and returns {key: encoded bytes}.

    The keys of successive images descend: byte order is the reverse of the order of writing.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    values = {}
    for i, (width, height) in enumerate(sizes):
        buffer = io.BytesIO()
        smooth_image(rng, width, height).save(buffer, fmt, quality=95)
        values[key(i)] = buffer.getvalue()
    put(folder, values)
    return values


def put(folder, values):
    """Adds or overwrites entries of an LMDB folder."""
    with lmdb.open(str(folder), map_size=2**28) as env, env.begin(write=True) as transaction:
        for name, value in values.items():
            transaction.put(name, value)


def read(folder):
    """All (key, value) pairs, in the order of the keys."""
    with lmdb.open(str(folder), readonly=True) as env, env.begin() as transaction:
        return list(transaction.cursor())


def decode_independently(encoded, size, crop=256):
    """Decode, crop as torchvision does, and an antialiased bilinear resize written out in numpy.

    The filter is a triangle of the scale's width, its weights are rounded to 22 bits, and each of
    the two passes rounds to whole grey levels: the arithmetic of torch's and Pillow's uint8 resize.
    """
    image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    top, left = (round((length - crop) / 2.0) for length in image.shape[:2])
    pixels = image[top : top + crop, left : left + crop].astype(np.int64)
    scale = crop / size
    centre = (np.arange(size)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(crop) + 0.5 - centre) / scale)
    weights = np.floor(weights / weights.sum(1, keepdims=True) * 2**22 + 0.5).astype(np.int64)

    def along(axis, pixels):
        total = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
        return np.clip((total + 2**21) >> 22, 0, 255)

    return along(0, along(1, pixels))
