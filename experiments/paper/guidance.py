"""Classifier-free guidance, theory and samples: python -m experiments.paper.guidance --out DIR.

The weight w is that of Ho & Salimans (2022), eps = (1 + w) eps_c - w eps_u: what is elsewhere
called guidance_scale is 1 + w. First two Gaussians in d = 16, 64 and 256 dimensions. For the
backward process and for the probability flow, the law along the means in theory is compared with
samples: the overshoot of the class's mean, its variance, t_S, and phi and H(c | x_t) along the
guided paths. Then come weights that change along time, and the ones and eights of MNIST, by the
exact scores of the classes and by their Gaussians.

Writes mixture.png, windows.png, digits.png and result.json. Ends with status 1 where samples leave
theory by more than 4 standard errors.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from diffusion_jax.denoisers import (
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    GuidedDenoiser,
    guidance_window,
)
from diffusion_jax.denoisers.guided import Weight
from diffusion_jax.errors import UserError
from diffusion_jax.plots import guidance as plots
from diffusion_jax.plots.style import save
from diffusion_jax.regimes.cloning import trunks
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.guidance import GuidedLaw, GuidedMixture
from diffusion_jax.runtime.devices import fetch, fold_in_each, replicate, shard, whole
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.sampling import AncestralSampler, DPMSolver2M, Sampler, pure_noise
from diffusion_jax.schedule import linear_schedule
from experiments.command import exit_if_broken, parse, reports_errors, start
from experiments.paper.guided_digits import DIGIT_WEIGHTS, measure_digits, report_digits

DIMENSIONS = (16, 64, 256)
WEIGHTS = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
FINE_WEIGHTS = (
    -1.0,
    -0.75,
    -0.5,
    -0.25,
    0.0,
    0.25,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    5.0,
    6.5,
    8.0,
)
CURVES = 256  # dimensions of the curves along time, and of the windows
NUM_STEPS = 250
STOPS = (220, 200, 180, 160, 140, 120, 100, 80, 60, 40, 0)
QUANTITIES = ("overshoot", "spread", "phi", "class_entropy")


@dataclass(frozen=True)
class Options:
    """Measures what classifier-free guidance does; guidance_scale elsewhere is 1 + w here."""

    out: Path = Path("runs/guidance")
    """Folder for result.json and the figures."""
    samples: int = 2000
    """Samples for each w and d, ten times as many in one dimension."""
    digits: int = 256
    """Samples of digits for each w, class and kind of score."""
    seed: int = 0
    """Seed of everything random."""


def windows(t_S: float) -> dict[str, Weight]:
    """The weights that change along time, about a speciation time."""
    return {
        "w = 4": 4.0,
        "w = 4 before the classes part, t > t_S": guidance_window(4.0, t_S, np.inf),
        "w = 4 after it, t < t_S": guidance_window(4.0, 0.0, t_S),
        "w = 4 well after it, t < t_S - 1": guidance_window(4.0, 0.0, t_S - 1),
        "w = 4 before, -0.25 after": guidance_window(4.0, t_S, np.inf, outside=-0.25),
    }


def sampled(
    mixture: GaussianMixture,
    weight: Weight,
    sampler: Sampler,
    key: jax.Array,
    num: int,
    stops: tuple[int, ...],
) -> dict[str, np.ndarray]:
    """Guided samples at stops, in the units of `GuidedLaw`, with standard errors.

    Returns:
      Each of QUANTITIES as (stops, 2), mean and standard error; and `t`, the stops' times.
    """
    d, schedule = mixture.dimension, sampler.schedule
    centre, sigma = jnp.full(d, mixture.mu), jnp.asarray(mixture.sigma)
    class_score = GaussianDenoiser(schedule, centre, jnp.zeros((0, d)), jnp.zeros(0), sigma**2)
    denoiser = GuidedDenoiser(class_score, GaussianMixtureDenoiser(schedule, centre, sigma), weight)
    sampler, denoiser = replicate((sampler, denoiser))
    keys = shard(fold_in_each(key, np.arange(whole(num))))
    times = np.append(np.asarray(schedule.time, np.float64), 0.0)[np.array(stops) - 1]
    rows = []
    for t, (_, x) in zip(
        times, trunks(sampler, denoiser, _noise(keys, (d,)), keys, stops), strict=True
    ):
        q = fetch(x)[:num].astype(np.float64).sum(axis=1) / np.sqrt(d)
        signal = np.exp(-t) * mixture.centre_norm
        u = (q - signal) / np.sqrt(mixture.gamma(t))
        v = signal * q / mixture.gamma(t)
        odds = 2 * np.abs(v)
        entropy = np.log1p(np.exp(-odds)) + odds * expit(-odds)
        rows.append([u, (u - u.mean()) ** 2, 0.5 * (1 + np.tanh(v) ** 2), entropy])
    values = np.array(rows)
    error = values.std(axis=2, ddof=1) / np.sqrt(num)
    found = np.stack([values.mean(axis=2), error], axis=2)
    return {name: found[:, i] for i, name in enumerate(QUANTITIES)} | {"t": times}


_noise = jax.jit(pure_noise, static_argnames="shape")


def deviations(found: dict[str, np.ndarray], law: GuidedLaw) -> dict[str, np.ndarray]:
    """How many standard errors samples are from theory, at each stop.

    phi and H are averages of rare events where the classes have parted, or not begun to: there, at
    phi below 0.51 or above 0.99 in theory, a standard error means little, and it is NaN.
    """
    at = np.array([int(np.argmin(np.abs(law.times - t))) for t in found["t"]])
    clear = (law.phi[at] > 0.51) & (law.phi[at] < 0.99)
    result = {}
    for name in QUANTITIES:
        mean, error = found[name].T
        taken = np.ones(len(at), bool) if name in ("overshoot", "spread") else clear
        result[name] = np.full(len(at), np.nan)
        result[name][taken] = (mean - getattr(law, name)[at])[taken] / error[taken]
    return result


def compare(options: Options) -> list[dict[str, Any]]:
    """Samples of every w and d against theory, in d dimensions and in one."""
    schedule, rows = linear_schedule(NUM_STEPS), []
    for d in DIMENSIONS:
        for w in WEIGHTS:
            law = GuidedMixture(GaussianMixture(d), w).ancestral(schedule)
            end = float(schedule.time[-1])
            flow = GuidedMixture(GaussianMixture(d), w).flow(np.zeros(1), start=end)
            line = GaussianMixture(1, mu=float(np.sqrt(d)))  # the same law in one dimension
            many = 10 * options.samples
            for name, mixture, num, exact in (
                ("backward process", GaussianMixture(d), options.samples, law),
                ("backward process, one dimension", line, many, law),
                ("probability flow, one dimension", line, many, flow),
            ):
                if exact is flow and w < 0:
                    continue  # its map is too steep for few steps where the classes part
                place = (DIMENSIONS.index(d) * 3 + (mixture is line) + (exact is flow)) * 100
                key = jax.random.fold_in(jax.random.key(options.seed), place + WEIGHTS.index(w))
                kind = DPMSolver2M if exact is flow else AncestralSampler
                stops = (0,) if exact is flow else STOPS
                found = sampled(mixture, w, kind(schedule), key, num, stops)
                rows.append(
                    {"d": d, "w": w, "of": name, "samples": num, **found}
                    | {"deviations": deviations(found, exact)}
                )
        print(f"Samples in d = {d} compared", flush=True)
    return rows


def theory() -> dict[str, Any]:
    """Against w, at the end of each d, from infinite time; along time, and the windows."""
    mixture = GaussianMixture(CURVES)
    # At sigma = 1 the law in d dimensions at t = 0 is that of more dimensions where s = d.
    ends = 0.5 * np.log(CURVES / np.array([*DIMENSIONS, CURVES], np.float64))
    times = np.unique(np.concatenate([np.linspace(0, 7, 141), ends]))
    t_S = GuidedMixture(mixture, 0.0).diffusion(times).speciation_time
    against: dict[str, list[Any]] = {"w": list(FINE_WEIGHTS), "diffusion": [], "flow": []}
    for w in FINE_WEIGHTS:
        guided = GuidedMixture(mixture, float(w))
        for name, law in (("diffusion", guided.diffusion(times)), ("flow", guided.flow(times))):
            at = np.searchsorted(times, ends[:-1])
            against[name].append(
                {
                    "overshoot": law.overshoot[at],
                    "spread": law.spread[at],
                    "t_S": law.speciation_time - t_S,
                }
            )
    # As samplers begin, from N(0, I): the backward process forgets it, the flow does not.
    begun = float(linear_schedule(NUM_STEPS).time[-1])
    times = np.append(times[times < begun], begun)
    along = {}
    for w in WEIGHTS:
        law = GuidedMixture(mixture, w).diffusion(times, start=begun)
        along[f"{w:g}"] = {name: getattr(law, name) for name in QUANTITIES} | {
            "t_S": law.speciation_time
        }
    kinds = {}
    for name, weight in windows(mixture.speciation_time).items():
        guided = GuidedMixture(mixture, weight)
        pair = {"diffusion": guided.diffusion(times, begun), "flow": guided.flow(times, begun)}
        kinds[name] = {
            process: {q: getattr(law, q) for q in QUANTITIES} for process, law in pair.items()
        }
    rest = {"against": against, "along": along, "windows": kinds}
    return {"d": CURVES, "t": times, "start": begun, "t_S": t_S, **rest}


def compare_windows(options: Options) -> list[dict[str, Any]]:
    """Samples of the weights that change along time, in one dimension."""
    schedule, line = linear_schedule(NUM_STEPS), GaussianMixture(1, mu=float(np.sqrt(CURVES)))
    rows = []
    for i, (name, weight) in enumerate(windows(GaussianMixture(CURVES).speciation_time).items()):
        law = GuidedMixture(GaussianMixture(CURVES), weight).ancestral(schedule)
        key = jax.random.fold_in(jax.random.key(options.seed), 10_000 + i)
        num = 10 * options.samples
        found = sampled(line, weight, AncestralSampler(schedule), key, num, STOPS)
        rows.append(
            {"d": CURVES, "w": name, "of": "backward process, one dimension", "samples": num}
            | {**found, "deviations": deviations(found, law)}
        )
    return rows


def report(found: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Prints what guidance does and how far samples are from theory; returns what is too far."""
    console = Console()
    table = Table(
        *("w", *(f"overshoot, d = {d}" for d in DIMENSIONS)),
        *(f"variance, d = {d}" for d in DIMENSIONS),
        *("t_S(w) - t_S", "flow: overshoot", "variance", "t_S(w) - t_S"),
        title="Guided samples of two Gaussians, in theory; in deviations sigma of the class",
        caption="w here is guidance_scale - 1 elsewhere",
    )
    against = found["against"]
    for w, one, two in zip(against["w"], against["diffusion"], against["flow"], strict=True):
        if w in WEIGHTS:
            cells = [*one["overshoot"], *one["spread"], one["t_S"]]
            cells += [two["overshoot"][-1], two["spread"][-1], two["t_S"]]
            table.add_row(f"{w:g}", *(f"{cell:.4f}" for cell in cells))
    print_table(console, table)
    table = Table(
        *("d", "of", "comparisons", "largest deviation (standard errors)", "at w"),
        title="Samples against theory: overshoot, variance, phi and H(c | x_t)",
    )
    broken = []
    for d in DIMENSIONS:
        for of in dict.fromkeys(row["of"] for row in rows):
            part = [row for row in rows if row["d"] == d and row["of"] == of]
            off = [np.concatenate(list(row["deviations"].values())) for row in part]
            worst = [float(np.nanmax(np.abs(each))) for each in off]
            top = int(np.argmax(worst))
            count = sum(int(np.isfinite(each).sum()) for each in off)
            table.add_row(str(d), of, str(count), f"{worst[top]:.2f}", str(part[top]["w"]))
            broken += [
                f"{of}, d = {d}, w = {row['w']}: {each:.2f} standard errors from theory"
                for row, each in zip(part, worst, strict=True)
                if each > 4
            ]
    print_table(console, table)
    return broken


@reports_errors
def main() -> None:
    """Measures, prints, writes, and exits with status 1 where samples leave theory."""
    options = parse(Options, "paper.guidance", __doc__)
    if options.samples < 100 or options.digits < 16 or not 0 <= options.seed < 2**32:
        raise UserError(
            "samples must be at least 100, digits at least 16, seed between 0 and 2^32 - 1"
        )
    start()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    found = theory()
    rows = compare(options) + compare_windows(options)
    broken = report(found, rows)
    digits = measure_digits(options.digits, options.seed)
    broken += report_digits(digits)
    save(plots.draw_mixture(found, rows, DIMENSIONS), options.out / "mixture.png")
    save(plots.draw_windows(found, rows), options.out / "windows.png")
    save(plots.draw_digits(digits, DIGIT_WEIGHTS, found["against"]), options.out / "digits.png")
    seconds = time.perf_counter() - begun
    options_used = {
        "samples": options.samples,
        "digits": options.digits,
        "seed": options.seed,
        "steps": NUM_STEPS,
    }
    result = {"options": options_used, "theory": found, "samples": rows, "digits": digits}
    write_json(options.out / "result.json", result | {"seconds": seconds})
    names = "result.json, mixture.png, windows.png and digits.png"
    print(f"Wrote {names} to {options.out} in {seconds:.0f} s")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
