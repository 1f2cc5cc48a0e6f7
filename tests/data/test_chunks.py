"""Prepared images: those that TensorFlow Datasets wrote for earlier versions are read as ever."""

import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import lsun
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.prepared import Chunk, _prefix
from diffusion_jax.errors import UserError

REFERENCE = Path(__file__).parents[1] / "reference" / "prepared_by_tfds.zip"
CHUNKS = ("bedroom-16px-0000000-0000002", "bedroom-16px-0000002-0000004")


@pytest.fixture
def before(tmp_path):
    """What an earlier version prepared, four images in two chunks, and these images."""
    with zipfile.ZipFile(REFERENCE) as file:
        file.extractall(tmp_path / "before")
    chunks = [Chunk(tmp_path / "before" / "lsun" / name / "1.0.0", (16, 16, 3)) for name in CHUNKS]
    return chunks, np.load(tmp_path / "before" / "images.npy", allow_pickle=False)


def records(chunk):
    (path,) = chunk.folder.glob("*.array_record-00000-of-00001")
    reader = ArrayRecordReader(str(path))
    return reader.read_all()


def test_earlier_chunks_are_read_and_need_no_lmdb(before, tmp_path):
    chunks, images = before
    got = lsun.prepare(tmp_path, tmp_path / "before", ("bedroom",), 4, 16, chunk=2)["bedroom"]
    assert got == chunks
    np.testing.assert_array_equal([image for chunk in got for image in chunk.images()], images)
    assert chunks[0].metadata() == {"entries": 5, "bytes": 217088, "next_key": "6664"}


def test_a_chunk_is_written_as_before(before, tmp_path):
    """The records and what lies beside them are the same bytes."""
    chunks, images = before
    for chunk, pixels in zip(chunks, images.reshape(2, 2, 16, 16, 3), strict=True):
        again = Chunk(tmp_path / "again" / chunk.name / "1.0.0", chunk.shape)
        again.write(pixels, chunk.metadata)
        assert records(again) == records(chunk)
        names = [(each.folder / "metadata.json").read_text() for each in (chunk, again)]
        assert names[0] == names[1]
        assert [path.name for path in again.folder.parent.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 8, 3), (64, 64, 3), (256, 256, 3)])
def test_a_record_is_an_example(shape):
    """Read by a protobuf decoder of its own, written out: a tag, a length, and what is in it."""

    def fields(message):
        while message:
            tag, length, shift, place = message[0], 0, 0, 1
            while True:
                byte = message[place]
                length |= (byte & 0x7F) << shift
                shift, place = shift + 7, place + 1
                if byte < 0x80:
                    break
            assert tag & 7 == 2
            yield tag >> 3, message[place : place + length]
            assert len(message) >= place + length
            message = message[place + length :]

    pixels = bytes(np.random.default_rng(0).integers(0, 256, math.prod(shape), np.uint8))
    ((one, features),) = fields(_prefix(len(pixels)) + pixels)
    ((other, entry),) = fields(features)
    (key, name), (value, feature) = fields(entry)
    ((kind, values),) = fields(feature)
    assert (one, other, key, name, value, kind) == (1, 1, 1, b"image", 2, 1)
    assert list(fields(values)) == [(1, pixels)]


def test_a_chunk_of_several_files_is_read_in_order(tmp_path):
    """Large images were spread over several files by earlier versions."""
    images = np.random.default_rng(0).integers(0, 256, (130, 2, 2, 3), np.uint8)
    chunk = Chunk(tmp_path / "name" / "1.0.0", (2, 2, 3))
    chunk.folder.mkdir(parents=True)
    for k, part in enumerate(np.split(images, [100, 110, 111])):
        path = chunk.folder / f"lsun-train.array_record-0000{k}-of-00004"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image in part:
            writer.write(_prefix(12) + image.tobytes())
        writer.close()
    np.testing.assert_array_equal(list(chunk.images()), images)
    assert chunk.metadata() == {}


def test_a_damaged_chunk_is_named(before):
    (chunk, _), _ = before
    (path,) = chunk.folder.glob("*.array_record*")
    with pytest.raises(UserError, match=r"holds no images of \(8, 8, 3\)"):
        list(chunk._replace(shape=(8, 8, 3)).images())
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:70] + b"\xff" * 4000):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"is damaged .*remove {chunk.folder.parent}, and"):
            list(chunk.images())


def test_what_fails_leaves_nothing(tmp_path):
    chunk = Chunk(tmp_path / "name" / "1.0.0", (2, 2, 3))

    def images():
        yield np.zeros((2, 2, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chunk.write(images(), dict)
    assert not list(chunk.folder.parent.iterdir())
    chunk.write([], dict)
    with pytest.raises(OSError, match="not empty"):  # another's is kept
        chunk.write([], dict)
    assert os.listdir(chunk.folder.parent) == ["1.0.0"]


def test_the_data_of_a_run_are_known_again(before, tmp_path):
    """Their fingerprint is that of the images and labels, whoever prepared them."""
    _, images = before
    config = DataConfig(
        *("lsun", ("bedroom",), 2),
        image_size=16,
        data_dir=tmp_path,
        prepared_dir=tmp_path / "before",
    )
    loaded = data.load(config)
    np.testing.assert_array_equal(loaded.images, images[:2])
    made = ImageSet(images[:2], np.zeros(2, np.int64), ("bedroom",))
    assert fingerprint(loaded) == fingerprint(made)
