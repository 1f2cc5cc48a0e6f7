"""Files that are there as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_jax.errors import UserError


def unwritten(path: Path, error: OSError) -> UserError:
    """The error for a file that could not be written, such as on a full disk."""
    reason = error.strerror or str(error)
    return UserError(
        f"cannot write {path}: {reason}; free some space or mend the folder and run the same "
        f"command again"
    )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Replaces a file by what is written meanwhile, once all of that is on the disk.

    A kill or a full disk leaves the file that was there before, if any.

    Args:
      path: the file.

    Yields:
      The path to write to, in the same folder.

    Raises:
      UserError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise unwritten(path, error) from error
