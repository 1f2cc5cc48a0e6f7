"""Timing of two programs against each other: alternating calls, medians with intervals."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from scipy import stats


@dataclass(frozen=True)
class Median:
    """A median with its interval.

    Attributes:
      median: of the sample.
      interval: two of its order statistics, between which the population's median lies.
      coverage: the probability of that, whatever the distribution.
      count: size of the sample.
    """

    median: float
    interval: tuple[float, float]
    coverage: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Median:
    """The median and the shortest symmetric pair of order statistics that covers it.

    P(x_(k) <= population median <= x_(n+1-k)) = 1 - 2 P(B <= k - 1),    B ~ Binomial(n, 1/2)

    for independent draws of any continuous distribution. Fewer than six values don't reach 95 %:
    then their whole range is given, with the coverage that it has.

    Args:
      values: the sample, at least one.
      confidence: least coverage.
    """
    ordered, n = sorted(values), len(values)
    coverage = [1 - 2 * float(stats.binom.cdf(k - 1, n, 0.5)) for k in range(1, (n + 1) // 2 + 1)]
    k = max(sum(c >= confidence for c in coverage), 1)
    return Median(median(ordered), (ordered[k - 1], ordered[n - k]), coverage[k - 1], n)


def in_a_row(
    launch: Callable[[], Any], wait: Callable[[Any], Any], count: int = 1
) -> Callable[[], Any]:
    """A function that launches so much work, waits once, and returns the last result.

    A device that is waited for after each piece of work shows what the host takes to hand over the
    next; a training, which waits for nothing, hides it.

    Args:
      launch: hands a piece of work to the device.
      wait: waits for its result.
      count: pieces of work.
    """

    def call() -> Any:
        for _ in range(count):
            result = launch()
        wait(result)
        return result

    return call


def alternate(
    repeats: int,
    *functions: Callable[[], Any],
    pause: float = 0.0,
    warm_up: int = 1,
    together: int = 1,
) -> list[list[float]]:
    """Seconds of each function's calls, run in turns after a warm-up that is not timed.

    Every other round goes through them backwards, so that none always follows the same one.

    Args:
      repeats: timed calls of each.
      functions: what is timed; a call ends when its work has.
      pause: seconds of sleep before each call. Worker threads of a pool spin for some milliseconds
        after their last task, which the next call would pay for.
      warm_up: calls of each before the first timed one.
      together: pieces of work that a call does, among which its seconds are shared.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(-warm_up, repeats):
        turns = list(zip(functions, seconds, strict=True))
        for function, record in turns if repeat % 2 == 0 else reversed(turns):
            time.sleep(pause)
            start = time.perf_counter()
            function()
            if repeat >= 0:
                record.append((time.perf_counter() - start) / together)
    return seconds


def medians(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function, run in turns; see `alternate`."""
    return [median(record) for record in alternate(repeats, *functions)]


def warn_if_busy(threads: int) -> float:
    """The machine's load, said where it is more than half of its cores."""
    load = os.getloadavg()[0]
    if load > threads / 2:
        print(f"warning: the machine is busy (load {load:.1f}), which times do not survive")
    return load
