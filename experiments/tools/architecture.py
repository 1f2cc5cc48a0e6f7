"""Draws the rooms and their imports: python -m experiments.tools.architecture.

The drawing is made of the source alone: the order of the rooms in `LAYERS`, which
`tests/test_layers.py` holds every import to, what imports what, and the first line of each room's
docstring.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from diffusion_jax.runtime.files import write_bytes
from experiments.command import parse, reports_errors

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "developers" / "architecture.svg"
PACKAGES = ("diffusion_jax", "torch_ref", "experiments")
# From the ground up. Rooms of one line may not import each other.
LAYERS = (
    "errors",
    "runtime",
    "schedule",
    "schedules",
    "process nn symmetry covariance",
    "denoisers config",
    "data",
    "presets",
    "sampling",
    "judging",
    "regimes",
    "plots",
    "training",
    "study forking",
    "comparing memorising explorer",
    "serving",
    "diffusion_jax",  # the front door, which opens all of them
    "torch_ref",
    "experiments",
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms.split()}


@dataclass(frozen=True)
class Options:
    """Draws the rooms and their imports; there is nothing to choose."""


def modules() -> dict[str, Path]:
    """All modules of the project by name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """What a file imports, wherever in it: modules, and what may be a module of a package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)


def graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """What each module imports, of the project and from outside, by its name."""
    return {name: set(_imports(path, known)) for name, path in known.items()}


def room(module: str) -> str:
    """The room that a module lies in: of the library its second name, else its first."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "diffusion_jax" and rest else package


def room_imports(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The other rooms that each room imports."""
    found: dict[str, set[str]] = {room(name): set() for name in imports}
    for name, others in imports.items():
        found[room(name)] |= {room(other) for other in others & imports.keys()} - {room(name)}
    return found


def reduced(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports from which all others follow: none that another one leads to."""

    def below(one: str) -> set[str]:
        return imports[one].union(*map(below, imports[one]))

    return {
        one: {other for other in others if not any(other in below(each) for each in others)}
        for one, others in imports.items()
    }


_WIDTH, _LINE, _TOP = 1080, 30, 46
_BOX, _BOX_WIDTH, _WORDS = 300, 136, 452


def _purpose(name: str, known: Mapping[str, Path]) -> str:
    """The first line of a room's docstring."""
    path = known[name if name in PACKAGES else f"diffusion_jax.{name}"]
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n")[0].replace("`", "")


def _arrow(start: float, end: float, others: bool) -> str:
    """An arc left of the boxes, from the importing room down to the imported one."""
    bow = _BOX - 12 - 26 * ((end - start) / _LINE) ** 0.82
    look = "far" if others else "near"
    path = f"M{_BOX} {start:g}C{bow:.1f} {start:g} {bow:.1f} {end:g} {_BOX - 5} {end:g}"
    return f'<path class="{look}" d="{path}"/>'


def drawing() -> str:
    """The SVG: a line for each room, a shade for each layer, and an arrow for each import.

    Imports that follow from others are faint.
    """
    known = modules()
    imports = room_imports(graph(known))
    main = reduced(imports)
    layers = [layer.split() for layer in reversed(LAYERS)]
    order = [name for layer in layers for name in layer]
    middle = {name: _TOP + _LINE * (i + 0.5) for i, name in enumerate(order)}
    height = _TOP + _LINE * len(order) + 14
    shades, boxes, top = [], [], _TOP
    for i, layer in enumerate(layers):
        if i % 2 == 0:
            size = f'width="{_WIDTH}" height="{_LINE * len(layer)}"'
            shades.append(f'<rect class="layer" x="0" y="{top}" {size}/>')
        top += _LINE * len(layer)
    for name in order:
        y = middle[name]
        boxes += [
            f'<rect class="room" x="{_BOX}" y="{y - 11:g}" width="{_BOX_WIDTH}" height="22"/>',
            f'<text class="name" x="{_BOX + 9}" y="{y + 4.5:g}">{name}</text>',
            f'<text x="{_WORDS}" y="{y + 4.5:g}">{escape(_purpose(name, known))}</text>',
        ]
    arrows = [
        _arrow(middle[name] + 5, middle[other] - 5, other not in main[name])
        for name in order
        for other in sorted(imports[name], key=order.index)
    ]
    arrows.sort(key=lambda each: 'class="near"' in each)  # the faint ones first, beneath
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img" '
            'aria-label="The rooms of the project from top to bottom, and their imports">',
            _STYLE,
            f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
            *shades,
            f'<text class="head" x="{_BOX}" y="28">room</text>',
            f'<text class="head" x="{_WORDS}" y="28">what it is for</text>',
            f'<text class="head" x="{_BOX - 20}" y="28" text-anchor="end">imports</text>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


_STYLE = """<style>
text{font:13px Helvetica,Arial,sans-serif;fill:#222}
.name{font:bold 13px Menlo,Consolas,monospace}
.head{font-weight:bold;fill:#666}
.page{fill:#fff}
.layer{fill:#f1f4f8}
.room{rx:4px;fill:#fff;stroke:#3b6ea5;stroke-width:1.3}
path{fill:none;stroke:#3b6ea5}
.near{stroke-width:1.6;stroke-opacity:.85;marker-end:url(#head)}
.far{stroke-width:.8;stroke-opacity:.13}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7"
 markerUnits="userSpaceOnUse" orient="auto">
<path d="M0 0L8 4L0 8z" style="fill:#3b6ea5"/></marker></defs>"""


@reports_errors
def main() -> None:
    """Writes the drawing anew."""
    parse(Options, "tools.architecture", __doc__)
    write_bytes(PICTURE, drawing().encode())
    print(f"Wrote {PICTURE}")


if __name__ == "__main__":
    sys.exit(main())
