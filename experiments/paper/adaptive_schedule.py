"""How many steps a schedule from the data saves: python -m experiments.paper.adaptive_schedule.

On Gaussian mixtures with their exact score, the ancestral sampler runs with the linear, the cosine
and the adaptive schedule. Its errors are computed by quadrature, without Monte-Carlo noise: the
Wasserstein distance of the folded projection |m.x|/|m|, that of an orthogonal component, and the
bias of phi at the worst fork. "strided" takes L of the 1000 steps of the linear schedule; "low
start" begins, as that does, at the first of 1000 noise levels instead of L.

Prints how many steps each schedule needs for the linear one's error and writes DIR/result.json,
projection.png, phi_bias.png and steps.png. About 40 seconds on two CPU cores.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from diffusion_jax.errors import UserError
from diffusion_jax.plots import schedules as figures
from diffusion_jax.plots.style import save
from diffusion_jax.regimes import adaptive
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.sampler_error import sampler_error, steps_needed
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from diffusion_jax.schedule import NoiseSchedule, cosine_schedule, from_time, linear_schedule
from experiments.command import parse, reports_errors

ERRORS = {
    "projection": r"Wasserstein distance, $|m\cdot x|/|m|$",
    "orthogonal": "Wasserstein distance, orthogonal",
    "phi_bias": r"largest bias of $\phi$",
}
STYLES: dict[str, dict[str, object]] = {
    "linear": {"color": "C0"},
    "linear, strided": {"color": "C0", "linestyle": "--"},
    "cosine": {"color": "C1"},
    "adaptive": {"color": "C3"},
    "adaptive, low start": {"color": "C3", "linestyle": "--"},
}
TIMES = np.geomspace(1e-4, 10, 1000)
TABLE_STEPS = (25, 50, 100, 200)
# From these each schedule's power law between neighbours is taken.
NUM_STEPS = (
    8,
    10,
    12,
    15,
    18,
    21,
    25,
    30,
    36,
    42,
    50,
    60,
    71,
    84,
    100,
    141,
    200,
    283,
    400,
    550,
    750,
    1000,
)


@dataclass(frozen=True)
class Options:
    """How many steps a schedule from the data saves."""

    out: Path = Path("runs/adaptive_schedule")
    """Folder for result.json and the figures."""
    dimensions: tuple[int, ...] = (256, 1024)
    """Dimensions d of the mixtures, |m|^2 = d."""
    sigmas: tuple[float, ...] = (1.0, 0.1)
    """Standard deviations of each Gaussian."""


def schedules(mixture: GaussianMixture, num_steps: int) -> dict[str, NoiseSchedule]:
    """The schedules to compare; the linear one exists from 21 steps on."""
    density = adaptive.mixture_density(TIMES, mixture)
    published = np.asarray(linear_schedule().time, np.float64)
    strided = np.interp(np.linspace(0, 999, num_steps), np.arange(1000), published)
    made = {
        "linear, strided": from_time(strided),
        "cosine": cosine_schedule(num_steps),
        "adaptive": adaptive.adaptive_schedule(TIMES, density, num_steps),
        "adaptive, low start": adaptive.adaptive_schedule(
            TIMES, density, num_steps, first=float(published[0])
        ),
    }
    return {"linear": linear_schedule(num_steps), **made} if num_steps > 20 else made


def measure(mixture: GaussianMixture) -> dict[str, dict[str, np.ndarray]]:
    """Each error of each schedule at every number of steps, NaN where there is no schedule."""
    table = {kind: {name: np.full(len(NUM_STEPS), np.nan) for name in STYLES} for kind in ERRORS}
    for i, num_steps in enumerate(NUM_STEPS):
        for name, schedule in schedules(mixture, num_steps).items():
            error = sampler_error(schedule, mixture)
            for kind in ERRORS:
                table[kind][name][i] = getattr(error, kind)
    return table


def savings(errors: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Steps that each schedule needs for the linear one's error."""
    rows = []
    for num_steps in TABLE_STEPS:
        target = errors["linear"][NUM_STEPS.index(num_steps)]
        needed = {
            name: steps_needed(np.array(NUM_STEPS)[known], values[known], target)
            for name, values in errors.items()
            if np.any(known := ~np.isnan(values))
        }
        rows.append({"linear_steps": num_steps, "error": float(target), "steps_needed": needed})
    return rows


def shown(steps: float) -> str:
    """A number of steps for the table; what lies outside those tried is a bound."""
    if math.isnan(steps):
        return f"> {NUM_STEPS[-1]}"
    return f"<= {NUM_STEPS[0]}" if steps <= NUM_STEPS[0] else f"{steps:.0f}"


def draw_steps(mixture: GaussianMixture) -> Figure:
    """The density of steps and its two parts, normalized as in the schedule, and 50 steps."""
    by_class = np.sqrt(adaptive.class_error(TIMES, mixture.phi(TIMES)))
    density = adaptive.mixture_density(TIMES, mixture)
    total = np.trapezoid(density, TIMES)
    scale = 50 * TIMES / total
    return figures.draw_step_densities(
        TIMES,
        {
            "within the classes (spectrum, f)": scale * (density - by_class),
            r"between the classes ($\phi$)": scale * by_class,
        },
        {
            "adaptive": np.asarray(schedules(mixture, 50)["adaptive"].time),
            "linear": np.asarray(linear_schedule(50).time),
            "cosine": np.asarray(cosine_schedule(50).time),
        },
        {"$t_S$": mixture.speciation_time},
    )


@reports_errors
def main() -> None:
    """Measures, prints, writes."""
    options = parse(Options, "paper.adaptive_schedule", __doc__)
    backend.configure()
    if not options.dimensions or not options.sigmas:
        raise UserError("give at least one dimension and one sigma")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    columns = len(options.dimensions)
    results = []
    panels: dict[str, list[figures.ErrorCurves]] = {kind: [] for kind in ERRORS}
    for sigma in options.sigmas:
        for dimension in options.dimensions:
            mixture = GaussianMixture(dimension, 1.0, sigma)
            errors = measure(mixture)
            table = Table(
                "error",
                "linear",
                "value",
                *(name for name in STYLES if name != "linear"),
                title=f"d = {dimension}, sigma = {sigma:g}: steps for the linear schedule's error",
            )
            saved = {kind: savings(errors[kind]) for kind in ERRORS}
            for kind, rows in saved.items():
                for row in rows:
                    cells = [row["steps_needed"][name] for name in STYLES if name != "linear"]
                    table.add_row(
                        kind,
                        str(row["linear_steps"]),
                        f"{row['error']:.3g}",
                        *(shown(cell) for cell in cells),
                    )
            console.print(table)
            for kind, label in ERRORS.items():
                title = f"d = {dimension}, $\\sigma$ = {sigma:g}"
                panels[kind].append(
                    figures.ErrorCurves(title, label, np.array(NUM_STEPS), errors[kind])
                )
            results.append(
                {
                    **asdict(mixture),
                    "speciation_time": mixture.speciation_time,
                    "num_steps": NUM_STEPS,
                    "errors": {
                        kind: {
                            name: [None if math.isnan(v) else v for v in values.tolist()]
                            for name, values in by_name.items()
                        }
                        for kind, by_name in errors.items()
                    },
                    "savings": saved,
                }
            )
    for kind in ("projection", "phi_bias"):
        grid = [panels[kind][i : i + columns] for i in range(0, len(panels[kind]), columns)]
        save(figures.draw_error_curves(grid, STYLES), options.out / f"{kind}.png")
    save(draw_steps(mixture), options.out / "steps.png")
    write_json(options.out / "result.json", results)
    print(f"Wrote result.json, projection.png, phi_bias.png and steps.png to {options.out}")


if __name__ == "__main__":
    main()
