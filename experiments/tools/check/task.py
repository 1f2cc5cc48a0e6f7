"""What a function that measures an item is given, and how it tells what it has found."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_jax.runtime.files import write_json
from experiments.tools.check.sizes import Sizes

BROKEN = "bounds broken"


@dataclass
class Task:
    """An item to be measured.

    Attributes:
      sizes: how much.
      tiny: whether they are the tiny ones.
      folder: of the whole check, for what is to stay.
      scratch: for what is not.
      deadline: when it will be ended, by `time.monotonic`.
      found: what there is so far: numbers and texts by what they are, dictionaries of them, and
        lists, which the table leaves out.
    """

    sizes: Sizes
    tiny: bool
    folder: Path
    scratch: Path
    deadline: float
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> Path:
        """The file that always holds what was found."""
        return self.scratch / "found.json"

    @property
    def seconds(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()

    def add(self, found: Mapping[str, Any]) -> None:
        """Adds to what was found, one level deep, and keeps it whatever comes next."""
        for name, value in found.items():
            if isinstance(value, Mapping):
                self.found.setdefault(name, {}).update(value)
            else:
                self.found[name] = value
        write_json(self.result, self.found)

    def judge(self, name: str, value: float, most: float) -> None:
        """Adds an error, or a ratio, and its bound; a NaN breaks it."""
        kept = value <= most
        self.add({name: f"{value:.2g} (at most {most:g}{'' if kept else ', BROKEN'})"})
        if not kept:
            broken = [*self.found.get(BROKEN, []), f"{name}: {value:.3g} is over {most:g}"]
            self.add({BROKEN: broken})


def start(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Starts `python ARGUMENTS`, whose output goes to the end of a file.

    Args:
      arguments: of the interpreter.
      log: the file.
      environment: what it finds set beside what this process does.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def finish(
    process: "subprocess.Popen[bytes]", log: Path, seconds: float, allowed: Sequence[int] = (0,)
) -> int:
    """Waits for a process, and asks it to stop when its time is up.

    Args:
      process: from `start`.
      log: its output.
      seconds: its time.
      allowed: exit statuses that are no failure.

    Returns:
      Its exit status.

    Raises:
      RuntimeError: another status; the last line of the output says why.
    """
    try:
        status = process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    if status not in allowed:
        raise RuntimeError(f"{last_line(log)} (exit status {status})")
    return status


def run(task: Task, name: str, arguments: Sequence[str], **environment: str) -> Path:
    """Runs `python ARGUMENTS` to its end, and returns the file of its output.

    Raises:
      RuntimeError: it failed, or was not done in the task's time.
    """
    log = task.scratch / f"{name}.log"
    finish(start(arguments, log, environment), log, task.seconds)
    return log


def last_json(log: Path) -> Any:
    """The last line of a file that is JSON: libraries may warn of something after it.

    Raises:
      RuntimeError: there is none.
    """
    for line in reversed(log.read_text(errors="replace").splitlines()):
        with contextlib.suppress(ValueError):
            return json.loads(line)
    raise RuntimeError(last_line(log))


def last_line(log: Path) -> str:
    """The last line of a file that says anything."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].strip() if lines else "no message"
