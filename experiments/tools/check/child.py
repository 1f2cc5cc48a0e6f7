"""One item of `gpu_check`, in a process of its own: see `experiments.gpu_check`."""

import importlib
import sys
import time
import traceback
from pathlib import Path

import tyro
from tyro.conf import Positional

from experiments.tools.check.items import ITEMS
from experiments.tools.check.sizes import FULL, TINY
from experiments.tools.check.task import Task


def measure(
    name: Positional[str],
    folder: Positional[Path],
    scratch: Positional[Path],
    seconds: Positional[float],
    tiny: bool = False,
) -> None:
    """Measures an item; what is found goes to SCRATCH/found.json as it is found."""
    task = Task(TINY if tiny else FULL, tiny, folder, scratch, time.monotonic() + seconds)
    (item,) = (item for item in ITEMS if item.name == name)
    module, function = item.function.split(".")
    try:
        getattr(importlib.import_module(f"experiments.tools.check.{module}"), function)(task)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        task.add({"error": f"{type(error).__name__}: {lines[0] if lines else 'no message'}"})
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(measure)
