"""What is done to a running training, and at what moment."""

import random
import resource
import signal
import time
from collections.abc import Callable

from diffusion_jax.runtime.preemption import EXIT_STATUS, SIGNALS
from experiments.tools.kills.child_run import Process, Run
from experiments.tools.kills.verdict import Lost

# Seconds after which a start is taken to hang.
_PATIENCE = 900


def _wait_until(process: Process, happened: Callable[[], bool]) -> None:
    """Waits for something, or for the end of the process."""
    waited, last = 0.0, time.monotonic()
    while process.poll() is None and not happened():
        now = time.monotonic()
        waited += min(now - last, 1)  # not the time for which this program is suspended
        last = now
        if waited > _PATIENCE:
            process.kill()
            raise Lost(f"a start hung: {process.communicate()}")
        time.sleep(0.001)


class Moments:
    """When to strike. Each waits for its moment, or until the process has ended."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.seconds = float("inf")  # that the quickest run took so far

    def any_time(self, run: Run, process: Process) -> None:
        """From the start of the interpreter to some way into the training."""
        end = time.monotonic() + self._rng.uniform(0, self.seconds)
        _wait_until(process, lambda: time.monotonic() > end)

    def preparation(self, run: Run, process: Process) -> None:
        """While photographs are cut and images are prepared; where they are, at the start."""
        before = set(run.data.rglob("*"))
        started = run.folder / "summary.json"
        _wait_until(process, lambda: set(run.data.rglob("*")) != before or started.exists())
        time.sleep(self._rng.uniform(0, 0.5))

    def training(self, run: Run, process: Process) -> None:
        """After an update was logged."""
        metrics = run.folder / "metrics.jsonl"

        def state() -> tuple[int, int]:
            found = metrics.stat() if metrics.exists() else None
            return (found.st_ino, found.st_size) if found is not None else (0, 0)

        before = state()
        _wait_until(process, lambda: state()[0] != before[0])  # replaced at the start of a training
        before = state()
        _wait_until(process, lambda: state() != before)
        time.sleep(self._rng.uniform(0, 0.2))

    def checkpoint(self, run: Run, process: Process) -> None:
        """While a checkpoint has its temporary name."""
        before = {path.name for path in run.checkpoints.glob("*-tmp*")}
        wanted, seen = self._rng.randint(1, 3), set[str]()

        def written() -> bool:
            seen.update(path.name for path in run.checkpoints.glob("*-tmp*"))
            return len(seen - before) >= wanted

        _wait_until(process, written)
        time.sleep(self._rng.uniform(0, 0.02))

    def drawing(self, run: Run, process: Process) -> None:
        """After a checkpoint at which samples are due too."""
        before = run.saved()
        _wait_until(process, lambda: any(s % 10 == 0 and s not in before for s in run.saved()))
        time.sleep(self._rng.uniform(0, 0.2))


def carry_out(
    strike: str | None, run: Run, process: Process, moments: Moments, rng: random.Random
) -> set[int]:
    """Strikes at the moment that is named, and waits for the end of the process.

    Args:
      strike: `kill`, `stop` (SIGTERM) or `starve` (files may not grow any more), and a moment, such
        as `kill checkpoint`; None where the process is left to end.
      run: the run that was started.
      process: its process.
      moments: when.
      rng: chooses the signal that asks to stop, and how large files may become.

    Returns:
      The exit statuses that are right then.

    Raises:
      Lost: it hangs.
    """
    if strike is None:
        _wait_until(process, lambda: False)
        return {0}
    word, _, moment = strike.partition(" ")
    getattr(moments, moment)(run, process)
    if word == "kill":
        process.kill()
        process.wait()
        return {0, -signal.SIGKILL}
    if word == "stop":
        number = rng.choice([each for each in SIGNALS if each != signal.SIGINT])
        process.send_signal(number)
        _wait_until(process, lambda: False)
        return {0, EXIT_STATUS, -number}  # the last before the training has begun
    if process.poll() is None:
        limit = rng.choice((100, 1000, 10_000))  # bytes that a file may have
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    _wait_until(process, lambda: False)
    return {0, 1}
