import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest

from diffusion_jax.data import fingerprint as module
from diffusion_jax.data.fingerprint import changed, fingerprint
from diffusion_jax.data.images import FileState, ImageSet

PIXELS = np.arange(5 * 4 * 6 * 3, dtype=np.uint32).reshape(5, 4, 6, 3).astype(np.uint8)
IMAGES = ImageSet(PIXELS, np.array([0, 0, 1, 1, 0]), ("cat", "dog"))


def test_a_fingerprint_is_the_same_on_every_machine():
    """Written out with hashlib: what checkpoints store must not change with the code."""
    header = (
        b'{"shape": [5, 4, 6, 3], "dtype": "uint8", "classes": ["cat", "dog"], "labelled": true}'
    )
    labels = b"".join(int(label).to_bytes(8, "little") for label in IMAGES.labels)
    block = hashlib.sha256(bytes(value % 256 for value in range(360))).digest()
    assert fingerprint(IMAGES) == hashlib.sha256(header + labels + block).hexdigest()


def test_a_fingerprint_does_not_depend_on_how_the_images_are_stored(tmp_path):
    for dtype in (np.uint8, np.float32):
        images = replace(IMAGES, images=PIXELS.astype(dtype))
        expected = fingerprint(images)
        np.save(tmp_path / "images.npy", images.images)
        mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
        others = [np.asfortranarray(images.images), images.images[::-1][::-1], mapped]
        if dtype == np.float32:
            others.append(images.images.astype(">f4"))
        assert [fingerprint(replace(images, images=each)) for each in others] == [expected] * len(
            others
        )


@pytest.mark.parametrize("block", [2**23, 72 * 2])
def test_whatever_differs_changes_the_fingerprint(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    pixel = PIXELS.copy()
    pixel[4, 3, 5, 2] ^= 1
    others = [
        replace(IMAGES, images=pixel),
        replace(IMAGES, images=PIXELS[::-1]),
        replace(IMAGES, images=PIXELS[:4], labels=IMAGES.labels[:4]),
        replace(IMAGES, images=PIXELS.reshape(5, 6, 4, 3)),
        replace(IMAGES, images=PIXELS.astype(np.float32)),
        replace(IMAGES, labels=np.array([0, 1, 1, 0, 0])),
        replace(IMAGES, labels=None, class_names=()),
        replace(IMAGES, class_names=("cat", "cow")),
    ]
    found = {fingerprint(each) for each in [IMAGES, *others]}
    assert len(found) == 1 + len(others)
    assert fingerprint(replace(IMAGES, notes=("a note",))) in found


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, PIXELS)
    images = replace(IMAGES, images=np.load(path, mmap_mode="r"), file=FileState.of(path))
    assert changed(IMAGES) is None
    assert changed(images) is None
    os.utime(path, ns=(0, 1))
    assert changed(images) == f"{path} was written to"
    with path.open("ab") as file:
        file.write(b"more")
    assert "had 488 bytes and has 492" in changed(images)
    np.save(tmp_path / "other.npy", PIXELS)
    (tmp_path / "other.npy").replace(path)
    assert changed(images) == f"{path} was replaced by another file"
    path.unlink()
    assert f"{path} is gone" in changed(images)
    np.testing.assert_array_equal(images.images, PIXELS)  # the mapping keeps what it was made from
