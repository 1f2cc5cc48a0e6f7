"""The seconds of one program: JAX's and the forms of the reference take turns, call by call."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

from experiments.tools.speed.notes import note
from experiments.tools.speed.programs import Program
from experiments.tools.speed.ratios import ratio

if TYPE_CHECKING:  # it needs torch, which may be missing
    from experiments.tools.speed.reference import MakeCall, Reference

# Runs functions in turns: the seconds of each one's calls.
TakeTurns = Callable[..., list[list[float]]]
COMPILE_LIMIT = 240


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises a TimeoutError in the with block after so many seconds."""

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
        "seconds": {"JAX": median(take_turns(program.call)[0])},
        "compile_seconds": {"JAX": program.compile_seconds},
    }


def side_by_side(
    program: Program,
    reference: "Reference",
    make: "MakeCall",
    take_turns: TakeTurns,
    layout: tuple[str, dict[str, float]],
    bfloat16: bool,
    compile: bool,
) -> dict[str, Any]:
    """Times one program against the forms of the reference.

    JAX takes turns with one form at a time: a third program of the size of a train step would
    leave neither of the others its memory.

    Args:
      program: JAX's, compiled.
      reference: the PyTorch model.
      make: makes its call.
      take_turns: times calls, see `timing.alternate`.
      layout: from `Reference.faster_layout`.
      bfloat16: compute type.
      compile: whether the reference is also compiled.

    Returns:
      What the benchmark's report says of a row, in its `seconds`, `compile_seconds` and `ratios`.
    """
    compile_seconds = {"JAX": program.compile_seconds}
    timed = {"eager": take_turns(program.call, reference.call(make, layout[0], bfloat16))}
    if compile:
        try:
            with time_limit(COMPILE_LIMIT):
                start = time.perf_counter()
                call = reference.call(make, layout[0], bfloat16, compile=True)
                call()
            compile_seconds["torch.compile"] = time.perf_counter() - start
            timed["compiled"] = take_turns(program.call, call)
        except Exception as error:  # a missing compiler raises almost anything
            reason = str(error).strip().splitlines() or [type(error).__name__]
            note(f"torch.compile does not work here, eager alone is timed: {reason[0]}")
    result = ratio(timed)
    result |= {"layout": layout[0], "layout_trial_seconds": layout[1]}
    result["timed_seconds"] = {
        form: {"JAX": ours, "PyTorch": theirs} for form, (ours, theirs) in timed.items()
    }
    seconds = {"JAX": median(timed[result["reference"]][0])}
    seconds |= {form: median(theirs) for form, (_, theirs) in timed.items()}
    return {"seconds": seconds, "compile_seconds": compile_seconds, "ratios": result}
