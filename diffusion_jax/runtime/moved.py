"""Old names of modules, kept for a version."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType


def install(moves: Mapping[str, str]) -> None:
    """Makes modules importable, and runnable with `python -m`, by their old names too.

    Each use prints a line on stderr that gives the new name.

    Args:
      moves: new names by the old ones.
    """
    sys.meta_path.append(_Finder(moves))


class _Finder(MetaPathFinder, Loader):
    def __init__(self, moves: Mapping[str, str]) -> None:
        self._moves = moves

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._moves:
            return None
        print(f"note: {name} is now called {self._moves[name]}", file=sys.stderr)
        return ModuleSpec(name, self, origin=self._spec(name).origin)

    def _spec(self, name: str) -> ModuleSpec:
        found = find_spec(self._moves[name])
        assert found is not None
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself: its classes are the same by either name."""
        module = import_module(self._moves[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module its own spec back, in place of the old name's."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> CodeType | None:
        """What `python -m` runs."""
        loader = self._spec(name).loader
        assert isinstance(loader, InspectLoader)
        return loader.get_code(self._moves[name])
