"""Lists all commands: python -m experiments; installed, diffusion-jax runs the first ones.

diffusion-jax train --preset sample    is    python -m experiments.train_lsun --preset sample
"""

import ast
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent
# The users' commands: what diffusion-jax calls them, and their modules.
COMMANDS = {
    "train": "train_lsun",
    "fetch": "fetch",
    "sample": "sample",
    "regimes": "regimes",
    "cloning": "cloning",
    "theories": "theories",
    "modes": "modes",
    "uturns": "uturns",
    "memorisation": "memorisation",
    "serve": "serve",
    "likelihood": "likelihood",
    "convert": "convert",
    "parity": "parity",
    "gpu_check": "gpu_check",
}
ROOMS = {"paper": "Figures of the paper and of the docs", "tools": "For maintainers"}


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _summary(path: Path) -> str:
    """The first sentence of a command's docstring, without how it is called."""
    return _docstring(path).partition("\n")[0].partition(": python -m")[0].rstrip(".")


def _is_command(path: Path) -> bool:
    return "python -m experiments" in _docstring(path) and not path.name.startswith("_")


def overview() -> str:
    """Every command and what it does, one line each."""
    blocks = [("Commands", [(name, ROOT / f"{file}.py") for name, file in COMMANDS.items()])]
    for room, title in ROOMS.items():
        paths = sorted(filter(_is_command, (ROOT / room).glob("*.py")))
        blocks.append((title, [(f"{room}.{path.stem}", path) for path in paths]))
    lines = []
    for title, commands in blocks:
        lines += [f"{title}:", *(f"  {name:28} {_summary(path)}" for name, path in commands), ""]
    lines += [
        "python -m experiments.NAME runs a command (experiments.train_lsun for train); so does",
        "diffusion-jax NAME for the first ones, where the project is installed. --help after it",
        "explains the options.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs a user's command, or lists all."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(overview())
    elif name in COMMANDS:
        sys.argv = [f"diffusion-jax {name}", *rest]
        importlib.import_module(f"experiments.{COMMANDS[name]}").main()
    else:
        print(f"error: there is no command {name}\n\n{overview()}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
