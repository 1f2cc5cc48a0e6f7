"""Executes the documentation's notebooks: python -m experiments.tools.notebooks [NAME ...].

Each notebook of docs/notebooks is a pair: NAME.py, which is edited and reviewed, and NAME.ipynb,
the same cells with what they print and draw, which GitHub shows. This writes the latter from the
former, in a fresh kernel that starts in that folder. A cell that fails ends the command, with its
error, and the old NAME.ipynb stays.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import write_bytes
from experiments.command import parse, reports_errors

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


@dataclass(frozen=True)
class Options:
    """Executes the documentation's notebooks."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which, such as gaussian_mixture; all by default."""


def read(script: Path) -> Any:
    """The notebook of a NAME.py, without outputs; the ids of its cells are their places."""
    import jupytext

    notebook = jupytext.read(script)
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place}"
    return notebook


def execute(script: Path, seconds: int = 600, env: dict[str, str] | None = None) -> Any:
    """The notebook of a NAME.py with its outputs.

    Args:
      script: the file; the kernel starts in its folder.
      seconds: that a cell may take.
      env: the kernel's environment; by default this process's.

    Raises:
      UserError: a cell failed, or took longer.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = read(script)
    client = NotebookClient(
        notebook,
        timeout=seconds,
        record_timing=False,
        resources={"metadata": {"path": str(script.parent)}},
    )
    try:
        client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore"} if env is None else env)
    except (CellExecutionError, CellTimeoutError) as error:
        raise UserError(f"a cell of {script} failed: {error}") from error
    notebook.metadata.pop("language_info", None)  # the version of this Python
    return notebook


@reports_errors
def main() -> None:
    """Executes and writes."""
    options = parse(Options, "notebooks", __doc__)
    known = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
    if unknown := set(options.names) - set(known):
        raise UserError(f"there is no notebook {min(unknown)}; choose from {', '.join(known)}")
    import nbformat

    for name in options.names or known:
        started = time.monotonic()
        notebook = execute(known[name])
        path = known[name].with_suffix(".ipynb")
        write_bytes(path, (nbformat.writes(notebook) + "\n").encode())
        size = path.stat().st_size / 1000
        print(f"Wrote {path.name}, {size:.0f} kB, in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
