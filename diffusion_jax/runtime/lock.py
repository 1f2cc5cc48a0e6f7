"""One process per folder: locks that end with the process which holds them.

The system gives a process's locks up when it ends, after a SIGKILL too: nothing stale is left.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: dict[Path, int] = {}


def flock(descriptor: int, wait: bool = True) -> bool:
    """Locks a file for this process alone, and returns whether files can be locked there at all.

    Args:
      descriptor: of an open file; flock(2) is its lock, until it is closed.
      wait: wait for another process that holds it.

    Raises:
      BlockingIOError: another process holds it, and this one does not wait.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # ENOLCK and others, where the file system knows no flock
        return False
    return True


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Makes a folder, and holds its file .lock meanwhile; another process waits for it.

    Yields:
      Whether it is held. It is not where the file system knows no flock, or .lock is another
      user's: then another process may do the same at the same time.

    Raises:
      OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            descriptor = os.open(folder / ".lock", flags, 0o666)
            break
        except OSError:  # of another user, whose file may be enough to lock
            continue
    try:
        yield descriptor is not None and flock(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock(folder: Path, work: str = "trains", option: str = "--run-dir") -> None:
    """Takes a folder for this process, until it is released or the process ends.

    An exclusive flock(2) of FOLDER/lock, which names the process and the host. On file systems that
    know no flock nothing is locked; over NFS Linux makes it a lock of the server's, so other hosts
    are refused as well. To take a folder again is nothing new.

    Args:
      folder: the folder, which must exist.
      work: what whoever holds it does there, for the message.
      option: what names the folder, for the message.

    Raises:
      UserError: another process holds it.
      OSError: the folder cannot be written to.
    """
    path = folder.resolve() / "lock"
    if path in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locked = flock(descriptor, wait=False)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise UserError(
            f"{folder} is in use by {holder}, which {work} there; wait for it, or give another "
            f"{option}"
        ) from None
    if not locked:
        os.close(descriptor)
        return
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held[path] = descriptor


def release(folder: Path) -> None:
    """Gives a folder up; one that is not held is left alone."""
    descriptor = _held.pop(folder.resolve() / "lock", None)
    if descriptor is not None:
        os.close(descriptor)
