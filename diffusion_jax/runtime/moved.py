"""Old names of modules, kept for a version."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def install(moves: Mapping[str, str]) -> None:
    """Makes modules importable, and runnable with `python -m`, by their old names too.

    Each use prints a line on stderr that gives the new name.

    Args:
      moves: new names by the old ones.
    """
    sys.meta_path.append(_Finder(moves))


class _Finder(MetaPathFinder):
    def __init__(self, moves: Mapping[str, str]) -> None:
        self._moves = moves

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if (
            name not in self._moves
            or (found := importlib.util.find_spec(self._moves[name])) is None
        ):
            return None
        print(f"note: {name} is now called {self._moves[name]}", file=sys.stderr)
        return importlib.util.spec_from_file_location(name, found.origin)
