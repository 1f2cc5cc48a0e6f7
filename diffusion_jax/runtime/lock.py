"""One process a folder: a lock that a second is refused by, and that ends with its process."""

import fcntl
import os
import socket
from pathlib import Path

from diffusion_jax.errors import UserError

# The system gives a process's locks up when it ends, however it ends: nothing stale is left.
_held: dict[Path, int] = {}


def lock(folder: Path, work: str = "trains", option: str = "--run-dir") -> None:
    """Takes a folder for this process, until it is released or the process ends.

    An exclusive flock(2) of FOLDER/lock, which names the process and the host. The system gives it
    up when the process ends, after a SIGKILL too. On file systems that know no flock nothing is
    locked; over NFS Linux makes it a lock of the server's, so other hosts are refused as well.
    To take a folder again is nothing new.

    Args:
      folder: the folder, which must exist.
      work: what whoever holds it does there, for the message.
      option: what names the folder, for the message.

    Raises:
      UserError: another process holds it.
    """
    path = folder.resolve() / "lock"
    if path in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise UserError(
            f"{folder} is in use by {holder}, which {work} there; wait for it, or give another "
            f"{option}"
        ) from None
    except OSError:
        os.close(descriptor)  # no flock here: as without any lock
        return
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held[path] = descriptor


def release(folder: Path) -> None:
    """Gives a folder up; one that is not held is left alone."""
    descriptor = _held.pop(folder.resolve() / "lock", None)
    if descriptor is not None:
        os.close(descriptor)
