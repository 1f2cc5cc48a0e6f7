"""What `benchmark` says while it measures."""

import time
from collections.abc import Callable


def stopwatch() -> Callable[[str], None]:
    """A function that prints what comes next, and how many seconds from now that is."""
    started = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {what}", flush=True)

    return say


def note(problem: str) -> None:
    """One line about what cannot be measured here; the rest goes on."""
    print(f"note: {problem}", flush=True)
