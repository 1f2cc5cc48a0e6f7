"""Images prepared once and read by many: read-only folders, file systems without locks."""

import errno
import fcntl
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from file_states import states
from lmdb_folders import write_folder
from PIL import Image

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import lmdb_reader, lsun, photographs, storage
from diffusion_jax.data.storage import Store
from diffusion_jax.errors import UserError
from diffusion_jax.presets import data_defaults

SHAPE = (6, 5, 4, 3)
PIXELS = np.random.default_rng(4).integers(0, 256, SHAPE, dtype=np.uint8)
# What flock says where a file system, or what is between, does not know it.
NO_FLOCK = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF]


def refuse(number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


def fill(images):
    images[:] = PIXELS


def keep(folder, write=fill):
    return storage.stored(Store(folder, memory_gib=0), SHAPE, write, "key")


@pytest.fixture
def nothing_is_written(monkeypatch):
    """As on a read-only file system: no folder or file can be made, opened to write, or locked."""

    def begin():
        opened = os.open

        def reading(path, flags, *rest, **words):
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return opened(path, flags, *rest, **words)

        monkeypatch.setattr(os, "open", reading)
        monkeypatch.setattr(os, "mkdir", refuse(errno.EROFS))
        monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("a lock is written too"))

    return begin


def source(root, name):
    """Data that are prepared, in ROOT/prepared, with held-out images where it can have them."""
    if name == "folder":
        (root / "own").mkdir()
        for i, pixels in enumerate(PIXELS):
            Image.fromarray(pixels).save(root / "own" / f"{i}.png")
        return replace(data_defaults(str(root / "own")), data_dir=root, memory_gib=0)
    if name == "photographs":
        photographs.write_lmdb(root, ("everyday",), crops_per_class=3)
        classes = ("everyday",)
    else:
        write_folder(lsun.lmdb_folder(root, "tower"), [(256, 256)] * 3)
        classes = ("tower",)
    return DataConfig(
        name, classes, 2, held_out_per_class=1, image_size=8, data_dir=root, memory_gib=0
    )


@pytest.mark.parametrize("name", ["lsun", "photographs", "folder"])
def test_complete_data_are_read_without_writing_anything(tmp_path, name, nothing_is_written):
    config = source(tmp_path, name)
    first = data.load_split(config)
    before = states(tmp_path)
    nothing_is_written()
    again = data.load_split(config)
    for ours, theirs in zip(again, first, strict=True):
        if theirs is not None:
            np.testing.assert_array_equal(ours.images, theirs.images)
            assert ours.file == theirs.file
    assert states(tmp_path) == before


@pytest.mark.parametrize("name", ["lsun", "photographs"])
def test_prepared_chunks_are_enough(tmp_path, name, nothing_is_written):
    """Neither the LMDB nor a file to map from is needed."""
    config = replace(source(tmp_path, name), memory_gib=None)
    first = data.load(config)
    for file in list(tmp_path.glob("*/data.mdb")):
        shutil.rmtree(file.parent)
    before = states(tmp_path)
    nothing_is_written()
    np.testing.assert_array_equal(data.load(config).images, first.images)
    assert states(tmp_path) == before


def test_an_lmdb_that_only_its_owner_may_read_is_not_needed(tmp_path, monkeypatch):
    config = replace(source(tmp_path, "lsun"), memory_gib=None)
    first = data.load(config)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith(".mdb") and access(path, mode)
    )
    monkeypatch.setattr(lmdb_reader.lmdb, "open", refuse(errno.EACCES))
    np.testing.assert_array_equal(data.load(config).images, first.images)


@pytest.mark.parametrize("number", NO_FLOCK)
def test_without_flock_images_are_prepared_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    images, state = keep(tmp_path)
    np.testing.assert_array_equal(images, PIXELS)
    assert keep(tmp_path, lambda _: 1 / 0)[1] == state  # the file is there
    assert {path.name for path in tmp_path.iterdir()} == {".lock", state.path.name}


def test_of_two_that_prepare_the_same_without_flock_the_first_is_kept(tmp_path, monkeypatch):
    """The other may have mapped it, and its run calls data changed whose file is replaced."""
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    found = []

    def overtaken(images):
        images[:3] = PIXELS[:3]
        found.append(keep(tmp_path)[1])  # the other begins and ends meanwhile
        images[3:] = PIXELS[3:]

    images, state = keep(tmp_path, overtaken)
    np.testing.assert_array_equal(images, PIXELS)
    assert found == [state]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", state.path.name}


def test_chunks_of_lsun_too(tmp_path, monkeypatch):
    write_folder(lsun.lmdb_folder(tmp_path, "tower"), [(256, 256)] * 5)
    arguments = (tmp_path, tmp_path / "prepared", ("tower",), 5, 8, 2)
    expected = lsun.prepare(tmp_path, tmp_path / "alone", *arguments[2:])["tower"]
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    read_lmdb, others = lsun.read_lmdb, []

    def overtaken(*words):
        monkeypatch.setattr(lsun, "read_lmdb", read_lmdb)
        others.append(lsun.prepare(*arguments)["tower"])  # begins and ends meanwhile
        return read_lmdb(*words)

    monkeypatch.setattr(lsun, "read_lmdb", overtaken)
    chunks = lsun.prepare(*arguments)["tower"]
    assert [chunk.metadata() for chunk in chunks] == [each.metadata() for each in expected]
    for chunk, other, each in zip(chunks, others[0], expected, strict=True):
        wanted = list(each.images())
        for found in (chunk, other):
            np.testing.assert_array_equal(list(found.images()), wanted)
    assert not list((tmp_path / "prepared").rglob("incomplete.*"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_where_nothing_may_be_written_and_something_is_missing_that_is_said(
    tmp_path, monkeypatch, number
):
    reason = rf"{os.strerror(number)}.*; they are not complete there, and this process may not "
    advice = r"write there: name a folder that it may write to with "
    lsun_there = source(tmp_path, "lsun")
    monkeypatch.setattr(os, "mkdir", refuse(number))
    for load, option in (
        (lambda: keep(tmp_path / "new"), "--prepared-dir"),
        (lambda: data.load(lsun_there), "--prepared-dir"),
        (lambda: photographs.write_lmdb(tmp_path / "new", ("everyday",), 2), "--data-dir"),
    ):
        with pytest.raises(UserError, match=f"{reason}{advice}{option}$") as refused:
            load()
        assert "free" not in str(refused.value)
        assert "GiB" not in str(refused.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_to_be_freed(tmp_path, monkeypatch, number):
    monkeypatch.setattr(np.lib.format, "open_memmap", refuse(number))
    reason = rf"{os.strerror(number)}; free 3.35e-07 GiB, allow more memory with --memory-gib, or"
    with pytest.raises(UserError, match=rf"{reason} name another folder with --prepared-dir$"):
        keep(tmp_path)


def test_another_fault_is_neither(tmp_path, monkeypatch):
    monkeypatch.setattr(np.lib.format, "open_memmap", refuse(errno.EIO))
    with pytest.raises(UserError, match=r"Input/output error; name another folder with --prep"):
        keep(tmp_path)


def test_prepared_images_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    path = keep(tmp_path)[1].path
    monkeypatch.setattr(np, "load", refuse(errno.EACCES))
    with pytest.raises(UserError, match=rf"cannot read {path}: Permission denied; name another"):
        keep(tmp_path)


@pytest.mark.parametrize("number", [None, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_room_is_taken_without_posix_fallocate(tmp_path, monkeypatch, number):
    """macOS has none, and some file systems and C libraries refuse it."""
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse(number))
    monkeypatch.setattr(storage, "_BLOCK", 100)
    taken = []

    def write(images):
        assert not images.any()
        (partial,) = tmp_path.glob("*.partial")
        taken.append(partial.stat().st_blocks * 512)
        fill(images)

    np.testing.assert_array_equal(keep(tmp_path, write)[0], PIXELS)
    assert taken[0] >= PIXELS.nbytes
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left on device; free"):
        keep(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == [".lock"]


def test_without_hard_links_the_file_is_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    images, state = keep(tmp_path)
    np.testing.assert_array_equal(images, PIXELS)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", state.path.name}


def test_what_is_prepared_may_be_read_by_those_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        data.load(source(tmp_path, "photographs"))
    finally:
        os.umask(before)
    paths = list(tmp_path.rglob("*"))
    assert len(paths) > 8
    for path in paths:
        wanted = 0o055 if path.is_dir() else 0o044
        assert path.stat().st_mode & wanted == wanted, path
