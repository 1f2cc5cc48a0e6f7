"""The reference: the front door, a page for each module, and one of all commands' options."""

import ast
import contextlib
import importlib
import inspect
import io
import os
import sys
from pathlib import Path
from unittest import mock

import diffusion_jax as dj
from experiments import __main__ as commands

ROOT = Path(__file__).parents[3]
PACKAGES = ("diffusion_jax", "torch_ref")


def modules() -> list[str]:
    """Repository paths of all modules that have a page."""
    return [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.stem.startswith("_") or path.stem == "__init__"
    ]


def menu() -> list[dict[str, object]]:
    """The pages of modules as a site's menu, rooms as its sections."""
    found: list[dict[str, object]] = []
    for package in PACKAGES:
        rooms: list[object] = [page_of(f"{package}/__init__.py")]
        for source in modules():
            path = Path(source)
            if path.parent.as_posix() == package and path.stem != "__init__":
                rooms.append({path.stem: page_of(source)})
            elif path.stem == "__init__" and path.parent.parent.as_posix() == package:
                inside = [each for each in modules() if Path(each).parent == path.parent]
                pages = [{Path(each).stem: page_of(each)} for each in inside if each != source]
                rooms.append({path.parent.name: [page_of(source), *pages]})
        found.append({package: rooms})
    return found


def page_of(source: str) -> str | None:
    """The page of a source file, both as paths from their roots; None where it has none."""
    path = Path(source)
    if path.parts[0] not in PACKAGES or path.suffix not in (".py", ".pyi"):
        return None
    inside = path.with_suffix("").as_posix().removesuffix("/__init__")
    return f"reference/{inside}/index.md" if path.stem == "__init__" else f"reference/{inside}.md"


def pages() -> dict[str, str]:
    """All pages of the reference by their place in the site."""
    made = {str(page_of(source)): _module(source) for source in modules()}
    return made | {"reference/front_door.md": _front_door(), "reference/commands.md": _commands()}


def _name(source: str) -> str:
    return source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _summary(source: str) -> str:
    docstring = ast.get_docstring(ast.parse((ROOT / source).read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def _module(source: str) -> str:
    name = _name(source)
    text = f"# {name}\n\n::: {name}\n"
    if not source.endswith("__init__.py"):
        return text
    folder = Path(source).parent
    inside = [each for each in modules() if each != source and _holder(each) == folder]
    rows = [
        f"| [`{_name(each).rpartition('.')[2]}`]({_relative(each, folder)}) | {_summary(each)} |"
        for each in inside
    ]
    return "\n".join([text, "| module | |", "| --- | --- |", *rows, ""])


def _holder(source: str) -> Path:
    """The folder in whose table a module stands."""
    path = Path(source)
    return path.parent.parent if path.stem == "__init__" else path.parent


def _relative(source: str, folder: Path) -> str:
    path = Path(source).relative_to(folder)
    return (
        path.parent / "index.md" if path.stem == "__init__" else path.with_suffix(".md")
    ).as_posix()


def _front_door() -> str:
    """Every name of `import diffusion_jax as dj`, by the room that it comes from."""
    rooms: dict[str, list[str]] = {}
    for name in sorted(dir(dj), key=str.lower):
        each = getattr(dj, name)
        where = getattr(each, "__module__", "diffusion_jax.presets")
        summary = " ".join((inspect.getdoc(each) or "").partition("\n\n")[0].split())
        if isinstance(each, dict):  # whose own docstring is dict's
            summary = "complete configurations by name"
        summary = summary.replace("|", "\\|")
        row = f"| [`dj.{name}`][{where}.{name}] | {summary} |"
        rooms.setdefault(where.split(".")[1], []).append(row)
    parts = [
        "# The front door\n",
        "`import diffusion_jax as dj` gives the names that most users need, here by the room that "
        "each comes from. Everything else is imported from its module.\n",
    ]
    for room, rows in rooms.items():
        parts += [f"## {room}\n", "| name | what it is |", "| --- | --- |", *rows, ""]
    return "\n".join(parts)


def _commands() -> str:
    """What --help prints, of every command."""
    parts = [
        "# Commands\n\n`python -m experiments.NAME`, in a checkout `./launch.sh python -m "
        "experiments.NAME`, or where the project is installed `diffusion-jax NAME`.\n",
        f"```text\n{commands.overview()}\n```\n",
    ]
    for name in commands.COMMANDS:
        parts.append(f"## {name}\n\n```text\n{_help(name)}\n```\n")
        if name == "convert":
            each = (f"```text\n{_help(name, way)}\n```\n" for way in ("from-torch", "to-torch"))
            parts.extend(each)
    return "\n".join(parts)


def _help(name: str, *words: str) -> str:
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [f"diffusion-jax {name}", *words, "--help"]),
        mock.patch.dict(os.environ, COLUMNS="78", NO_COLOR="1"),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(f"experiments.{commands.COMMANDS[name]}").main()
    return out.getvalue().strip()
