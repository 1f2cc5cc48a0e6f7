"""Kills, stops and starves a small training again and again: nothing may be lost.

    python -m experiments.tools.torture [--kills 50] [--seed 0] [--out runs/torture]

One run is left alone. Others are killed at random moments, while images are prepared, while a
checkpoint is written or while samples are drawn, stopped by signals, refused the disk, and their
newest checkpoint is damaged between two starts. Each start must go on from the newest checkpoint
that is whole, and each run must end with the checkpoint, the losses and the samples of the one left
alone, bit for bit. OUT/summary.json counts what was done; the exit status is 1 where anything was
lost. OUT must be empty or missing.
"""

import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.preemption import EXIT_STATUS
from experiments.command import parse, reports_errors
from experiments.tools.kills import verdict
from experiments.tools.kills.child_run import Run
from experiments.tools.kills.damage import damage
from experiments.tools.kills.strikes import Moments, carry_out

COMMAND = (
    *(sys.executable, "-m", "experiments.train_lsun"),
    *("--data", "photographs", "--images-per-class", "20", "--image-size", "8"),
    *("--base-channels", "8", "--multiples", "1", "--attention-levels", "--num-res-blocks", "1"),
    *("--batch-size", "4", "--diffusion-steps", "25", "--warmup-steps", "5", "--log-every", "1"),
    *("--checkpoint-every", "5", "--sample-every", "10", "--num-samples", "4"),
)


@dataclass(frozen=True)
class Options:
    """Kills, stops and starves a small training again and again."""

    kills: int = 50
    """Number of SIGKILLs."""
    seed: int = 0
    """Seed of the strikes."""
    out: Path = Path("runs/torture")
    """Folder for the runs and summary.json; empty or missing."""


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
          command: what trains, except for steps and folders.

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
          strikes: what is to be done to one start after another: `kill`, `stop` (a signal) or
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
            verdict.check_same(run, self.whole)
            number += 1

    def _start(self, run: Run, strike: str | None) -> bool:
        """Starts a run, strikes if asked, and checks how it went on and ended; whether it is done.

        Where the strike comes too late the run ends by itself.
        """
        saved = run.saved()
        self._damage(run, saved)
        allowed = verdict.may_resume(saved, self._damaged)
        self.counts["starts"]["in all"] += 1
        began, process = time.monotonic(), run.start()
        try:
            expected = carry_out(strike, run, process, self.moments, self.rng)
        finally:
            process.kill()
        out, err = process.communicate()
        ending = verdict.Ending(strike, process.returncode, out, err)
        verdict.check_resumed(ending, allowed)
        if ending.resumed is not None and ending.resumed != saved[0]:
            self.counts["damage"]["found, and the one before used"] += 1
            del self._damaged[saved[0]]
            verdict.check_named(ending, run.checkpoints / str(saved[0]))
        verdict.check_ended(run, ending, expected)
        for step in self._damaged.keys() - run.saved():
            del self._damaged[step]  # killed between the renaming and the word of it
        if ending.status == 0:
            self.moments.seconds = min(self.moments.seconds, time.monotonic() - began)
        self._count(run, ending)
        done = f"{self.counts['kills'].total()} kills; {run.folder.name}: {strike or 'left to end'}"
        print(f"{done}, status {ending.status}, saved {run.saved()}", flush=True)
        return ending.status == 0

    def _damage(self, run: Run, saved: list[int]) -> None:
        """Damages the newest of several checkpoints now and then, unless one is damaged already."""
        if len(saved) > 1 and not self._damaged.keys() & saved and self.rng.random() < 0.4:
            kind = damage(run.checkpoints / str(saved[0]), self.rng)
            self.counts["damage"][kind] += 1
            self._damaged[saved[0]] = kind

    def _count(self, run: Run, ending: verdict.Ending) -> None:
        status = ending.status
        word, _, moment = (ending.strike or "").partition(" ")
        marks = {
            "in training": "\nstep ",
            "in compilation": "Writing to",
            "in restoring": "Devices:",
            "in starting or preparing": "",
        }
        phase = next(phase for phase, mark in marks.items() if mark in ending.out)
        if status == -signal.SIGKILL:
            if moment == "checkpoint" and any(run.checkpoints.glob("*-tmp*")):
                phase = "in writing a checkpoint"
            elif moment == "drawing":
                phase = "in drawing samples"
            self.counts["kills"][phase] += 1
        elif word == "stop" and status != 0:
            self.counts["stops"]["saved" if status == EXIT_STATUS else "before training"] += 1
        elif word == "starve" and status == 1:
            self.counts["full disks"][phase] += 1

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
    options = parse(Options, "tools.torture", __doc__)
    if options.out.is_dir() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty; remove it or give another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    torture = Torture(options.out, options.seed, steps=60)
    lost = "nothing"
    try:
        torture.run(_strikes(torture, options.kills))
    except verdict.Lost as loss:
        lost = str(loss)
    summary = torture.summary() | {"lost": lost}
    write_json(options.out / "summary.json", summary)
    print(json.dumps(summary, indent=1))
    sys.exit(0 if lost == "nothing" else 1)


if __name__ == "__main__":
    main()
