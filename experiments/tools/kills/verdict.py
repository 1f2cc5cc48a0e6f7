"""Whether a run lost anything: what it went on from, how it ended, and what it made."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_jax.runtime.preemption import EXIT_STATUS
from experiments.tools.kills.child_run import Run


class Lost(Exception):
    """Something that a run had saved is gone, or is not what it should be."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a start of a run ended.

    Attributes:
      strike: what was done to it, see `strikes.carry_out`.
      status: its exit status.
      out: what it printed.
      err: what it printed to the standard error.
    """

    strike: str | None
    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"{self.strike}, status {self.status}:\n{self.out}\n{self.err}"

    @property
    def resumed(self) -> int | None:
        """The step of the checkpoint that it went on from; None where it did not."""
        found = re.search(r"Resuming after step (\d+)", self.out)
        return int(found[1]) if found is not None else None


def may_resume(saved: Sequence[int], damaged: Mapping[int, str]) -> set[int]:
    """The steps of the checkpoints that a start may go on from.

    Args:
      saved: steps of all checkpoints, newest first.
      damaged: those of them that were damaged, and how.
    """
    allowed = set()
    for step in saved:
        kind = damaged.get(step, "")
        if not kind or kind.startswith("one bit"):  # which may be one that means nothing
            allowed.add(step)
        if not kind:
            break
    return allowed


def check_resumed(ending: Ending, allowed: set[int]) -> None:
    """Raises Lost where a start went on from another checkpoint than it may, or from none."""
    resumed = ending.resumed
    if "Writing to" in ending.out and (resumed is not None) != bool(allowed):
        raise Lost(f"it did not go on from one of {allowed}: {ending}")
    if resumed is not None and resumed not in allowed:
        raise Lost(f"it went on from {resumed}, not from one of {allowed}: {ending}")


def check_named(ending: Ending, checkpoint: Path) -> None:
    """Raises Lost where a start does not name the damaged checkpoint that it passed over."""
    if f"warning: the checkpoint {checkpoint} cannot be read" not in ending.err:
        raise Lost(f"the damaged checkpoint {checkpoint} is not named: {ending}")


def check_ended(run: Run, ending: Ending, expected: set[int]) -> None:
    """Raises Lost where a start ended with another status, or did not do what its status says."""
    if ending.status not in expected:
        raise Lost(f"it ended with another status than {expected}: {ending}")
    if ending.status == EXIT_STATUS and f"stopped after step {run.saved()[0]} of" not in ending.out:
        raise Lost(f"it is not saved: {ending}")
    if ending.status == 1 and not ending.err.splitlines()[-1].startswith("error: cannot "):
        raise Lost(f"an error is not one sentence: {ending}")


def check_same(run: Run, whole: Run) -> None:
    """Raises Lost where a finished run is not the one left alone."""
    if run.losses() != whole.losses():
        raise Lost(f"the losses of {run.folder} differ")
    if run.images() != whole.images():
        raise Lost(f"the images of {run.folder} differ")
    steps = [step for step in run.saved() if step in whole.saved()]
    if steps[:1] != [run.steps]:
        raise Lost(f"the last checkpoint of {run.folder} is missing")
    for step in steps:
        expected = whole.arrays(step)
        different = [name for name, x in run.arrays(step).items() if x != expected[name]]
        if different:
            raise Lost(f"{different} of {run.folder}'s checkpoint {step} differ")
