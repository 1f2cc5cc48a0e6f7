"""Small LMDB folders in LSUN's format, for the tests."""

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
