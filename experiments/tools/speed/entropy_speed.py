"""The excess entropy of MNIST digits, timed to equal standard errors against the published way.

At every time t a draw has a price in seconds and a variance; the factor by which ours is quicker is
the ratio of the prices times that of the variances.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import mnist
from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.regimes import posterior
from diffusion_jax.schedule import from_beta
from experiments.tools.speed.timing import medians

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3, 1.6, 2.0, 3.0, 5.0)
# Draws from each point, over which variances are taken; draws that the loop is timed on.
DRAWS_PER_POINT, LOOP_DRAWS = 4, 300


def _our_entropy(points: np.ndarray, t: float, x: np.ndarray) -> np.ndarray:
    """Entropy of the posterior over the points at each place (N,), in nats per dimension."""
    denoiser = EmpiricalDenoiser(from_beta(np.array([-math.expm1(-2 * t)])), jnp.asarray(points))
    parts = []
    for part in np.split(x, len(x) // 500):
        log_p = denoiser.posterior(jnp.asarray(part), jnp.zeros(len(part), jnp.int32))
        parts.append(-jnp.sum(jnp.exp(log_p) * jnp.maximum(log_p, -1e3), axis=1))
    return np.concatenate(parts).astype(np.float64) / points.shape[1]


def variances(points: np.ndarray) -> list[dict[str, float]]:
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
        published, error = regimes.excess_entropy(
            exact[0], t, exact[1], torch.from_numpy(noise).double(), regimes.log_density_batched
        )
        scale = np.float32(math.sqrt(-math.expm1(-2 * t)))
        x = np.float32(math.exp(-t)) * points[index] + scale * noise
        entropy = _our_entropy(points, t, x).reshape(DRAWS_PER_POINT, n)
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


def _seconds(points: np.ndarray, t: float, repeats: int) -> tuple[dict[str, float], float]:
    """Seconds per draw at a time t, in each form; and those of a whole call of the engine."""
    import torch

    from torch_ref import regimes

    n, d = points.shape
    draws = n * DRAWS_PER_POINT
    tensor, key = torch.from_numpy(points), jax.random.key(0)
    training = posterior.training_set(points)

    def published(draws: int, log_density: regimes.LogDensity) -> None:
        index, noise = torch.randint(n, (draws,)), torch.randn(draws, d)
        regimes.excess_entropy(tensor, t, index, noise, log_density)

    def ours(times: Sequence[float]) -> None:
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
    return each, whole


def measure(repeats: int) -> dict[str, Any]:
    """Seconds per draw in three forms, times how many draws each needs.

    Args:
      repeats: timed runs of each; the median counts.
    """
    digits = mnist.load(("1", "8"), 500, 32)
    points = digits.images.reshape(len(digits.images), -1) / np.float32(255)
    n, d = points.shape
    rows = variances(points)
    least = min(rows, key=lambda row: row["variance_ratio"])
    each, whole = _seconds(points, least["time"], repeats)
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
