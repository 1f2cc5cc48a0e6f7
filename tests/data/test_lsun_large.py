"""LSUN's larger categories have three million images: what is done of each is done once."""

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from file_states import states
from lmdb_folders import put
from PIL import Image

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import lmdb_reader, lsun

N, CHUNK = 12, 2


class Counted:
    """An environment, transaction or cursor of an LMDB whose steps are counted."""

    def __init__(self, inner, visited):
        self.inner, self.visited = inner, visited

    def __enter__(self):
        return Counted(self.inner.__enter__(), self.visited)

    def __exit__(self, *error):
        return self.inner.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def begin(self, **words):
        return Counted(self.inner.begin(**words), self.visited)

    def cursor(self):
        return Counted(self.inner.cursor(), self.visited)

    def __iter__(self):
        for entry in self.inner:
            self.visited.append(bytes(entry[0]))
            yield entry


@pytest.fixture
def visited(monkeypatch):
    """The keys that cursors pass by, in turn."""
    keys, original = [], lmdb_reader.open_lmdb
    monkeypatch.setattr(lmdb_reader, "open_lmdb", lambda folder: Counted(original(folder), keys))
    return keys


@pytest.fixture
def tower(tmp_path):
    """A category of N images of one colour each: their keys, in order, and pixels."""
    colours = np.random.default_rng(7).integers(0, 256, (N, 1, 1, 3), dtype=np.uint8)
    keys, values = [b"%02x" % i for i in range(N)], []
    for colour in colours:
        file = io.BytesIO()
        Image.fromarray(np.broadcast_to(colour[0], (256, 256, 3))).save(file, "PNG")
        values.append(file.getvalue())
    folder = lsun.lmdb_folder(tmp_path, "tower")
    folder.mkdir()
    put(folder, dict(zip(keys, values, strict=True)))
    return keys, np.broadcast_to(colours, (N, 8, 8, 3))


def prepare(folder, first=0, count=N):
    return lsun.prepare(folder, folder / "prepared", ("tower",), count, 8, CHUNK, first)["tower"]


def images(chunks):
    return [image for chunk in chunks for image in chunk.images()]


def without_keys(chunks):
    """What the version before this one wrote: no chunk said where the next one begins."""
    for chunk in chunks:
        path = chunk.folder / "metadata.json"
        kept = json.loads(path.read_text())
        kept.pop("next_key", None)
        path.write_text(json.dumps(kept))


def test_each_entry_is_visited_once_and_the_first_of_a_chunk_twice(tmp_path, tower, visited):
    """A chunk is at its end when it sees the first key of the next."""
    keys, pixels = tower
    chunks = prepare(tmp_path)
    np.testing.assert_array_equal(images(chunks), pixels)
    twice = keys[CHUNK::CHUNK]
    assert sorted(visited) == sorted(keys + twice)
    visited.clear()
    prepare(tmp_path)
    assert visited == []


@pytest.mark.parametrize("complete", [1, 3, 5])
def test_what_is_left_goes_on_from_the_last_complete_chunk(tmp_path, tower, visited, complete):
    keys, pixels = tower
    for chunk in prepare(tmp_path)[complete:]:
        shutil.rmtree(chunk.folder.parent)
    visited.clear()
    np.testing.assert_array_equal(images(prepare(tmp_path)), pixels)
    left = keys[complete * CHUNK :]
    assert sorted(visited) == sorted(left + left[CHUNK::CHUNK])


@pytest.mark.parametrize("complete", [1, 5])
def test_chunks_of_the_version_before_stay_as_they_are_and_cost_one_walk(
    tmp_path, tower, visited, complete
):
    keys, pixels = tower
    chunks = prepare(tmp_path)
    without_keys(chunks)
    for chunk in chunks[complete:]:
        shutil.rmtree(chunk.folder.parent)
    before = [states(each.folder) for each in chunks[:complete]]
    visited.clear()
    again = prepare(tmp_path)
    np.testing.assert_array_equal(images(again), pixels)
    assert [states(each.folder) for each in again[:complete]] == before
    assert sorted(visited) == sorted(keys + keys[(complete + 1) * CHUNK :: CHUNK])


def test_held_out_images_cost_one_walk(tmp_path, tower, visited):
    keys, pixels = tower
    np.testing.assert_array_equal(images(prepare(tmp_path, 5, 7)), pixels[5:])
    assert sorted(visited) == sorted(keys + keys[7::CHUNK])


def test_a_key_that_is_no_more_is_looked_for_from_the_first(tmp_path, tower):
    keys, pixels = tower
    folder = lsun.lmdb_folder(tmp_path, "tower")
    for known in ({4: b"gone"}, {4: keys[4]}, {9: keys[9]}, {}):
        found = list(lmdb_reader.read_lmdb(folder, 5, 8, 8, keys=known))
        np.testing.assert_array_equal(found, pixels[5:8])
        assert known[8] == keys[8]
    known = {}
    assert len(list(lmdb_reader.read_lmdb(folder, 9, N, 8, keys=known))) == 3
    assert known == {}


def test_a_file_mapped_by_the_version_before_is_the_one_that_is_used(tmp_path, tower):
    """Its name is a digest of what it was made from, in which no key takes part."""
    config = DataConfig("lsun", ("tower",), 4, image_size=8, data_dir=tmp_path, memory_gib=0)
    size = (lsun.lmdb_folder(tmp_path, "tower") / "data.mdb").stat().st_size
    chunk = ["tower-8px-0000000-0000004", {"entries": N, "bytes": size}]
    digest = hashlib.sha256(json.dumps([[4, 8, 8, 3], [chunk]]).encode()).hexdigest()[:16]
    assert data.load(config).file.path == tmp_path / "prepared" / f"images-{digest}.npy"
