"""Guided ones and eights of MNIST, for `experiments.paper.guidance`.

Two pairs of denoisers that need no training: the exact scores of a class and of all images, and the
Gaussian of a class with the mixture of both classes' Gaussians. With the exact scores samples end
on training images, so that guidance can only choose among those of the class.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.table import Table

from diffusion_jax.data import mnist
from diffusion_jax.denoisers import (
    Denoiser,
    EmpiricalDenoiser,
    GaussianClassesDenoiser,
    GaussianDenoiser,
    GuidedDenoiser,
)
from diffusion_jax.regimes import posterior
from diffusion_jax.regimes.cloning import trunks
from diffusion_jax.regimes.curves import average
from diffusion_jax.runtime.devices import fetch, fold_in_each, replicate, shard, whole
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.sampling import backward, pure_noise
from diffusion_jax.schedule import NoiseSchedule, linear_schedule

DIGITS = ("1", "8")
KINDS = ("exact scores", "Gaussians")
DIGIT_WEIGHTS = (-1.0, 0.0, 1.0, 2.0, 4.0, 8.0)
PER_CLASS = 500
CALLS = 100
WATCHED = (2.2, 1.8, 1.5, 1.3, 1.15, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25)
_DRAWS = 5000


def _pairs(
    kind: str, schedule: NoiseSchedule, points: np.ndarray, labels: np.ndarray
) -> tuple[Any, list[Denoiser]]:
    """The denoiser of all images, and those of the classes."""
    classes = [points[labels == c] for c in range(len(DIGITS))]
    if kind == KINDS[0]:
        whole_set = EmpiricalDenoiser(schedule, jnp.asarray(points))
        return whole_set, [EmpiricalDenoiser(schedule, jnp.asarray(each)) for each in classes]
    mixture = GaussianClassesDenoiser.fit(schedule, points, labels)
    return mixture, [GaussianDenoiser.fit(schedule, each) for each in classes]


def _class_probability(denoiser: Any, labels: np.ndarray, x: Array, step: Array) -> Array:
    """p(c | x_t) of the denoiser of all images, (batch, C)."""
    if isinstance(denoiser, EmpiricalDenoiser):
        share = jnp.exp(denoiser.posterior(x, step))
        members = jnp.asarray(labels[:, None] == np.arange(len(DIGITS)), share.dtype)
        return jnp.matmul(share, members, precision="highest")
    return jnp.exp(denoiser.class_log_probability(x, step))


_noise = jax.jit(pure_noise, static_argnames="shape")


def _follow(
    denoiser: Denoiser,
    everything: Any,
    labels: np.ndarray,
    key: Array,
    num: int,
    shape: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples (num, ...), the times at which they were watched (T,), and p(c | x_t) (num, T, C)."""
    process = backward(linear_schedule(), denoiser, calls=CALLS)
    schedule = process.sampler.schedule
    times = np.asarray(schedule.time, np.float64)
    stops = np.unique([int(np.argmin(np.abs(times - t))) + 1 for t in WATCHED])[::-1].tolist()
    sampler, moved, everything = replicate((process.sampler, process.denoiser, everything))
    known = replicate(process.denoiser.steps)  # type: ignore[attr-defined]
    keys = shard(fold_in_each(key, np.arange(whole(num))))
    probe = jax.jit(lambda all_data, x, step: _class_probability(all_data, labels, x, step))
    probability, end = [], _noise(keys, shape)
    for b, end in trunks(sampler, moved, end, keys, [*stops, 0]):  # noqa: B020
        if b:
            step = jnp.full(len(end), known[b - 1])
            probability.append(fetch(probe(everything, end, step))[:num])
    return fetch(end)[:num], times[np.array(stops) - 1], np.stack(probability, axis=1)


def _measured(
    x: np.ndarray, times: np.ndarray, probability: np.ndarray, seed: int
) -> dict[str, Any]:
    """Phi and H(c | x_t) along the paths, in increasing times, with t_S."""
    p = probability[:, ::-1].astype(np.float64)
    phi = (p**2).sum(axis=2)
    entropy = -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), axis=2)
    curves = average(times[::-1], [phi, entropy], seed)
    t_S = curves[0].crossing(0.7752)
    return {
        "t": times[::-1],
        **{
            name: {"mean": curve.mean, "stderr": curve.standard_error}
            for name, curve in zip(("phi", "class_entropy"), curves, strict=True)
        },
        "t_S": t_S,
        "samples": len(x),
    }


def _ends(x: np.ndarray, own: np.ndarray, axis: np.ndarray) -> dict[str, np.ndarray]:
    """Overshoot in deviations of the class, variances over the class's, with standard errors."""
    flat, root = x.reshape(len(x), -1).astype(np.float64), np.sqrt(len(x))
    along, known = flat @ axis, own @ axis
    squared = ((flat - flat.mean(0)) ** 2).sum(1) / ((own - own.mean(0)) ** 2).sum(1).mean()
    shift = (along - known.mean()) / known.std()
    around = (shift - shift.mean()) ** 2
    return {
        "overshoot": np.array([shift.mean(), shift.std(ddof=1) / root]),
        "axis_spread": np.array([around.mean(), around.std(ddof=1) / root]),
        "spread": np.array([squared.mean(), squared.std(ddof=1) / root]),
    }


def measure_digits(num: int, seed: int) -> dict[str, Any]:
    """Guided samples of each class and w by both pairs; and the posterior's phi, for w = -1."""
    images = mnist.load(DIGITS, PER_CLASS, 28)
    points = images.images.astype(np.float32) / 255
    points -= points.mean()
    labels = np.asarray(images.labels)
    flat = points.reshape(len(points), -1).astype(np.float64)
    means = [flat[labels == c].mean(0) for c in range(len(DIGITS))]
    schedule, key = linear_schedule(), jax.random.key(seed)
    result: dict[str, Any] = {"digits": DIGITS, "calls": CALLS, "distance": float(np.nan)}
    result["distance"] = float(np.linalg.norm(means[0] - means[1]))
    for k, kind in enumerate(KINDS):
        everything, classes = _pairs(kind, schedule, points, labels)
        found: dict[str, Any] = {}
        for c, digit in enumerate(DIGITS):
            axis = (means[c] - means[1 - c]) / result["distance"]
            for i, w in enumerate(DIGIT_WEIGHTS):
                if w == -1 and c > 0:
                    continue  # of no class
                guided = GuidedDenoiser(classes[c], everything, w)
                own_key = jax.random.fold_in(key, 1000 * k + 100 * c + i)
                shape = points.shape[1:]
                x, t, p = _follow(guided, everything, labels, own_key, num, shape)
                name = "all" if w == -1 else digit
                found.setdefault(name, {})[f"{w:g}"] = _measured(x, t, p, seed) | (
                    {} if w == -1 else _ends(x, flat[labels == c], axis)
                )
        result[kind] = found
        print(f"Digits by {kind} guided", flush=True)
    t = result[KINDS[0]]["all"]["-1"]["t"]
    draws = posterior.draw(points, labels, t, jax.random.fold_in(key, 9999), _DRAWS)
    phi = (draws.class_probability**2).sum(axis=2)
    (curve,) = average(t, [phi], seed)
    result["posterior"] = {"t": t, "phi": curve.mean, "stderr": curve.standard_error}
    result["posterior"]["t_S"] = {
        digit: average(t, [phi[draws.labels == c]], seed)[0].crossing(0.7752)
        for c, digit in enumerate(DIGITS)
    }
    return result


def report_digits(found: dict[str, Any]) -> list[str]:
    """Prints the digits' table; returns what of the unguided runs is 4 standard errors off."""
    table = Table(
        *("scores", "digit", "w", "overshoot", "variance along", "total", "t_S(w) (95 %)"),
        title="Guided digits along the axis of the class means: overshoot in deviations of the "
        "class,\nvariance over the class's, along the axis and in total (+- one standard error)",
    )
    broken = []
    for kind in KINDS:
        for digit, rows in found[kind].items():
            for w, row in rows.items():
                t_S = row["t_S"]
                time = f"{t_S.value:.2f} ({t_S.low:.2f}-{t_S.high:.2f})"
                cells = ["-", "-", "-"]
                if digit != "all":
                    pairs = [row[name] for name in ("overshoot", "axis_spread", "spread")]
                    cells = [f"{mean:.3f} +- {error:.3f}" for mean, error in pairs]
                    off = np.array([mean - (i > 0) for i, (mean, _) in enumerate(pairs)])
                    off /= np.array(pairs)[:, 1]
                    if w == "0" and np.abs(off).max() > 4:
                        broken.append(f"{kind}, digit {digit}, w = 0: {off} standard errors off")
                table.add_row(kind, digit, w, *cells, time)
    print_table(Console(), table)
    own, exact = found[KINDS[0]]["all"]["-1"]["phi"], found["posterior"]
    off = (own["mean"] - exact["phi"]) / np.hypot(own["stderr"], exact["stderr"])
    if np.abs(off).max() > 4:
        broken.append(f"phi of the digits at w = -1: {off.round(1)} standard errors off")
    return broken
