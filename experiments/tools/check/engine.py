"""The posterior engine's draws on the device and, the same draws, on the CPU."""

import json
import time
from typing import Any

import jax
import numpy as np

from diffusion_jax.regimes import posterior
from experiments.tools.check import device
from experiments.tools.check import task as tasks
from experiments.tools.check.sizes import FULL, TINY
from experiments.tools.check.task import Task

TIMES = np.geomspace(0.02, 5, 16)
DIMENSION = 1024
# phi_C is a mean of numbers from 0 to 1 that float32 gives to some 1e-5 (products at "highest").
MOST = 1e-3


def measure(task: Task) -> None:
    """The item `engine`: phi_C at 16 times, from points in groups."""
    device.start()
    here = _curves(task.tiny, repeats=3)
    for n, found in here.items():
        task.add({f"{n} points": {"draws/s": task.sizes.draws / found["seconds"]}})
    program = f"from {__name__} import on_cpu; on_cpu({task.tiny})"
    log = tasks.run(task, "cpu", ["-c", program], JAX_PLATFORMS="cpu")
    for n, found in tasks.last_json(log).items():
        ours = here[n]
        task.add(
            {
                f"{n} points": {
                    "draws/s on the CPU": task.sizes.draws / found["seconds"],
                    "times faster": found["seconds"] / ours["seconds"],
                }
            }
        )
        error = float(np.abs(np.subtract(found["phi_C"], ours["phi_C"])).max())
        task.judge(f"{n} points: phi_C, difference to the CPU's", error, MOST)


def on_cpu(tiny: bool) -> None:
    """Prints what the CPU took and found; `measure` runs it in a process of its own."""
    device.start()
    print(json.dumps(_curves(tiny, repeats=1)))


def _curves(tiny: bool, repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds and phi_C by the number of points, after a call that compiles."""
    sizes, found = TINY if tiny else FULL, {}
    for n in sizes.points:
        training = posterior.training_set(_points(n))
        seconds = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            draws = posterior.draw_from(training, TIMES, jax.random.key(0), 0, sizes.draws)
            seconds.append(time.perf_counter() - begin)
        phi = draws.collision.mean(0).tolist()
        found[str(n)] = {"seconds": float(np.median(seconds[1:])), "phi_C": phi}
    return found


def _points(n: int) -> np.ndarray:
    """Points around ten centres, as far apart as images are."""
    rng = np.random.default_rng(0)
    centres = rng.random((10, DIMENSION), np.float32)
    noise = rng.standard_normal((n, DIMENSION), np.float32)
    return centres[np.arange(n) % 10] + np.float32(0.1) * noise
