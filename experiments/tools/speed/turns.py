"""The seconds of one program: JAX's and the forms of the reference take turns, call by call."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from experiments.tools.speed import timing
from experiments.tools.speed.notes import note
from experiments.tools.speed.programs import Program
from experiments.tools.speed.ratios import ratio

if TYPE_CHECKING:  # it needs torch, which may be missing
    from experiments.tools.speed.reference import MakeCall, Reference
    from experiments.tools.speed.torch_speed import Setting

COMPILE_LIMIT = 240


@dataclass(frozen=True)
class TakeTurns:
    """Runs programs in turns: the seconds of each one's work; see `timing.alternate`.

    Attributes:
      repeats: timed calls of each.
      pause: seconds of rest before each call.
      warm_up: calls of each that are not timed.
      together: pieces of work that a call does before it waits.
    """

    repeats: int
    pause: float = 0.0
    warm_up: int = 1
    together: int = 1

    def __call__(self, *make: Callable[[int], Callable[[], Any]]) -> list[list[float]]:
        """Seconds of functions, which are made from the number of pieces of work."""
        return timing.alternate(
            self.repeats,
            *(each(self.together) for each in make),
            pause=self.pause,
            warm_up=self.warm_up,
            together=self.together,
        )


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises a TimeoutError in the with block after some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def alone(program: Program, take_turns: TakeTurns) -> dict[str, Any]:
    """`side_by_side` without a reference, and so without ratios."""
    return {
        "seconds": {"JAX": median(take_turns(program.in_a_row)[0])},
        "compile_seconds": {"JAX": program.compile_seconds},
    }


@dataclass(frozen=True)
class Compiled:
    """A call of the reference through `torch.compile`.

    Attributes:
      in_a_row: makes a number of calls and one wait.
      seconds: that compiling took, and the first call.
    """

    in_a_row: Callable[[int], Callable[[], Any]]
    seconds: float


def compile_reference(
    reference: "Reference", make: "MakeCall", setting: "Setting", seconds: float = COMPILE_LIMIT
) -> Compiled | None:
    """Compiles a call of the reference; None, and a note, where that does not work.

    Args:
      reference: the PyTorch model.
      make: makes its call.
      setting: how it runs.
      seconds: after which it is given up.
    """
    try:
        with time_limit(max(round(seconds), 1)):
            start = time.perf_counter()
            call = reference.call(make, setting, compile=True)
            call(1)()
        return Compiled(call, time.perf_counter() - start)
    except Exception as error:  # a missing compiler raises almost anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        note(f"torch.compile does not work here, eager alone is timed: {reason[0]}")
        return None


def side_by_side(
    program: Program,
    reference: "Reference",
    make: "MakeCall",
    setting: "Setting",
    take_turns: TakeTurns,
    compiled: Callable[[], "Compiled | None"] | None,
) -> Iterator[dict[str, Any]]:
    """Times one program against the forms of the reference, eager and, where asked, compiled.

    JAX takes turns with one form at a time: a third program of the size of a train step would
    leave neither of the others its memory.

    Args:
      program: JAX's, compiled.
      reference: the PyTorch model.
      make: makes its call.
      setting: how the reference runs.
      take_turns: times calls.
      compiled: gives the compiled reference, if it is to be timed too and there is one.

    Yields:
      After each form, what the benchmark's report says of a row, in its `seconds`,
      `compile_seconds` and `ratios`.
    """
    compile_seconds = {"JAX": program.compile_seconds}

    def row() -> dict[str, Any]:
        result = ratio(timed) | {"layout": setting.layout}
        result["timed_seconds"] = {
            form: {"JAX": ours, "PyTorch": theirs} for form, (ours, theirs) in timed.items()
        }
        seconds = {"JAX": median(timed[result["reference"]][0])}
        seconds |= {form: median(theirs) for form, (_, theirs) in timed.items()}
        return {"seconds": seconds, "compile_seconds": compile_seconds, "ratios": result}

    eager = reference.call(make, setting)
    timed = {"eager": take_turns(program.in_a_row, eager)}
    yield row()
    if compiled is not None and (found := compiled()) is not None:
        compile_seconds["torch.compile"] = found.seconds
        timed["compiled"] = take_turns(program.in_a_row, found.in_a_row)
        yield row()
