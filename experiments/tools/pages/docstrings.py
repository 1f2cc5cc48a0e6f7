"""Griffe's view of our docstrings: their formulas in LaTeX, and no blank lines inside lists."""

import re
from typing import Any

import griffe

from experiments.tools.pages.formulas import latex

_BLOCK = re.compile(r"(?<=\n\n)((?: {2,}\S.*\n)+)(?=\n|\Z)")


def typeset(docstring: str) -> str:
    """A docstring whose indented blocks are formulas, where they can be read as such, else code."""
    return _BLOCK.sub(lambda found: _block(found[1]), docstring + "\n").rstrip("\n")


def _block(text: str) -> str:
    lines = text.splitlines()
    try:
        return "".join(f"$$\n{latex(line)}\n$$\n\n" for line in lines)
    except ValueError:
        return f"```text\n{text}```\n"


class Formulas(griffe.Extension):
    """Typesets the formulas of every docstring that the reference shows."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring:
            head, *sections = re.split(
                r"(?m)^(?=(?:Args|Returns|Raises|Yields|Attributes):$)", obj.docstring.value
            )
            obj.docstring.value = "".join(
                [typeset(head), *(["\n\n"] if sections else []), *sections]
            )
