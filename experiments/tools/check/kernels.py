"""Where the time of a train step goes, kernel by kernel."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

from experiments.tools.check.race import make_update, start_sides
from experiments.tools.check.task import Task
from experiments.tools.speed.sides import on_gpu

SHOWN = 20


def measure(task: Task) -> None:
    """The item `profile`: some updates in bfloat16 under JAX's profiler."""
    count = task.sizes.together
    sides = start_sides(task, task.sizes.batch[0])
    updates = make_update(task, sides, 0, bfloat16=True).in_a_row(count)
    updates()
    begin = time.perf_counter()
    with jax.profiler.trace(str(task.scratch / "trace")):
        updates()
    seconds = time.perf_counter() - begin
    (path,) = (task.scratch / "trace").rglob("*.xplane.pb")
    found = by_kernel(path)
    busy = sum(ms for ms, _ in found.values())
    task.add(
        {
            "updates": count,
            "kernels per update": sum(n for _, n in found.values()) / count,
            "kernels, ms per update": busy / count,
            "by the clock, ms per update, with the profiler": 1e3 * seconds / count,
            "every kernel": [[name, ms, n] for name, (ms, n) in found.items()],
        }
    )
    for place, (name, (ms, n)) in enumerate(list(found.items())[:SHOWN], 1):
        what = f"{ms / count:.3g} ms and {n / count:g} calls per update, {100 * ms / busy:.1f} %"
        task.add({f"{place}. {name[:60]}": what})


def by_kernel(path: Path) -> dict[str, tuple[float, int]]:
    """Milliseconds and number of the kernels of a trace, by name, the longest in all first.

    Args:
      path: an .xplane.pb of the profiler. What ran on a GPU's streams counts; on a CPU, what
        XLA's threads ran, where one event may hold another.

    Raises:
      RuntimeError: it holds none.
    """
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in _events(path):
        entry = found[event.name]
        entry[0] += event.duration_ns / 1e6
        entry[1] += 1
    if not found:
        raise RuntimeError(f"the trace {path.name} holds no kernels")
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    return {name: (ms, int(n)) for name, (ms, n) in ordered}


def _events(path: Path) -> Any:
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    gpu = on_gpu()
    for plane in planes:
        if not plane.name.startswith("/device:GPU" if gpu else "/host:CPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream" if gpu else "tf_XLA"):
                for event in line.events:
                    if gpu or not event.name.startswith(("ThreadpoolListener", "end: ")):
                        yield event
