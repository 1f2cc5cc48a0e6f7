"""The CUDA graphs into which XLA puts a program's launches, and what it leaves outside.

Launches in a graph are started together by the host, each of the others by itself. XLA writes the
order of its *thunks*, of what it has to do, to the folder that its option `xla_dump_to` names:
a line for each, indented under the graph (`kCommandBuffer`), the loop or the branch it belongs to.
"""

import re
from collections import Counter
from pathlib import Path

_LINE = re.compile(r"^( *)\d+: (k\w+)")
_GRAPH = "kCommandBuffer"
_NO_LAUNCHES = {"kWhile", "kConditional", "kSequential"}


def read_thunks(folder: Path) -> str:
    """The thunks of the one program for a GPU that was compiled with this folder for its dumps.

    The passes that make graphs write their result only where they have changed something.
    """
    for stage in ("thunk_sequence_after_thunk_passes", "thunk_sequence"):
        found = sorted(folder.glob(f"*.{stage}.txt"))
        if len(found) == 1:
            return found[0].read_text()
    raise FileNotFoundError(f"no thunks of one program in {folder}: {found}")


def graphs(thunks: str) -> tuple[int, dict[str, int]]:
    """The number of graphs, and of what is launched outside of them, by the thunks' kind.

    The body of a loop counts once.
    """
    number, outside = 0, Counter[str]()
    inside: int | None = None  # indentation of the graph that a line may belong to
    for line in thunks.splitlines():
        if not (found := _LINE.match(line)):
            continue
        depth, kind = len(found[1]), found[2]
        if inside is not None and depth > inside:
            continue
        inside = None
        if kind == _GRAPH:
            number, inside = number + 1, depth
        elif kind not in _NO_LAUNCHES:
            outside[kind.removeprefix("k")] += 1
    return number, dict(sorted(outside.items()))
