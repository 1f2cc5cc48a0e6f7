"""Error against denoiser calls, all samplers: python -m experiments.paper.sampler_comparison.

On Gaussian mixtures with their exact score. The error is the Wasserstein-1 distance between the
laws of |m.x|/|m|, sampled and exact, without Monte-Carlo noise: by quadrature for the ancestral
sampler, by quantiles for those without noise. Calls are steps of the linear schedule of 1000,
spread evenly over a clock (see diffusion_jax.sampling.respacing).

Prints the table, and the calls that each needs for the error of the ancestral sampler on the linear
schedule of 250 steps. "matched" starts with the variance of x_t along m and across, not with 1.
Writes DIR/result.json and errors.png.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from diffusion_jax.errors import UserError
from diffusion_jax.plots.schedules import ErrorCurves, draw_error_curves
from diffusion_jax.plots.style import save
from diffusion_jax.regimes.flow_error import flow_error
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.sampler_error import sampler_error, steps_needed
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from diffusion_jax.sampling.ode import DDIMSampler, DPMSolver2M
from diffusion_jax.sampling.respacing import Clock, clock, respaced, spread_steps
from diffusion_jax.schedule import NoiseSchedule, linear_schedule
from experiments.command import parse, reports_errors

CLOCKS: tuple[Clock, ...] = get_args(Clock)
CALLS = (5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 85, 100, 150, 250, 500, 1000)
SHOWN = (10, 25, 50, 100, 1000)
BASELINE = 250
SAMPLERS = ("ancestral", "DDIM", "2M", "2M matched")
STYLES: dict[str, dict[str, object]] = {
    "ancestral, step": {"color": "0.5"},
    "DDIM, step": {"color": "C0", "linestyle": "--"},
    "DDIM, sigma": {"color": "C0"},
    "2M, step": {"color": "C3", "linestyle": "--"},
    "2M, log-snr": {"color": "C3", "linestyle": ":"},
    "2M, sigma": {"color": "C3"},
    "2M matched, sigma": {"color": "C2"},
}


@dataclass(frozen=True)
class Options:
    """Error against denoiser calls, for every sampler and clock."""

    out: Path = Path("runs/sampler_comparison")
    """Folder for result.json and the figure."""
    dimensions: tuple[int, ...] = (16, 256)
    """Dimensions d of the mixtures, |m|^2 = d."""
    sigmas: tuple[float, ...] = (1.0, 0.1)
    """Standard deviations of each Gaussian."""


def error(sampler: str, schedule: NoiseSchedule, mixture: GaussianMixture) -> float:
    """Wasserstein distance of the projection; `sampler` is one of SAMPLERS."""
    if sampler == "ancestral":
        return sampler_error(schedule, mixture).projection
    if sampler == "DDIM":
        return flow_error(DDIMSampler(schedule), mixture).projection
    matched = sampler == "2M matched"
    return flow_error(DPMSolver2M(schedule), mixture, matched).projection


def measure(mixture: GaussianMixture) -> dict[str, np.ndarray]:
    """Errors at each of CALLS, by sampler and clock."""
    published = linear_schedule()
    errors = {}
    for name in CLOCKS:
        readings = clock(published, name)
        schedules = [respaced(published, spread_steps(readings, calls)) for calls in CALLS]
        for sampler in SAMPLERS:
            values = [error(sampler, schedule, mixture) for schedule in schedules]
            errors[f"{sampler}, {name}"] = np.array(values)
    return errors


def show(console: Console, mixture: GaussianMixture, result: dict[str, Any]) -> None:
    """Prints the errors, and the calls needed for the baseline's."""
    table = Table(
        Column("sampler, clock", no_wrap=True),
        *(str(calls) for calls in SHOWN),
        "needs",
        title=f"d = {mixture.dimension}, sigma = {mixture.sigma:g}: error at 10, ..., 1000 calls, "
        f"and calls needed for {result['baseline']:.3g}",
    )
    for name, values in result["errors"].items():
        needed = result["calls_needed"][name]
        cells = [f"{values[CALLS.index(calls)]:.2g}" for calls in SHOWN]
        table.add_row(name, *cells, "never" if needed is None else f"{needed:.0f}")
    console.print(table)


@reports_errors
def main() -> None:
    """Measures, prints, writes."""
    options = parse(Options, "paper.sampler_comparison", __doc__)
    backend.configure()
    if not options.dimensions or not options.sigmas:
        raise UserError("give at least one dimension and one sigma")
    options.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    console = Console()
    results, panels = [], []
    for sigma in options.sigmas:
        row = []
        for dimension in options.dimensions:
            mixture = GaussianMixture(dimension, 1.0, sigma)
            errors = measure(mixture)
            baseline = sampler_error(linear_schedule(BASELINE), mixture).projection
            needed = {
                name: steps_needed(np.array(CALLS), values, baseline)
                for name, values in errors.items()
            }
            result = {
                **asdict(mixture),
                "calls": CALLS,
                "errors": {name: values.tolist() for name, values in errors.items()},
                "baseline": baseline,
                "calls_needed": {k: None if math.isnan(v) else v for k, v in needed.items()},
            }
            show(console, mixture, result)
            results.append(result)
            title = f"d = {dimension}, $\\sigma$ = {sigma:g}"
            label = r"Wasserstein distance, $|m\cdot x|/|m|$"
            drawn = {name: errors[name] for name in STYLES}
            row.append(ErrorCurves(title, label, np.array(CALLS), drawn))
        panels.append(row)
    save(draw_error_curves(panels, STYLES), options.out / "errors.png")
    write_json(options.out / "result.json", results)
    print(f"Wrote result.json and errors.png to {options.out}")


if __name__ == "__main__":
    main()
