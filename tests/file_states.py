"""What tells that nothing in a folder was written, made or removed, a lock included."""

import os


def states(folder):
    """Every path below a folder, and itself, with what any change to it would change."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = os.lstat(path)
        # The last changes with a file's content, name, owner or mode, a folder's with its entries.
        found[path.relative_to(folder)] = (status.st_ino, status.st_size, status.st_ctime_ns)
    return found
