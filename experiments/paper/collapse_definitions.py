"""Which definition of t_C is best: python -m experiments.paper.collapse_definitions.

On samples of Gaussian mixtures (centres +-1 in every coordinate, variance 1), whose collapse time
is known in closed form, measures every candidate through the posterior engine and prints its bias.
Those that sit at the t_C of n/4 points are compared with that too.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.posterior import draw
from diffusion_jax.regimes.transitions import collapse_times, summarize
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from experiments.command import parse, reports_errors


@dataclass(frozen=True)
class Options:
    """Measures the bias of every definition of t_C on Gaussian mixtures."""

    out: Path = Path("runs/collapse_definitions")
    """Folder for result.json."""
    dimensions: tuple[int, ...] = (64, 256, 1024)
    """Dimensions d."""
    points: tuple[int, ...] = (1000, 5000, 20_000)
    """Numbers n of training points."""
    draws: int = 2000
    """Draws of the posterior engine for each."""
    seed: int = 0
    """Seed of the points and the draws."""


@reports_errors
def main() -> None:
    """Measures, prints and writes."""
    options = parse(Options, "paper.collapse_definitions", __doc__)
    if options.draws < 2 or not options.dimensions or min(options.points, default=0) < 8:
        raise UserError("at least 2 draws, one dimension and 8 points are needed")
    backend.configure()
    cases: dict[tuple[int, int], dict[str, float]] = {}
    wanted = [(d, n) for d in options.dimensions for n in options.points]
    for d, n in track(wanted, "Measuring", transient=True):
        exact, quarter = (float(GaussianMixture(d).collapse_time(count)) for count in (n, n / 4))
        rng = np.random.default_rng([options.seed, d, n])
        labels = np.arange(n) % 2
        points = rng.standard_normal((n, d), np.float32) + (2 * labels - 1)[:, None]
        times = exact * np.geomspace(0.5, 1.6, 40)
        key = jax.random.key(options.seed)
        draws = draw(points.astype(np.float32), labels, times, key, options.draws)
        found = collapse_times(summarize(draws, n, np.array([0.5, 0.5])))
        bias = {name: value / exact - 1 for name, value in found.items()}
        bias |= {
            f"{name}, against t_C(n/4)": found[name] / quarter - 1
            for name in ("phi_C = 0.5", "f_loo = 0")
        }
        cases[d, n] = {name: float(value) for name, value in bias.items()}
    table = Table("definition", "smallest bias", "largest bias", box=box.SIMPLE)
    for name in next(iter(cases.values())):
        values = [bias[name] for bias in cases.values() if math.isfinite(bias[name])]
        if len(values) < len(cases):
            name += f" (not reached in {len(cases) - len(values)} of {len(cases)} cases)"
        if not values:
            table.add_row(name, "", "")
            continue
        table.add_row(name, *(f"{100 * v:+.1f} %" for v in (min(values), max(values))))
    Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    result = [{"d": d, "n": n, "bias": bias} for (d, n), bias in cases.items()]
    write_json(options.out / "result.json", result)
    print(f"Wrote {options.out / 'result.json'}")


if __name__ == "__main__":
    sys.exit(main())
