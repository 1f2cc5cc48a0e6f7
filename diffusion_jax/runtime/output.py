"""Standard output and error that outlive their reader."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Of a terminal that is gone, and of a pipe whose reader has ended.
_LOST = (errno.EIO, errno.EPIPE)


@contextlib.contextmanager
def outliving_its_reader() -> Iterator[None]:
    """What is printed within goes nowhere once the terminal is gone or the pipe's reader has ended.

    A lost connection, or a `tee` that Ctrl-C ended, is to cost a program neither what it has
    computed nor its exit status. Other errors, such as a full disk's, are raised as ever.
    """
    # One that was closed at the start is None, and stays so.
    out, err = (stream and _Stream(stream) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            for stream in filter(None, (out, err)):
                with contextlib.suppress(OSError):  # of which the interpreter's end tells
                    stream.flush()


class _Stream:
    """A text stream, written to nowhere from its loss on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, if anybody reads."""
        self._unless_lost(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, if anybody reads."""
        self._unless_lost(self._stream.flush)

    def _unless_lost(self, do: Callable[[], Any]) -> None:
        try:
            do()
        except OSError as error:
            if error.errno not in _LOST:
                raise
            # What waits in the stream's buffer goes there too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
