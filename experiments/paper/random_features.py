"""Memorisation by a random-features score: python -m experiments.paper.random_features --out DIR.

In the setting of Bonnaire et al. (2025), Gaussian data and a score whose last layer alone is
trained, at one diffusion time, it shows the eigenvalues of the features of networks beside their
law in high dimension; the training and the test loss along gradient flow for several numbers n of
training points, against tau and against tau/n; a smaller network really trained, on fresh noise at
each step, beside the flow; and the times of generalisation, of the training points' bulk and of
overfitting against n, with the exponents of n.

Writes spectra.png, losses.png, times.png and result.json. Ends with status 1 where the trained
network's losses leave the flow's by more than 5 %.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from diffusion_jax.errors import UserError
from diffusion_jax.plots import random_features as plots
from diffusion_jax.plots.style import save
from diffusion_jax.regimes.random_features import FeatureSpectrum, feature_coefficients
from diffusion_jax.regimes.random_features_flow import random_features
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.tables import print_table
from experiments.command import exit_if_broken, parse, reports_errors

PSI_P = 32  # features over dimensions
PSI_N = (2, 4, 8, 16)  # training points over dimensions
WIDER = 1024  # PSI_P of a second theory, where the laws of many features hold
CURVE = np.geomspace(1.5, 100, 19)  # of psi_n
FITTED = np.geomspace(2, 16, 4)  # for the exponents
TRAINED = (20, 320, 40)  # d, p, n of the network that is trained
DRAWS = 4  # of noise, for each training point and step, and their negatives
TRAINING = np.geomspace(1, 1e8, 129)  # tau
CLOSE = 0.05


@dataclass(frozen=True)
class Options:
    """Random-features scores: spectra, losses along training, and the times of memorisation."""

    out: Path = Path("runs/random_features")
    """Folder for result.json and the figures."""
    dimension: int = 40
    """Dimension of the data; the networks have 32 times as many features."""
    time: float = 0.01
    """Diffusion time t at which the score is learned."""
    trained_until: float = 1e5
    """Training time tau up to which the small network is trained, step by step."""
    seed: int = 0
    """Seed of everything random."""


def crossing(times: np.ndarray, values: np.ndarray, level: float) -> float:
    """The first time at which a curve from below reaches a level, between times by their logs."""
    above = np.flatnonzero(values >= level)
    if not len(above) or above[0] == 0:
        return math.nan
    i = int(above[0])
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(times[i - 1] * (times[i] / times[i - 1]) ** share)


def measure(options: Options) -> list[dict[str, Any]]:
    """Spectrum, losses and times of one network for each number of training points."""
    coefficients, rows = feature_coefficients(np.tanh, options.time), []
    d, p = options.dimension, PSI_P * options.dimension
    for psi_n in PSI_N:
        n = psi_n * d
        flow = random_features(d, p, n, options.time, options.seed)
        law = FeatureSpectrum(coefficients, PSI_P, psi_n)
        train, test = flow.losses(TRAINING)
        gap, falling = test - train, flow.eigenvalues[::-1]
        base, mass = law.atom
        values = np.unique(np.concatenate([base + _between(*ends, base) for ends in law.bulks]))
        inverse = p / d / flow.features.noise
        rows.append(
            {"d": d, "p": p, "n": n, "psi_n": psi_n, "eigenvalues": flow.eigenvalues}
            | {"law": {"eigenvalues": values, "density": law.density(values), "bulks": law.bulks}}
            | {"delta": {"at": base, "mass": mass}, "best": flow.features.best_loss}
            | {"tau": TRAINING, "train": train, "test": test}
            | {"distance": (test - flow.features.best_loss) / flow.features.noise}
            | {"train_limit": law.training_loss(TRAINING)}
            | {"moments": [[np.mean(falling**k), _moment(law, k)] for k in (1, 2, 3)]}
            | {"tau_gen": inverse / falling[:d].mean(), "tau_mem": inverse / falling[d:n].mean()}
            | {
                "in_theory": _times(law),
                "tau_best": TRAINING[np.argmin(test)],
                "best_test": test.min(),
            }
            | {"tau_half_gap": crossing(TRAINING, gap, gap[-1] / 2)}
        )
        print(f"n = {n} measured", flush=True)
    return rows


def _between(low: float, high: float, base: float) -> np.ndarray:
    return np.geomspace(low - base, high - base, 200)


def _moment(law: FeatureSpectrum, power: int) -> float:
    values, masses, _ = law.quadrature()
    base, mass = law.atom
    return float(masses @ values**power + mass * base**power)


def _times(law: FeatureSpectrum) -> dict[str, float]:
    return {
        "tau_gen": law.generalisation_time,
        "tau_mem": law.memorisation_time,
        "tau_over": law.overfitting_time,
    }


def theory(options: Options) -> dict[str, Any]:
    """The three times against psi_n, in the limit, for two numbers of features."""
    coefficients = feature_coefficients(np.tanh, options.time)
    found: dict[str, Any] = {}
    for psi_p in (PSI_P, WIDER):
        for name, psi_n in (("curve", CURVE), ("fit", FITTED)):
            laws = [_times(FeatureSpectrum(coefficients, psi_p, float(each))) for each in psi_n]
            curves = {key: np.array([law[key] for law in laws]) for key in laws[0]}
            if name == "curve":
                found[str(psi_p)] = {"psi_n": psi_n, **curves}
            else:
                powers = {key: exponent(psi_n, curve) for key, curve in curves.items()}
                found[str(psi_p)]["exponents"] = powers
    return found


def exponent(sizes: np.ndarray, times: np.ndarray) -> float:
    """The power of n that fits times best, by least squares of the logs."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def trained(options: Options) -> dict[str, Any]:
    """A network trained by gradient descent on fresh noise, and its losses, exact, at stops."""
    d, p, n = TRAINED
    flow = random_features(d, p, n, options.time, options.seed)
    layer, rng = flow.features, np.random.default_rng([options.seed, 2])
    signal, noise = layer.signal, layer.noise
    longest = 0.6 / flow.rates[-1]  # twice that is stable
    w, data = (layer.weights / math.sqrt(d)).astype(np.float32), flow.data.astype(np.float32)
    last, tau, rows = np.zeros((d, p), np.float32), 0.0, []
    stops = list(np.geomspace(10, options.trained_until, 25))
    while stops:
        step = min(longest, 1 + 0.1 * tau)
        xi = rng.standard_normal((DRAWS, n, d), np.float32)
        both = np.concatenate([xi, -xi]).reshape(-1, d)
        x = signal * np.tile(data, (2 * DRAWS, 1)) + math.sqrt(noise) * both
        h = np.tanh(x @ w.T)
        left = math.sqrt(noise / p) * (h @ last.T) + both
        slope = 2 * math.sqrt(noise / p) / d * (left.T @ h) / len(x)  # dL/dA
        last = last - np.float32(step * d**2 / 2) * slope
        tau += step
        if tau >= stops[0]:
            del stops[0]
            rows.append([tau, *flow.losses_of(last.astype(np.float64))])
    found = np.array(rows)
    exact = np.stack(flow.losses(found[:, 0]), axis=1)
    fine = np.geomspace(1, 10 * options.trained_until, 161)
    train, test = flow.losses(fine)
    return {
        **{"d": d, "p": p, "n": n, "tau": found[:, 0], "losses": found[:, 1:], "flow": exact},
        **{"fine": {"tau": fine, "train": train, "test": test}, "best": layer.best_loss},
    }


def report(rows: list[dict[str, Any]], found: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Prints the tables; returns what is too far from theory."""
    console = Console()
    table = Table(
        *("n", "tr U/p", "tr U^2/p", "tr U^3/p", "tau_gen", "tau_mem", "best test loss", "at tau"),
        *("last losses", "half the gap at tau"),
        title=f"Networks of d = {rows[0]['d']} and p = {rows[0]['p']} (theory in brackets)",
        caption=f"the true score's loss is {rows[0]['best']:.4f}",
    )
    for row in rows:
        cells = [f"{mine:.3f} ({law:.3f})" for mine, law in row["moments"]]
        for name in ("tau_gen", "tau_mem"):
            cells.append(f"{row[name]:.4g} ({row['in_theory'][name]:.4g})")
        cells += [f"{row['best_test']:.4f}", f"{row['tau_best']:.3g}"]
        cells += [f"{row['train'][-1]:.3f}, {row['test'][-1]:.2f}", f"{row['tau_half_gap']:.3g}"]
        table.add_row(str(row["n"]), *cells)
    print_table(console, table)
    table = Table(
        *("psi_p", "of tau_gen", "of tau_mem", "of tau_over"),
        title=f"Exponents of n in theory, psi_n from {FITTED[0]:g} to {FITTED[-1]:g}",
    )
    for psi_p, curves in found.items():
        table.add_row(psi_p, *(f"{each:.3f}" for each in curves["exponents"].values()))
    print_table(console, table)
    off = np.abs(run["losses"] / run["flow"] - 1).max(axis=0)
    print(
        f"Trained network, d, p, n = {TRAINED}: training loss within {off[0]:.2%} of the flow's, "
        f"test loss within {off[1]:.2%}"
    )
    names = ("training", "test")
    return [
        f"the trained network's {name} loss is {each:.1%} from the flow's"
        for name, each in zip(names, off, strict=True)
        if each > CLOSE
    ]


@reports_errors
def main() -> None:
    """Measures, prints, writes, and exits with status 1 where training leaves theory."""
    options = parse(Options, "paper.random_features", __doc__)
    if not (8 <= options.dimension <= 128 and 0 <= options.seed < 2**32):
        raise UserError("dimension must be from 8 to 128, seed between 0 and 2^32 - 1")
    if not (0.001 <= options.time <= 3 and 100 <= options.trained_until <= 1e7):
        raise UserError("time must be from 0.001 to 3, trained_until from 100 to 1e7")
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    found, rows = theory(options), measure(options)
    run = trained(options)
    broken = report(rows, found, run)
    measured = {
        name: exponent(np.array(PSI_N), np.array([row[name] for row in rows]))
        for name in ("tau_gen", "tau_mem", "tau_best", "tau_half_gap")
    }
    print("Exponents of n, networks: " + ", ".join(f"{k} {v:.3f}" for k, v in measured.items()))
    save(plots.draw_spectra(rows), options.out / "spectra.png")
    save(plots.draw_losses(rows, run), options.out / "losses.png")
    save(plots.draw_times(rows, found, (FITTED[0], FITTED[-1])), options.out / "times.png")
    seconds = time.perf_counter() - begun
    used: dict[str, Any] = {"dimension": options.dimension, "time": options.time, "psi_p": PSI_P}
    used |= {"trained_until": options.trained_until, "seed": options.seed}
    result: dict[str, Any] = {"options": used, "networks": rows, "theory": found, "trained": run}
    result |= {"network_exponents": measured, "seconds": seconds}
    write_json(options.out / "result.json", result)
    names = "result.json, spectra.png, losses.png and times.png"
    print(f"Wrote {names} to {options.out} in {seconds:.0f} s")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
