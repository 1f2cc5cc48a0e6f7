"""Faults of a disk that may pass: distinguished from what is wrong with a file, and waited for."""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax

from diffusion_jax.errors import UserError

T = TypeVar("T")

# Seconds between one trial and the next.
PAUSES = (1.0, 2.0, 4.0)
# What says that there is no such file or place in it: something is wrong with the files.
_OF_THE_FILES = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.EOVERFLOW, errno.EFBIG, errno.EILSEQ),
}
# Of a disk, a server or a network that may answer the next time.
_MAY_PASS = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "ENXIO", "EBUSY", "ENOLCK", "ENOMEM"),
        *("EREMOTEIO", "ENOTCONN", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "EMFILE", "ENFILE", "ENOLINK"),
    )
    if hasattr(errno, name)
}
# TensorStore's errors begin with a status, and have the system's number where there is one.
_STATUS = re.compile(
    r"(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|RESOURCE_EXHAUSTED):"
)
_NUMBER = re.compile(r"os_error_code='(\d+)'")


def refusal(error: BaseException, handled: BaseException | None = None) -> int | None:
    """The number by which the system says that it does not let a file be read.

    Args:
      error: an error of Python's, or of TensorStore's, that may have one of the system's inside.
      handled: one that was being handled when this one was raised, and is none of its reasons.

    Returns:
      A number of `errno`; None for an error that tells of what is, or is not, in the files.
    """
    return next(
        (number for number in _numbers(error, handled) if number not in _OF_THE_FILES), None
    )


def _numbers(error: BaseException | None, handled: BaseException | None) -> Iterator[int]:
    """The system's numbers in an error and in what it was raised from."""
    while error is not None and error is not handled:
        if isinstance(error, OSError) and error.errno is not None:
            yield error.errno
        text = str(error)
        yield from map(int, _NUMBER.findall(text))
        if _STATUS.match(text) and not isinstance(error, jax.errors.JaxRuntimeError):
            yield errno.EIO
        error = error.__cause__ or error.__context__


def patiently(path: Path, read: Callable[[], T]) -> T:
    """What `read` gives; where the system refuses, it is tried again after growing pauses.

    Args:
      path: what is read, for the message.
      read: opens it anew each time.

    Raises:
      UserError: the system goes on refusing, or what it says cannot pass.
      Exception: whatever else `read` raises, at once.
    """
    pauses, handled = iter(PAUSES), sys.exception()
    while True:
        try:
            return read()
        except Exception as error:
            number = refusal(error, handled)
            if number is None:
                raise
            pause = next(pauses, None) if number in _MAY_PASS else None
            if pause is None:
                raise UserError(
                    f"cannot read {path}: {os.strerror(number)}; nothing is changed: mend the "
                    f"disk, the network or the permissions, and try again"
                ) from error
        time.sleep(pause)


def names_in(folder: Path) -> list[str]:
    """What a folder holds; nothing where there is none.

    Not by `Path.glob`, to which a folder that cannot be read is empty.

    Raises:
      UserError: the system does not let it be read.
    """
    try:
        return patiently(folder, lambda: sorted(path.name for path in folder.iterdir()))
    except (FileNotFoundError, NotADirectoryError):
        return []
