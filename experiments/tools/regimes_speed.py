"""Times the analyses against the published way: python -m experiments.tools.regimes_speed.

In one process, with equal threads, each pair alternating after a warm-up, medians of several runs:
the excess entropy of 1 000 MNIST digits to the same standard error, the cloning experiment on a
Gaussian mixture at d = 1024, and the largest eigenvalue of 2 000 x 4 096 pixels. The published way
is written anew in torch (`torch_ref.regimes`). Prints a table, writes DIR/speed.json, and exits
with status 1 where a factor is under its bound. About 45 seconds on two CPU cores.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from diffusion_jax.data import mnist
from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import mixture_cloning, posterior, spectrum
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from diffusion_jax.schedule import from_beta
from experiments.command import exit_if_broken, reports_errors
from experiments.tools.timing import alternate, warn_if_busy

BOUNDS = {"entropy, loop": 1000.0, "cloning": 1000.0, "Lambda": 4.0}
FORMS = ("loop", "batched", "curve")
TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3, 1.6, 2.0, 3.0, 5.0)
# Draws from each point, over which variances are taken; draws that the loop is timed on.
DRAWS_PER_POINT, LOOP_DRAWS = 4, 300
FORKS, PAIRS, DIMENSION = np.arange(1.0, 10.5, 0.5), 10_000, 1024
MEASURED_STEPS = 10


@dataclass(frozen=True)
class Options:
    """Times the analyses against the published way, in torch."""

    out: Path = Path("runs/regimes_speed")
    """Folder for speed.json."""
    repeats: int = 5
    """Timed runs of each, of which the median counts."""


def medians(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function, run in turns."""
    return [median(record) for record in alternate(repeats, *functions)]


def entropy_variances(points: np.ndarray) -> list[dict[str, float]]:
    """Both routes to f^e on the same draws, at every time.

    The published average takes a point at random for each draw; the engine takes all points
    equally often, so that only the variance among draws from one point is left in its error. The
    ratio without that is given too.
    """
    import torch

    from torch_ref import regimes

    n, d = points.shape
    draws = n * DRAWS_PER_POINT
    index = np.tile(np.arange(n), DRAWS_PER_POINT)
    noise = np.random.default_rng(0).standard_normal((draws, d), np.float32)
    exact = [torch.from_numpy(array) for array in (points.astype(np.float64), index)]
    rows = []
    for t in TIMES:
        variance = -math.expm1(-2 * t)
        published, error = regimes.excess_entropy(
            exact[0], t, exact[1], torch.from_numpy(noise).double(), regimes.log_density_batched
        )
        denoiser = EmpiricalDenoiser(from_beta(np.array([variance])), jnp.asarray(points))
        x = np.float32(math.exp(-t)) * points[index] + np.float32(math.sqrt(variance)) * noise
        parts = []
        for part in np.split(x, draws // 500):
            log_p = denoiser.posterior(jnp.asarray(part), jnp.zeros(len(part), jnp.int32))
            parts.append(-jnp.sum(jnp.exp(log_p) * jnp.maximum(log_p, -1e3), axis=1))
        entropy = np.concatenate(parts).astype(np.float64).reshape(DRAWS_PER_POINT, n) / d
        published_variance = error**2 * draws
        rows.append(
            {
                "time": t,
                "published": published,
                "published_standard_error": error,
                "ours": float(entropy.mean()),
                "difference_in_standard_errors": (published - float(entropy.mean())) / error,
                "variance_ratio": published_variance / float(entropy.var(axis=0, ddof=1).mean()),
                "variance_ratio_unstratified": published_variance / float(entropy.var()),
            }
        )
    return rows


def measure_entropy(repeats: int) -> dict[str, Any]:
    """Seconds a draw in three forms, times how many draws each needs."""
    import torch

    from torch_ref import regimes

    digits = mnist.load(("1", "8"), 500, 32)
    points = digits.images.reshape(len(digits.images), -1) / np.float32(255)
    n, d = points.shape
    draws = n * DRAWS_PER_POINT
    rows = entropy_variances(points)
    least = min(rows, key=lambda row: row["variance_ratio"])
    t, tensor = least["time"], torch.from_numpy(points)
    training = posterior.training_set(points)
    key = jax.random.key(0)

    def published(draws: int, log_density: regimes.LogDensity) -> None:
        index, noise = torch.randint(n, (draws,)), torch.randn(draws, d)
        regimes.excess_entropy(tensor, t, index, noise, log_density)

    def ours(times: tuple[float, ...]) -> None:
        posterior.draw_from(training, np.array(times), key, 0, draws)

    loop, batched, one_time, curve, whole = medians(
        repeats,
        lambda: published(LOOP_DRAWS, regimes.log_density_one_by_one),
        lambda: published(draws, regimes.log_density_batched),
        lambda: ours((t,)),
        lambda: ours(TIMES),
        lambda: posterior.draw(points, None, np.array([t]), key, n),
    )
    each = {
        "published_loop": loop / LOOP_DRAWS,
        "published_batched": batched / draws,
        "ours": one_time / draws,
        "ours_per_time_of_a_curve": curve / draws / len(TIMES),
    }
    factors = {
        "loop": each["published_loop"] / each["ours"],
        "batched": each["published_batched"] / each["ours"],
        "curve": each["published_loop"] / each["ours_per_time_of_a_curve"],
    }
    for row in rows:
        for form, ratio in factors.items():
            row[f"factor_{form}"] = ratio * row["variance_ratio"]
    equal_draws = n * least["variance_ratio"]
    return {
        "n": n,
        "d": d,
        "seconds_per_draw": each,
        "time_ratio": factors,
        "least_favourable": least,
        "whole_call": {
            "our_draws": n,
            "our_seconds": whole,
            "published_draws": equal_draws,
            "published_loop_seconds_extrapolated": each["published_loop"] * equal_draws,
            "factor": each["published_loop"] * equal_draws / whole,
        },
        "by_time": rows,
    }


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
    options = tyro.cli(Options, prog="python -m experiments.tools.regimes_speed")
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
    threads = len(os.sched_getaffinity(0))  # as many as XLA takes
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
        ("entropy", measure_entropy),
        ("cloning", measure_cloning),
        ("Lambda", measure_eigenvalue),
    ):
        print(f"Measuring {name}", flush=True)
        report[name] = measure(options.repeats)

    entropy, cloning, top = report["entropy"], report["cloning"], report["Lambda"]
    table = Table("t", "variance ratio", "i.i.d.", *(f"factor, {f}" for f in FORMS), "z")
    for row in entropy["by_time"]:
        table.add_row(
            f"{row['time']:g}",
            f"{row['variance_ratio']:.3g}",
            f"{row['variance_ratio_unstratified']:.3g}",
            *(f"{row[f'factor_{form}']:.3g}" for form in FORMS),
            f"{row['difference_in_standard_errors']:+.2f}",
        )
    console = Console()
    console.print(table)
    each, whole = entropy["seconds_per_draw"], entropy["whole_call"]
    least, ratio = entropy["least_favourable"], entropy["time_ratio"]
    print(
        "i.i.d.: were the points taken at random in the engine too. z: difference of the two "
        "routes on the same draws, in standard errors of the published "
        f"one.\nMicroseconds a draw: loop {1e6 * each['published_loop']:.3g}, batched "
        f"{1e6 * each['published_batched']:.3g}, ours {1e6 * each['ours']:.3g}, and "
        f"{1e6 * each['ours_per_time_of_a_curve']:.3g} for each time of a curve of {len(TIMES)}."
    )
    factors = {
        "entropy, loop": least["factor_loop"],
        "entropy, loop, a whole call": whole["factor"],
        "entropy, loop, as part of a curve": least["factor_curve"],
        "entropy, batched": least["factor_batched"],
        "cloning": cloning["factor"],
        "Lambda": top["factor"],
    }
    notes = {
        "entropy, loop": f"{ratio['loop']:.3g} a draw x {least['variance_ratio']:.3g} in draws, "
        f"at the least favourable t = {least['time']:g}",
        "entropy, loop, a whole call": f"{whole['published_loop_seconds_extrapolated']:.3g} s for "
        f"{whole['published_draws']:.3g} draws, extrapolated from {LOOP_DRAWS}, against "
        f"{whole['our_seconds']:.3g} s for {whole['our_draws']}",
        "entropy, loop, as part of a curve": f"{ratio['curve']:.3g} a draw and time",
        "entropy, batched": f"{ratio['batched']:.3g} a draw",
        "cloning": f"{cloning['published_seconds_extrapolated']:.4g} s against "
        f"{cloning['ours_seconds']:.3g} s; from {cloning['extrapolated_from']}",
        "Lambda": f"{top['published_seconds']:.3g} s against {top['ours_seconds']:.3g} s; "
        f"{top['published']:.6g} and {top['ours']:.6g}",
    }
    table = Table("what", "times faster", "bound", "how")
    broken = []
    for name, factor in factors.items():
        bound = BOUNDS.get(name)
        holds = bound is None or factor >= bound
        if not holds:
            broken.append(f"{name}: {factor:.3g} is under {bound:g}")
        cell = "" if bound is None else f"{bound:g}" + ("" if holds else " BROKEN")
        table.add_row(name, f"{factor:.4g}", cell, notes.get(name, ""))
    console.print(table)
    write_json(options.out / "speed.json", report)
    print(f"Wrote {options.out / 'speed.json'}")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
