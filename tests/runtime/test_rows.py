"""An .npy that grows row by row: what it holds after a break, a kill and a full disk."""

import errno
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.rows import Rows

ROW, BLOCK = (3, 2, 1), 4
VALUES = np.random.default_rng(0).standard_normal((23, *ROW)).astype(np.float32)


def rows_of(folder, of="0123456789abcdef"):
    return Rows(folder / "a_1.5.npy", ROW, of)


def write(folder, count, stop=None, of="0123456789abcdef"):
    """Writes so many rows in blocks, or breaks off after some; returns how many were there."""
    rows = rows_of(folder, of)
    done = rows.begin(count, BLOCK)
    for first in range(done, count if stop is None else stop, BLOCK):
        rows.append(VALUES[first : min(first + BLOCK, count)])
    if stop is None:
        rows.finish()
    rows.close()
    return done


def expected(folder, count):
    np.save(folder / "expected.npy", VALUES[:count])
    return (folder / "expected.npy").read_bytes()


@pytest.mark.parametrize("count", [1, 4, 23])
def test_the_file_is_what_numpy_saves(tmp_path, count):
    assert write(tmp_path, count) == 0
    assert (tmp_path / "a_1.5.npy").read_bytes() == expected(tmp_path, count)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a_1.5.npy", "a_1.5.json", "expected.npy")
    }


@pytest.mark.parametrize(("extra", "kept"), [(0, 8), (23, 8), (24, 12), (-1, 8)])
def test_whole_blocks_are_kept_but_for_the_last(tmp_path, extra, kept):
    """A crash of the machine may have left the last one unwritten."""
    write(tmp_path, 23, stop=12)
    (partial,) = tmp_path.glob("*.partial")
    content = partial.read_bytes()
    if extra < 0:
        partial.write_bytes(content[:extra])
    else:
        partial.write_bytes(content + bytes(range(extra)))
    assert not (tmp_path / "a_1.5.npy").exists()
    assert write(tmp_path, 23) == kept
    assert (tmp_path / "a_1.5.npy").read_bytes() == expected(tmp_path, 23)


def test_a_break_before_the_first_row_and_before_the_end(tmp_path):
    rows_of(tmp_path).begin(23, BLOCK)
    assert write(tmp_path, 23, stop=0) == 0
    assert write(tmp_path, 23, stop=24) == 0
    assert write(tmp_path, 23) == 20
    assert (tmp_path / "a_1.5.npy").read_bytes() == expected(tmp_path, 23)


def test_more_rows_are_added_and_fewer_change_nothing(tmp_path):
    write(tmp_path, 9)
    assert write(tmp_path, 23, stop=12) == 8
    assert np.load(tmp_path / "a_1.5.npy").shape == (9, *ROW)  # until all are there
    assert write(tmp_path, 23) == 8
    whole = expected(tmp_path, 23)
    assert (tmp_path / "a_1.5.npy").read_bytes() == whole
    for count in (23, 5):
        assert rows_of(tmp_path).begin(count, BLOCK) == 23
    assert (tmp_path / "a_1.5.npy").read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_rows_of_something_else_are_neither_taken_nor_lost(tmp_path):
    write(tmp_path, 9)
    write(tmp_path, 23, stop=12)
    other = "fedcba9876543210"
    assert rows_of(tmp_path, other).begin(23, BLOCK) == 0
    assert len(np.load(tmp_path / "a_1.5.npy")) == 9
    assert write(tmp_path, 4, of=other) == 0
    assert len(np.load(tmp_path / "a_1.5.npy")) == 4
    assert json.loads((tmp_path / "a_1.5.json").read_text()) == {"of": other}
    assert write(tmp_path, 23) == 8  # its own, unfinished ones


@pytest.mark.parametrize("name", ["a_1.5.npy", "a_1.5.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\x93NUMPY half", b"[1]"])
def test_damaged_files_are_written_anew(tmp_path, name, damage):
    write(tmp_path, 9)
    (tmp_path / name).write_bytes(damage)
    assert write(tmp_path, 9) == 0
    assert (tmp_path / "a_1.5.npy").read_bytes() == expected(tmp_path, 9)


def test_two_processes_do_not_write_the_same(tmp_path):
    first = rows_of(tmp_path)
    first.begin(23, BLOCK)
    with pytest.raises(UserError, match=r"another process draws the same into .*wait for it"):
        rows_of(tmp_path).begin(23, BLOCK)
    first.close()
    assert rows_of(tmp_path).begin(23, BLOCK) == 0


def test_a_disk_without_room_is_noticed_before_writing(tmp_path, monkeypatch):
    room = 4 * VALUES.size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room - 1))
    with pytest.raises(UserError, match=r"a_1.5.npy: it needs 0.0 MiB more and 0.0 MiB are free"):
        rows_of(tmp_path).begin(23, BLOCK)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    assert write(tmp_path, 23) == 0


def test_a_disk_that_fills_loses_nothing(tmp_path):
    class Full:
        """Takes half of what it is given."""

        def __init__(self, file):
            self.file = file

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.file.close()
            raise OSError(errno.ENOSPC, "No space left on device")

    rows = rows_of(tmp_path)
    rows.begin(23, BLOCK)
    for first in (0, 4, 8):
        rows.append(VALUES[first : first + 4])
    rows._file = Full(rows._file)
    with pytest.raises(UserError, match="No space left on device; what is done is kept"):
        rows.append(VALUES[12:16])
    rows.close()
    assert write(tmp_path, 23) == 12
    assert (tmp_path / "a_1.5.npy").read_bytes() == expected(tmp_path, 23)
