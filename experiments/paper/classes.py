"""Speciation of any classes, by the Bayes criterion: python -m experiments.paper.classes --out DIR.

Two mixtures of Gaussians that share their mean and differ in their covariances: exact speciation
times against the 1/4 log d formula and against samples of the exact u. Then the ten MNIST digits:
t_rs of all pairs, from their exact empirical score, and the tree by which the backward process
chooses among them. Writes scaling.png, pairs.png, tree.png and result.json.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from diffusion_jax.data import mnist
from diffusion_jax.errors import UserError
from diffusion_jax.plots import classes as plots
from diffusion_jax.plots.style import save
from diffusion_jax.regimes import curves, posterior, speciation
from diffusion_jax.regimes.gaussian_classes import (
    Gaussian,
    asymptotic_time,
    gaussian_log_ratio,
    gaussian_moments,
    gaussian_speciation_time,
    same_class_crossing,
)
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from experiments.command import parse, reports_errors

DIMENSIONS = tuple(4**k for k in range(3, 11))
SAMPLED_DIMENSIONS = DIMENSIONS[:4]
CURVE_DIMENSION = 1024
LOW, HIGH = 0.5, 1.5
DIGITS = tuple("0123456789")
TIMES = np.linspace(0.1, 3.0, 59)


@dataclass(frozen=True)
class Options:
    """Finds when the backward process chooses between classes that need not differ in mean."""

    out: Path = Path("runs/classes")
    """Folder for result.json and the figures."""
    samples: int = 4000
    """Samples of u for each dimension of the Gaussian classes."""
    draws: int = 5000
    """Draws of x_t for the digits, spread evenly over the 5 000 images."""
    seed: int = 0
    """Seed of everything random."""


def swapped_halves(d: int) -> tuple[Gaussian, Gaussian]:
    """Two classes of mean zero, of variance 0.5 on one half of the axes and 1.5 on the other."""
    variance = np.where(np.arange(d) < d // 2, LOW, HIGH)
    return Gaussian(np.zeros(d), variance), Gaussian(np.zeros(d), variance[::-1])


def gaussian_scaling(options: Options) -> dict[str, Any]:
    """Exact times, the formula, and the sampled crossing of phi, by dimension."""
    exact = [[gaussian_speciation_time(*p) for p in (q, q[::-1])] for q in pairs(DIMENSIONS)]
    rng = np.random.default_rng(options.seed)
    noises = (rng.standard_normal((options.samples, d)) for d in SAMPLED_DIMENSIONS)
    return {
        "d": list(DIMENSIONS),
        "exact": [times[0] for times in exact],
        "exact_second_class": [times[1] for times in exact],
        "formula": [asymptotic_time(*pair) for pair in pairs(DIMENSIONS)],
        "sampled_d": list(SAMPLED_DIMENSIONS),
        "sampled": [
            same_class_crossing(*pair, noise)
            for pair, noise in zip(pairs(SAMPLED_DIMENSIONS), noises, strict=True)
        ],
    }


def pairs(dimensions: tuple[int, ...]) -> list[tuple[Gaussian, Gaussian]]:
    """The two classes in each dimension."""
    return [swapped_halves(d) for d in dimensions]


def gaussian_curves(options: Options) -> dict[str, Any]:
    """D^2 and V along time, exact and sampled."""
    first, second = swapped_halves(CURVE_DIMENSION)
    t_rs = gaussian_speciation_time(first, second)
    times, sampled_times = np.linspace(0.2, 2.5, 93), np.linspace(0.4, 2.4, 9)
    exact = np.array([gaussian_moments(first, second, t) for t in times])
    rng = np.random.default_rng([options.seed, 1])
    u = np.array(
        [
            gaussian_log_ratio(
                first, second, t, rng.standard_normal((options.samples, len(second.mean)))
            )
            for t in sampled_times
        ]
    )
    mean, squared = u.mean(1), (u - u.mean(1, keepdims=True)) ** 2
    root = math.sqrt(options.samples)
    return {
        "d": CURVE_DIMENSION,
        "t_rs": t_rs,
        "t": times.tolist(),
        "D2": (exact[:, 0] ** 2).tolist(),
        "V": exact[:, 1].tolist(),
        "sampled_t": sampled_times.tolist(),
        "sampled_D2": (mean**2).tolist(),
        "sampled_D2_stderr": (2 * np.abs(mean) * u.std(1) / root).tolist(),
        "sampled_V": squared.mean(1).tolist(),
        "sampled_V_stderr": (squared.std(1) / root).tolist(),
    }


def print_scaling(scaling: dict[str, Any]) -> None:
    """Prints the times by dimension."""
    table = Table(
        *("d", "D^2 = V", "formula", "phi = 0.7752, sampled (95 %)"),
        title="t_rs of two Gaussian classes of one mean",
    )
    sampled = dict(zip(scaling["sampled_d"], scaling["sampled"], strict=True))
    for d, exact, formula in zip(scaling["d"], scaling["exact"], scaling["formula"], strict=True):
        table.add_row(
            str(d), f"{exact:.4f}", f"{formula:.4f}", text(sampled[d]) if d in sampled else "-"
        )
    Console().print(table)


def text(estimate: curves.Estimate) -> str:
    """A time with its interval."""
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def digits(options: Options) -> dict[str, Any]:
    """t_rs of the ten digits: pairs, tree, and the sets that each split parts."""
    images = mnist.load(DIGITS, 500, 28)
    labels = np.asarray(images.labels)
    key = jax.random.key(options.seed)
    draws = posterior.draw(images.images, labels, TIMES, key, options.draws)
    counts = np.bincount(labels)
    times, intervals = speciation.pairwise(draws, counts)
    tree = speciation.class_tree(times)
    sets = speciation.splits(tree)[::-1]  # in the order of the tree's rows
    (collision,) = curves.average(TIMES, [draws.collision], options.seed)
    return {
        "draws": options.draws,
        "pairs": times,
        "intervals": intervals,
        "tree": tree,
        "sets": sets,
        "t_rs": [speciation.separation(draws, counts, *sides).time for sides in sets],
        "t_C_phi": collision.crossing(0.5),
    }


def print_digits(found: dict[str, Any]) -> None:
    """Prints the matrix of pairs and the splits in the order of the backward process."""
    collapse = found["t_C_phi"].value
    table = Table("", *DIGITS, title="t_rs of the row's digit against the column's", box=box.SIMPLE)
    for digit, row in zip(DIGITS, found["pairs"], strict=True):
        cells = ["-" if np.isnan(t) else f"{t:.2f}" + ("*" if t < collapse else "") for t in row]
        table.add_row(digit, *cells)
    Console().print(table)
    table = Table(
        *(
            "digits",
            "rest",
            "pairs",
            "t_rs of digits",
            "t_rs of the rest",
        ),
        title="The choices of the backward process, first to last, with 95 % intervals",
        box=box.SIMPLE,
    )
    rows = zip(found["sets"], found["tree"][:, 2], found["t_rs"], strict=True)
    for (left, right), height, estimates in list(rows)[::-1]:
        cells = [text(e) + ("*" if e.value < collapse else "") for e in estimates]
        table.add_row(
            *("".join(DIGITS[c] for c in s) for s in (left, right)), f"{height:.2f}", *cells
        )
    Console().print(table)
    print(
        f"* below the collapse (phi_C = 1/2 at t = {collapse:.2f}): there u compares the nearest "
        f"images of the\nclasses and no longer their laws"
    )


@reports_errors
def main() -> None:
    """Measures, prints and writes."""
    options = parse(Options, "paper.classes", __doc__)
    if options.samples < 2 or not 0 <= options.seed < 2**32:
        raise UserError("samples must be at least 2, seed between 0 and 2^32 - 1")
    if options.draws < 20 * len(DIGITS):
        raise UserError(f"draws must be at least {20 * len(DIGITS)}: the digits share them")
    backend.configure()
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    scaling, along_time = gaussian_scaling(options), gaussian_curves(options)
    print_scaling(scaling)
    found = digits(options)
    print_digits(found)
    save(plots.draw_scaling(scaling, along_time), options.out / "scaling.png")
    collapse = found["t_C_phi"].value
    save(plots.draw_pairs(found["pairs"], DIGITS, collapse), options.out / "pairs.png")
    tree = plots.draw_tree(found["tree"], DIGITS, found["sets"], found["t_rs"], collapse)
    save(tree, options.out / "tree.png")
    seconds = time.perf_counter() - start
    report = {
        "options": {"samples": options.samples, "draws": options.draws, "seed": options.seed},
        "gaussian_scaling": scaling,
        "gaussian_curves": along_time,
        "digits": found,
        "seconds": seconds,
    }
    write_json(options.out / "result.json", report)
    names = "result.json, scaling.png, pairs.png and tree.png"
    print(f"Wrote {names} to {options.out} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
