"""An .npy file that is written row by row, and that goes on after a kill."""

import io
import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import unwritten, write_json
from diffusion_jax.runtime.lock import flock


def _header(shape: tuple[int, ...]) -> bytes:
    """What NumPy writes before float32 rows; as long for any number of them."""
    file = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


class Rows:
    """Rows of float32 that are kept as they are made, for whoever makes the same ones again.

    They go to FILE.npy.DIGEST.partial, which becomes FILE.npy once all are there; FILE.json then
    says what they are rows of. No more than what is appended is in memory.
    """

    def __init__(self, path: Path, row: tuple[int, ...], of: str) -> None:
        """Names the file; nothing is read yet.

        Args:
          path: the .npy file.
          row: shape of a row.
          of: a digest of all that a row follows from, except its number. Rows of another digest are
            not continued; they are replaced once all new ones are there.
        """
        self._path, self._row, self._of = path, row, of
        self._partial = path.with_name(f"{path.name}.{of[:8]}.partial")
        self._about = path.with_suffix(".json")
        self._file: IO[bytes] | None = None
        self._header = len(_header((0, *row)))
        self._bytes = 4 * math.prod(row)

    def _finished(self) -> np.ndarray | None:
        """The rows of the finished file, if they are those wanted."""
        try:
            if json.loads(self._about.read_bytes())["of"] != self._of:
                return None
            rows = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, LookupError, TypeError):
            return None
        fits = rows.shape[1:] == self._row and rows.dtype == np.dtype("<f4")
        return rows if fits and rows.flags.c_contiguous else None

    def begin(self, count: int, block: int) -> int:
        """Makes ready to append; returns how many rows are there.

        That many are all of the finished file, if it has `count` or more, and nothing is to be
        appended; or else a multiple of `block`, so that rows that are made in blocks are made in
        the same ones, however often that was broken off.

        Raises:
          UserError: the file cannot be written, another process writes it, or the disk has no room.
        """
        finished = self._finished()
        if finished is not None and len(finished) >= count:
            return len(finished)
        try:
            descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666)
            self._file = file = os.fdopen(descriptor, "r+b")
            self._lock(file)
            kept = max(0, os.fstat(file.fileno()).st_size - self._header) // self._bytes
            # The last block is made again: a crash of the machine may have left it unwritten.
            done = max(0, min(kept, count) - 1) // block * block
            ahead = 0 if finished is None else len(finished) // block * block
            self._require_room((count - done) * self._bytes)
            file.write(_header((count, *self._row)))
            file.truncate(self._header + done * self._bytes)
            file.seek(0, os.SEEK_END)
            if finished is not None and ahead > done:
                for first in range(done, ahead, block):
                    file.write(finished[first : first + block].tobytes())
                done = ahead
            file.flush()
        except OSError as error:
            raise unwritten(self._partial, error) from error
        return done

    def _lock(self, file: IO[bytes]) -> None:
        """Keeps others from writing the same rows; where there is no flock, nothing does."""
        try:
            own = not flock(file.fileno(), wait=False) or os.path.samestat(
                os.fstat(file.fileno()), os.stat(self._partial)
            )
        except (BlockingIOError, FileNotFoundError):
            own = False
        if not own:
            raise UserError(
                f"another process draws the same into {self._partial}: wait for it, or give "
                f"another --out"
            )

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._partial.parent).free
        if free < needed:
            raise UserError(
                f"cannot write {self._path}: it needs {needed / 2**20:.1f} MiB more and "
                f"{free / 2**20:.1f} MiB are free; free some space, take fewer, or give another "
                f"--out"
            )

    def append(self, rows: np.ndarray) -> None:
        """Writes rows behind those that are there.

        Raises:
          UserError: they cannot be written; those before are kept.
        """
        assert self._file is not None
        try:
            self._file.write(np.ascontiguousarray(rows, "<f4").tobytes())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self._partial}: {error.strerror}; what is done is kept: free some "
                f"space, and the same command goes on"
            ) from error

    def finish(self) -> None:
        """Puts the file in its place, once all rows are there.

        Raises:
          UserError: it cannot be written.
        """
        if self._file is None:
            return
        try:
            self._about.unlink(missing_ok=True)
            self._partial.replace(self._path)
        except OSError as error:
            raise unwritten(self._path, error) from error
        write_json(self._about, {"of": self._of})
        self.close()

    def close(self) -> None:
        """Gives the file up as it is."""
        if self._file is not None:
            with suppress(OSError):  # what a full disk refused is not tried again
                self._file.close()
            self._file = None
