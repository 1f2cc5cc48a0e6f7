"""Kills, stops and starves a small training again and again: nothing may be lost.

    python -m experiments.tools.torture [--kills 50] [--seed 0] [--out runs/torture]

One run is left alone. Others are killed at random moments, while images are prepared, while a
checkpoint is written or while samples are drawn, stopped by SIGTERM, refused the disk, and their
newest checkpoint is damaged between two starts. Each start must go on from the newest checkpoint
that is whole, and each run must end with the checkpoint, the losses and the samples of the one left
alone, bit for bit. OUT/summary.json counts what was done; the exit status is 1 where anything was
lost. OUT must be empty or missing.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.config import from_dict
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.preemption import EXIT_STATUS
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.step import init_state, make_optimizer
from experiments.command import reports_errors

COMMAND = (
    *(sys.executable, "-m", "experiments.train_lsun"),
    *("--data", "photographs", "--images-per-class", "20", "--image-size", "8"),
    *("--base-channels", "8", "--multiples", "1", "--attention-levels", "--num-res-blocks", "1"),
    *("--batch-size", "4", "--diffusion-steps", "25", "--warmup-steps", "5", "--log-every", "1"),
    *("--checkpoint-every", "5", "--sample-every", "10", "--num-samples", "4"),
)
# Seconds after which a start is taken to hang.
_PATIENCE = 900

Process = subprocess.Popen[str]


class Lost(Exception):
    """Something that a run had saved is gone, or is not what it should be."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, and the command that starts it or goes on with it."""

    folder: Path
    data: Path
    steps: int
    command: tuple[str, ...]

    def start(self) -> Process:
        """Starts it."""
        words = [*self.command, "--steps", str(self.steps), "--run-dir", str(self.folder)]
        words += ["--data-dir", str(self.data)]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        pipe = subprocess.PIPE
        return subprocess.Popen(words, env=env, text=True, stdout=pipe, stderr=pipe)

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.folder / "checkpoints"

    def saved(self) -> list[int]:
        """The steps of the complete checkpoints, newest first."""
        names = (path.name for path in self.checkpoints.glob("*"))
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)

    def arrays(self, step: int) -> dict[str, bytes]:
        """The bytes of every array of a checkpoint, by its name."""
        with Checkpoints(self.checkpoints, read_only=True) as checkpoints:
            metadata = checkpoints.metadata(step)
            config, shape = from_dict(metadata["config"]), metadata["shape"]
            model, optimizer = config.model.build(shape[-1]), make_optimizer(config.training)
            like = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), shape))
            state = checkpoints.restore(step, like)
        state = state.replace(key=jax.random.key_data(state.key))
        leaves = jax.tree.leaves_with_path(state)
        return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}

    def losses(self) -> list[tuple[float, ...]]:
        """What metrics.jsonl holds of the training itself, not of its speed."""
        names = ("step", "loss", "grad_norm", "learning_rate")
        return [
            tuple(record[name] for name in names)
            for record in read_metrics(self.folder / "metrics.jsonl")
        ]

    def images(self) -> dict[str, bytes]:
        """The grids of samples and of training images."""
        return {path.name: path.read_bytes() for path in (self.folder / "samples").iterdir()}


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


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def damage(checkpoint: Path, rng: random.Random) -> str:
    """Damages a checkpoint in a random way, and says how."""
    data = max((checkpoint / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    metadata = checkpoint / "metadata" / "metadata"
    kinds: dict[str, Callable[[], Any]] = {
        "one bit of the arrays": lambda: _flip(data, rng),
        "arrays cut short": lambda: os.truncate(data, rng.randrange(data.stat().st_size)),
        "arrays missing": data.unlink,
        "arrays zero": lambda: data.write_bytes(bytes(data.stat().st_size)),
        "one bit of the metadata": lambda: _flip(metadata, rng),
        "metadata cut short": lambda: os.truncate(metadata, rng.randrange(metadata.stat().st_size)),
        "all files missing": lambda: _empty(checkpoint),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    return kind


class Torture:
    """One run that is left alone, others that are not, and the count of what was done to them."""

    def __init__(
        self, out: Path, seed: int, steps: int, command: tuple[str, ...] = COMMAND
    ) -> None:
        """Trains the run that is left alone.

        Args:
          out: where all runs go.
          seed: of what is random in the strikes.
          steps: updates of each run.
          command: what trains, but for steps and folders.

        Raises:
          UserError: it failed.
        """
        self.out, self.steps, self.command = out, steps, command
        self.rng = random.Random(seed)
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("kills", "stops", "full disks", "damage", "starts")
        }
        # The checkpoints, still under their names, that were damaged, and how.
        self._damaged: dict[int, str] = {}
        self.whole = self._new("whole")
        self.moments = Moments(self.rng)
        began = time.monotonic()
        process = self.whole.start()
        text, err = process.communicate()
        if process.returncode != 0:
            raise UserError(f"the run that is left alone failed: {err or text}")
        self.moments.seconds = time.monotonic() - began

    def _new(self, name: str) -> Run:
        return Run(self.out / name, self.out / f"{name}-data", self.steps, self.command)

    def run(self, strikes: Iterable[str]) -> None:
        """Strikes, at one run after another, and compares each with the one left alone.

        Args:
          strikes: what is to be done to one start after another: `kill`, `stop` (SIGTERM) or
            `starve` (files may not grow any more), and a moment, such as `kill checkpoint`.

        Raises:
          Lost: something was lost.
        """
        pending, number = iter(strikes), 0
        strike = next(pending, None)
        while strike is not None:
            run, finished = self._new(f"struck{number}"), False
            self._damaged.clear()
            while not finished:
                finished = self._start(run, strike)
                strike = next(pending, None) if strike is not None else None
            self._compare(run)
            number += 1

    def _start(self, run: Run, strike: str | None) -> bool:
        """Starts a run, strikes if asked, and checks how it went on and ended; whether it is done.

        Where the strike comes too late the run ends by itself.
        """
        saved = run.saved()
        if len(saved) > 1 and not self._damaged.keys() & saved and self.rng.random() < 0.4:
            kind = damage(run.checkpoints / str(saved[0]), self.rng)
            self.counts["damage"][kind] += 1
            self._damaged[saved[0]] = kind
        allowed = set()
        for step in saved:
            kind = self._damaged.get(step, "")
            if not kind or kind.startswith("one bit"):  # which may be one that means nothing
                allowed.add(step)
            if not kind:
                break
        self.counts["starts"]["in all"] += 1
        began, process = time.monotonic(), run.start()
        try:
            ended = self._strike(run, process, strike)
        finally:
            process.kill()
        out, err = process.communicate()
        status = process.returncode
        story = f"{strike}, status {status}:\n{out}\n{err}"
        resumed = re.search(r"Resuming after step (\d+)", out)
        if "Writing to" in out and (resumed is not None) != bool(allowed):
            raise Lost(f"it did not go on from one of {allowed}: {story}")
        if resumed is not None:
            if int(resumed[1]) not in allowed:
                raise Lost(f"it went on from {resumed[1]}, not from one of {allowed}: {story}")
            if int(resumed[1]) != saved[0]:
                self.counts["damage"]["found, and the one before used"] += 1
                del self._damaged[saved[0]]
                path = run.checkpoints / str(saved[0])
                if f"warning: the checkpoint {path} cannot be read" not in err:
                    raise Lost(f"the damaged checkpoint {path} is not named: {story}")
        if status not in ended:
            raise Lost(f"it ended with another status than {ended}: {story}")
        if status == EXIT_STATUS and f"stopped after step {run.saved()[0]} of" not in out:
            raise Lost(f"it is not saved: {story}")
        if status == 1 and not err.splitlines()[-1].startswith("error: cannot "):
            raise Lost(f"an error is not one sentence: {story}")
        for step in self._damaged.keys() - run.saved():
            del self._damaged[step]  # killed between the renaming and the word of it
        if status == 0:
            self.moments.seconds = min(self.moments.seconds, time.monotonic() - began)
        self._count(run, strike, status, out)
        done = f"{self.counts['kills'].total()} kills; {run.folder.name}: {strike or 'left to end'}"
        print(f"{done}, status {status}, saved {run.saved()}", flush=True)
        return status == 0

    def _strike(self, run: Run, process: Process, strike: str | None) -> set[int]:
        """Does it, and gives the exit statuses that are right then."""
        if strike is None:
            _wait_until(process, lambda: False)
            return {0}
        word, _, moment = strike.partition(" ")
        getattr(self.moments, moment)(run, process)
        if word == "kill":
            process.kill()
            process.wait()
            return {0, -signal.SIGKILL}
        if word == "stop":
            process.terminate()
            _wait_until(process, lambda: False)
            return {0, EXIT_STATUS, -signal.SIGTERM}  # the last before the training has begun
        if process.poll() is None:
            limit = self.rng.choice((100, 1000, 10_000))  # bytes that a file may have
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        _wait_until(process, lambda: False)
        return {0, 1}

    def _count(self, run: Run, strike: str | None, status: int, out: str) -> None:
        word, _, moment = (strike or "").partition(" ")
        marks = {
            "in training": "\nstep ",
            "in compilation": "Writing to",
            "in restoring": "Devices:",
            "in starting or preparing": "",
        }
        phase = next(phase for phase, mark in marks.items() if mark in out)
        if status == -signal.SIGKILL:
            if moment == "checkpoint" and any(run.checkpoints.glob("*-tmp*")):
                phase = "in writing a checkpoint"
            elif moment == "drawing":
                phase = "in drawing samples"
            self.counts["kills"][phase] += 1
        elif status in (EXIT_STATUS, -signal.SIGTERM):
            self.counts["stops"]["saved" if status == EXIT_STATUS else "before training"] += 1
        elif word == "starve" and status == 1:
            self.counts["full disks"][phase] += 1

    def _compare(self, run: Run) -> None:
        """Raises Lost where a finished run is not the one left alone."""
        if run.losses() != self.whole.losses():
            raise Lost(f"the losses of {run.folder} differ")
        if run.images() != self.whole.images():
            raise Lost(f"the images of {run.folder} differ")
        steps = [step for step in run.saved() if step in self.whole.saved()]
        if steps[:1] != [self.steps]:
            raise Lost(f"the last checkpoint of {run.folder} is missing")
        for step in steps:
            expected = self.whole.arrays(step)
            different = [name for name, x in run.arrays(step).items() if x != expected[name]]
            if different:
                raise Lost(f"{different} of {run.folder}'s checkpoint {step} differ")

    def summary(self) -> dict[str, Any]:
        """What was done."""
        totals = {name: dict(counter) for name, counter in self.counts.items()}
        return {"steps of each run": self.steps} | totals


KILLS = ("any_time", "preparation", "training", "checkpoint", "checkpoint", "drawing")


def _strikes(torture: Torture, kills: int) -> Iterator[str]:
    """Random ones, until enough processes were killed."""
    while torture.counts["kills"].total() < kills:
        word = torture.rng.choices(("kill", "stop", "starve"), (8, 1, 1))[0]
        moment = torture.rng.choice(KILLS if word == "kill" else ("any_time", "training"))
        yield f"{word} {moment}"


@reports_errors
def main() -> None:
    """Parses the command line, and tortures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the strikes (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"), help="(%(default)s)")
    options = parser.parse_args()
    if options.out.is_dir() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty; remove it or give another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    torture = Torture(options.out, options.seed, steps=60)
    lost = "nothing"
    try:
        torture.run(_strikes(torture, options.kills))
    except Lost as loss:
        lost = str(loss)
    summary = torture.summary() | {"lost": lost}
    write_json(options.out / "summary.json", summary)
    print(json.dumps(summary, indent=1))
    sys.exit(0 if lost == "nothing" else 1)


if __name__ == "__main__":
    main()
