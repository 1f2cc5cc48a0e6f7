"""How much memory this process may still take: the host's, or less within a container or job."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

try:
    import resource
except ImportError:  # Windows has none of these limits
    resource = None  # type: ignore[assignment]

# Where Linux shows control groups, and which of them this process is in.
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

# Per version: files of limits, file of what is used, prefix of the statistics of a whole subtree.
_V2 = ("memory.max", "memory.high"), "memory.current", ""
_V1 = ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"
# The kernel takes these back where memory is short: the cache of files, and its own of their names.
_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")


class Available(NamedTuple):
    """Memory that is left.

    Attributes:
      num_bytes: how much.
      limit: what leaves no more, in words, or empty where it is the host's memory itself.
    """

    num_bytes: int
    limit: str = ""


def available() -> Available:
    """What the host has free, or the least that a limit upon this process leaves.

    Limits are those of its control group and of every one around it (cgroup v2: memory.max and
    memory.high; v1: memory.limit_in_bytes and hierarchical_memory_limit), where the cache of files
    counts as free; and ulimit's on address space and data. What cannot be read is no limit.
    """
    host = Available(psutil.virtual_memory().available)
    return min([host, *_of_cgroups(MEMBERSHIP, CGROUPS), *_of_process()])


def _of_cgroups(membership: Path, root: Path) -> Iterator[Available]:
    try:
        lines = membership.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if "memory" in controllers.split(","):
            yield from _on_the_way_up(root / "memory", path, *_V1)
        elif (number, controllers, colon) == ("0", "", ":"):
            for mounted in (root, root / "unified"):
                yield from _on_the_way_up(mounted, path, *_V2)


def _on_the_way_up(
    root: Path, path: str, limits: tuple[str, ...], usage: str, prefix: str
) -> Iterator[Available]:
    """What a control group leaves, and each one around it up to the root of those shown."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    # A container is shown a part of the tree only, of which the path may name what lies above.
    shown = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    folder = next((each for each in shown if os.path.isdir(each)), root)
    while True:
        statistics = _statistics(folder / "memory.stat")
        found = [(_number(folder / name), folder / name) for name in limits]
        found.append((statistics.get("hierarchical_memory_limit"), folder / "memory.stat"))
        free = sum(statistics.get(prefix + name, statistics.get(name, 0)) for name in _RECLAIMABLE)
        used = max(0, (_number(folder / usage) or 0) - free)
        for limit, file in found:
            if limit is not None:
                words = f"the {limit / 2**30:.3g} GiB of this container or job ({file})"
                yield Available(max(0, limit - used), words)
        if folder == root:
            return
        folder = folder.parent


def _number(file: Path) -> int | None:
    """The bytes that a file names; None for "max", a missing file, or anything else."""
    try:
        text = file.read_text().strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def _statistics(file: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdecimal()}


def _of_process() -> Iterator[Available]:
    """What `ulimit -v` and `ulimit -d` leave, which SLURM and login nodes set."""
    if resource is None:
        return
    used = psutil.Process().memory_info()
    for name, field, option in (("RLIMIT_AS", "vms", "v"), ("RLIMIT_DATA", "data", "d")):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY:
            words = f"the {limit / 2**30:.3g} GiB of ulimit -{option}"
            yield Available(max(0, limit - getattr(used, field, 0)), words)
