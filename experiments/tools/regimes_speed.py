"""Times the analyses against the published way: python -m experiments.tools.regimes_speed.

Both run in one process with equal threads, in turns after a warm-up, and the medians of several
runs count: the excess entropy of 1 000 MNIST digits to the same standard error, the cloning
experiment on a Gaussian mixture at d = 1024, and the largest eigenvalue of 2 000 x 4 096 pixels.
The published way is written anew in torch (`torch_ref.regimes`). Prints a table, writes
DIR/speed.json, and exits with status 1 where a factor is under its bound. About 45 seconds on two
CPU cores.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from diffusion_jax.errors import UserError
from diffusion_jax.regimes import mixture_cloning, spectrum
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from experiments.command import exit_if_broken, parse, reports_errors
from experiments.tools.speed import entropy_speed, speed_tables
from experiments.tools.speed.timing import medians, warn_if_busy

BOUNDS = {"entropy, loop": 1000.0, "cloning": 1000.0, "Lambda": 4.0}
FORKS, PAIRS, DIMENSION = np.arange(1.0, 10.5, 0.5), 10_000, 1024
MEASURED_STEPS = 10


@dataclass(frozen=True)
class Options:
    """Times the analyses against the published way, in torch."""

    out: Path = Path("runs/regimes_speed")
    """Folder for speed.json."""
    repeats: int = 5
    """Timed runs of each; the median counts."""


def measure_cloning(repeats: int) -> dict[str, Any]:
    """The cloning figure at d = 1024: 10 000 pairs at 19 branch times, T = 10, 1000 steps."""
    import torch

    from torch_ref import regimes

    centre = torch.ones(DIMENSION)
    norm = np.array([math.sqrt(DIMENSION)])
    x = torch.randn(PAIRS, DIMENSION)
    step_size, middle = 0.01, 300
    part, ours = medians(
        repeats,
        lambda: regimes.mixture_backward(
            x, centre, 1.0, middle + MEASURED_STEPS, middle, step_size
        ),
        lambda: mixture_cloning.clone(jax.random.key(0), norm, 1.0, FORKS, PAIRS),
    )
    # From scratch for each fork at step k: 1000 - k steps to it, k for each of the two clones.
    steps = int(sum(1000 + round(fork / step_size) for fork in FORKS))
    published = part / MEASURED_STEPS * steps
    return {
        "dimension": DIMENSION,
        "pairs": PAIRS,
        "forks": FORKS.tolist(),
        "published_seconds_extrapolated": published,
        "extrapolated_from": f"{MEASURED_STEPS} of {steps} steps, all {PAIRS} pairs, {part:.3g} s",
        "ours_seconds": ours,
        "factor": published / ours,
    }


def measure_eigenvalue(repeats: int) -> dict[str, Any]:
    """Lambda of 2 000 windows of 64 x 64 pixels out of one photograph."""
    import skimage
    import torch

    from torch_ref import regimes

    photograph = skimage.data.astronaut()[::2, ::2, :1]
    rng = np.random.default_rng(0)
    corners = rng.integers(0, photograph.shape[0] - 64, (2000, 2))
    images = np.stack([photograph[i : i + 64, j : j + 64] for i, j in corners])
    tensor = torch.from_numpy(images)
    published, ours = medians(
        repeats,
        lambda: regimes.largest_eigenvalue(tensor),
        lambda: spectrum.largest_eigenvalue(images),
    )
    return {
        "n": 2000,
        "d": 4096,
        "published": regimes.largest_eigenvalue(tensor),
        "ours": float(spectrum.largest_eigenvalue(images)),
        "published_seconds": published,
        "ours_seconds": ours,
        "factor": published / ours,
    }


@reports_errors
def main() -> None:
    """Measures, prints, writes, and exits with status 1 where a factor is under its bound."""
    options = parse(Options, "tools.regimes_speed", __doc__)
    backend.configure()
    jax.config.update("jax_platforms", "cpu")
    try:
        import torch
    except ModuleNotFoundError as missing:
        raise UserError(
            f"the comparison needs {missing.name}; install the extra: EXTRAS=torch ./launch.sh ..."
        ) from missing
    if options.repeats < 1:
        raise UserError(f"repeats = {options.repeats} must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    threads = backend.cores()  # as many as XLA takes
    torch.set_num_threads(threads)
    torch.manual_seed(0)

    load = warn_if_busy(threads)
    report: dict[str, Any] = {
        "threads": threads,
        "load": load,
        "repeats": options.repeats,
        "bounds": BOUNDS,
    }
    for name, measure in (
        ("entropy", entropy_speed.measure),
        ("cloning", measure_cloning),
        ("Lambda", measure_eigenvalue),
    ):
        print(f"Measuring {name}", flush=True)
        report[name] = measure(options.repeats)

    console, entropy = Console(), report["entropy"]
    console.print(speed_tables.entropy_table(entropy["by_time"]))
    print(speed_tables.prices(entropy))
    table, broken = speed_tables.judged(speed_tables.factors(report), BOUNDS)
    console.print(table)
    write_json(options.out / "speed.json", report)
    print(f"Wrote {options.out / 'speed.json'}")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
