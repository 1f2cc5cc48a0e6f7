"""Runs of a study in processes of their own, as many at a time as there are devices."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from diffusion_jax.config import Config
from diffusion_jax.errors import UserError
from diffusion_jax.memorising.cells import Cell
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.preemption import EXIT_STATUS, SIGNALS, Stopped
from diffusion_jax.training import saved_config

LOG = "log.txt"
# Trains the run in a folder.
PROGRAM = ("-m", "experiments.tools.memorisation_cell")
# Seconds between two looks, and for which an earlier study's run may still be saving itself.
_PAUSE, _PATIENCE = 0.5, 120.0


@dataclass
class Work:
    """What is being done.

    Attributes:
      folders: of the cells that are left to do, in order.
      running: processes by their cells.
      failed: why cells ended before their end, one sentence each.
      done: cells that ended well.
    """

    folders: dict[Cell, Path]
    running: dict[Cell, subprocess.Popen[bytes]] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    done: list[Cell] = field(default_factory=list)


def devices() -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is to be for each run at a time; None leaves it alone.

    A GPU each; one run at a time on everything else. JAX is not started, which would take memory.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [name for name in shown.split(",") if name] or [None]
    listed = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    return [str(i) for i in range(len(listed))] if len(listed) > 1 else [None]


def run(folders: dict[Cell, Path], look: Callable[[Work], None]) -> Work:
    """Trains the runs whose config.json lie in some folders.

    Each is a process of `PROGRAM` with the folder, whose output replaces that of an earlier one in
    the folder's log.txt. It saves itself and ends when this process does, by whatever signal.

    Args:
      folders: of the cells.
      look: is called twice a second with the state of things.

    Raises:
      Stopped: a signal asked for it, and all runs are saved.
    """
    work, slots = Work(dict(folders)), devices()
    free, taken = list(slots), dict[Cell, str | None]()
    with _asked() as signals:
        try:
            while work.folders or work.running:
                while work.folders and free and not signals:
                    cell = next(iter(work.folders))
                    _wait_for_earlier(folders[cell], signals)
                    taken[cell] = free.pop()
                    work.running[cell] = _start(work.folders.pop(cell), taken[cell])
                time.sleep(_PAUSE)
                for cell in [
                    cell for cell, each in work.running.items() if each.poll() is not None
                ]:
                    free.append(taken.pop(cell))
                    _finish(work, cell, folders[cell])
                look(work)
                if signals:
                    break
        finally:
            _end(work, signals)
    if signals:
        raise Stopped("stopped, and all runs are saved; the same command goes on")
    return work


def _start(folder: Path, device: str | None) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *PROGRAM, str(folder)],
            stdin=subprocess.PIPE,  # which ends when this process does
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C comes here alone, and is passed on
        )


def _wait_for_earlier(folder: Path, signals: list[int]) -> None:
    """Waits for a run that a killed study left behind, which is saving itself."""
    until = time.monotonic() + _PATIENCE
    while not signals:
        try:
            lock.lock(folder)
        except UserError:
            if time.monotonic() > until:
                break  # the run says who holds it
            time.sleep(_PAUSE)
        else:
            lock.release(folder)
            break


def _finish(work: Work, cell: Cell, folder: Path) -> None:
    status = work.running.pop(cell).wait()
    if status == 0:
        work.done.append(cell)
    elif status == EXIT_STATUS:
        work.failed[cell] = "a signal stopped it, and it is saved; the same command goes on"
    else:
        words = (folder / LOG).read_text(errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in words if line.startswith("error: ")]
        work.failed[cell] = (
            said[-1] if said else f"it ended with status {status}; see {folder / LOG}"
        )


def _end(work: Work, signals: list[int]) -> None:
    """Asks what still runs to save itself, and waits for it; by another signal, to end at once."""
    heard = -1
    while any(each.poll() is None for each in work.running.values()):
        if len(signals) > heard:
            heard = len(signals)
            for each in work.running.values():
                each.terminate()
        time.sleep(_PAUSE)


@contextmanager
def _asked() -> Iterator[list[int]]:
    """The signals that came, in place of what they do."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    taken = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in taken}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_configs(configs: dict[Cell, Config]) -> dict[Cell, Path]:
    """Writes the config.json of each cell that is left to do, and gives its folder."""
    folders = {}
    for cell, config in configs.items():
        folder = config.output.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        saved_config.write(config)
        folders[cell] = folder
    return folders
