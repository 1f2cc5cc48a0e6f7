"""One item of `gpu_check`, in a process of its own: see `experiments.gpu_check`."""

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from experiments.tools.check.items import ITEMS
from experiments.tools.check.sizes import FULL, TINY
from experiments.tools.check.task import Task


def main() -> None:
    """Measures an item; what is found goes to SCRATCH/found.json as it is found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    task = Task(
        TINY if given.tiny else FULL,
        given.tiny,
        given.folder,
        given.scratch,
        time.monotonic() + given.seconds,
    )
    (item,) = (item for item in ITEMS if item.name == given.name)
    module, function = item.function.split(".")
    try:
        getattr(importlib.import_module(f"experiments.tools.check.{module}"), function)(task)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        task.add({"error": f"{type(error).__name__}: {lines[0] if lines else 'no message'}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
