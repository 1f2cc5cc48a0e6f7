"""Draws the pictures of docs/concepts: python -m experiments.tools.concept_figures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import diffusion_jax as dj
from diffusion_jax.data import mnist
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.plots import concepts, style
from diffusion_jax.plots.forks import Trunk, draw_forks
from diffusion_jax.regimes import transitions
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.runtime import backend
from experiments.command import parse, reports_errors

FOLDER = Path(__file__).parents[2] / "docs" / "concepts"
DIGITS, PER_CLASS, SIDE = ("1", "8"), 500, 32
STEPS, TRUNKS, CLONES, SEED = 400, 32, 3, 0
LIMITS = (0.18, 2.6)
# Of the states shown, and of those among them at which clones leave.
WATCHED = (2.28, 1.6, 1.06, 0.707, 0.44, 0.27)
FORKS = (1.6, 0.707, 0.27)
# An image, times at which it is shown with noise, and the training images shown of a posterior.
EIGHT, NOISING, POSTERIOR, SHOWN = (
    507,
    (0, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0),
    (2.0, 1.0, 0.7, 0.5, 0.3),
    6,
)
# Samples of two denoisers, in so many calls, one of which sees patches.
COPIES, CALLS, PATCH = 8, 100, 9
SCHEDULE = dj.linear_schedule()
OUTCOMES = ("both classes", "one class, many images", "one training image")


@dataclass(frozen=True)
class Options:
    """Draws the pictures of docs/concepts."""

    out: Path = FOLDER
    """Folder for the pictures."""


def chosen_trunk(images: ImageSet, points: np.ndarray) -> tuple[Trunk, int]:
    """The first trunk to an eight whose forks show each regime, and how many of all do.

    Raises:
      UserError: none does.
    """
    schedule = dj.linear_schedule(STEPS)
    denoiser = dj.EmpiricalDenoiser.fit(schedule, points, None)
    watched = [round(float(schedule.step_of_time(time))) + 1 for time in WATCHED]
    forks = [watched[WATCHED.index(time)] for time in FORKS]
    sampler, key, shape = dj.AncestralSampler(schedule), jax.random.key(SEED), points.shape[1:]
    found = dj.fork(sampler, denoiser, key, forks, shape, 0, TRUNKS, clones=CLONES, watch=watched)
    ends = dj.nearest(found.trunk, points).index
    index = dj.nearest(found.clones.reshape(-1, *shape), points).index
    index = index.reshape(TRUNKS, len(FORKS), CLONES)
    assert images.labels is not None
    labels = images.labels
    first, second, third = (
        np.concatenate([index[:, i], ends[:, None]], axis=1) for i in range(len(FORKS))
    )
    shows = [
        labels[ends[i]] == 1
        and len(set(labels[first[i, :CLONES]])) > 1
        and len(set(labels[second[i]])) == 1
        and len(set(second[i])) == CLONES + 1
        and len(set(third[i])) == 1
        for i in range(TRUNKS)
    ]
    if not any(shows):
        raise UserError(f"none of {TRUNKS} trunks shows all three regimes: take more trunks")
    one = shows.index(True)
    path = found.path[one]
    means = denoiser.predict_x_0(jnp.asarray(path), jnp.asarray(watched) - 1)
    trunk = Trunk(
        np.asarray(WATCHED),
        path[..., 0],
        (np.asarray(means) + images.mean)[..., 0],
        (found.trunk[one] + images.mean)[..., 0],
        np.asarray(FORKS),
        (found.clones[one] + images.mean)[..., 0],
        labels[index[one]],
    )
    return trunk, sum(shows)


def noised(points: np.ndarray, index: int, times: Sequence[float]) -> tuple[Array, Array]:
    """x_t of one image with one noise at some times (T, ...), and their steps."""
    steps = np.round(SCHEDULE.step_of_time(np.asarray(times))).astype(np.int32)
    noise = jax.random.normal(jax.random.key(SEED), points.shape[1:])
    copies, noises = (
        jnp.broadcast_to(each, (len(steps), *each.shape)) for each in (points[index], noise)
    )
    return dj.diffuse(SCHEDULE, copies, jnp.asarray(steps), noises), jnp.asarray(steps)


def noising(images: ImageSet, points: np.ndarray) -> Figure:
    """An eight on its way into noise, and what the exact score makes of it."""
    x_t, steps = noised(points, EIGHT, NOISING[1:])
    means = dj.EmpiricalDenoiser.fit(SCHEDULE, points, None).predict_x_0(x_t, steps)
    image = points[EIGHT][None]
    states, guesses = (np.concatenate([image, each])[..., 0] for each in (x_t, means))
    return concepts.draw_noising(np.asarray(NOISING), states, guesses + images.mean)


def posterior(images: ImageSet, points: np.ndarray) -> Figure:
    """Which training images an x_t may come from."""
    x_t, steps = noised(points, EIGHT, POSTERIOR)
    log_weights = dj.EmpiricalDenoiser.fit(SCHEDULE, points, None).posterior(x_t, steps)
    weights = np.exp(np.asarray(log_weights, np.float64))
    entropy = -np.sum(weights * np.asarray(log_weights), axis=1)
    order = np.argsort(-weights, axis=1)[:, :SHOWN]
    return concepts.draw_posterior(
        POSTERIOR,
        np.asarray(x_t)[..., 0],
        (points[order] + images.mean)[..., 0],
        np.take_along_axis(weights, order, axis=1),
        np.exp(entropy),
    )


def choice() -> Figure:
    """Backward paths between two Gaussians, in one dimension, and their potential."""
    mixture, schedule = GaussianMixture(64, 1.0, 1.0), dj.linear_schedule(STEPS)
    centre = jnp.full(1, mixture.centre_norm, jnp.float32)
    denoiser = dj.GaussianMixtureDenoiser(schedule, centre, jnp.float32(1))
    watched = np.unique(np.geomspace(40, STEPS, 40).astype(int))[::-1].tolist()
    sampler, key = dj.AncestralSampler(schedule), jax.random.key(SEED)
    paths = dj.fork(sampler, denoiser, key, [1], (1,), 0, 16, watch=watched).path[..., 0]
    q, t_S = np.linspace(-7, 7, 201), float(mixture.speciation_time)
    return concepts.draw_choice(
        np.asarray(schedule.time)[np.asarray(watched) - 1],
        paths,
        {time: (q, mixture.potential(q, time)) for time in (t_S + 1, t_S, t_S - 0.6)},
        t_S,
    )


def copies(images: ImageSet, points: np.ndarray) -> Figure:
    """Samples of the exact score and of one that sees patches alone, over their neighbours."""
    denoisers: dict[str, dj.Denoiser] = {
        "samples of\nthe exact\nscore": dj.EmpiricalDenoiser.fit(SCHEDULE, points, None),
        f"samples of\npatches of\n{PATCH} x {PATCH} pixels": dj.LocalDenoiser.fit(
            SCHEDULE, points, None, patch=PATCH
        ),
    }
    shown = {}
    for name, denoiser in denoisers.items():
        schedule, told = dj.with_calls(SCHEDULE, denoiser, CALLS, "log-snr")
        sampler, key = dj.AncestralSampler(schedule), jax.random.key(SEED)
        samples = dj.sample(sampler, told, key, COPIES, points.shape[1:], batch_size=COPIES)
        near = points[dj.nearest(samples, points).index]
        shown[name] = tuple((each + images.mean)[..., 0] for each in (samples, near))
    return concepts.draw_copies(shown)


@reports_errors
def main() -> None:
    """Draws all pictures."""
    options = parse(Options, "tools.concept_figures", __doc__)
    backend.configure()
    images = mnist.load(DIGITS, PER_CLASS, SIDE)
    points = images.centred()
    times = np.geomspace(0.05, 6, 48)
    key = jax.random.key(SEED)
    regimes = transitions.of_points(points, images.labels, key, accuracy=5e-3, times=times)
    phi, phi_C = (regimes.curves[name] for name in ("phi", "phi_C"))
    t_S, t_C = (regimes.times[name].value for name in ("t_S_phi", "t_C_phi"))
    trunk, shows = chosen_trunk(images, points)
    print(f"{shows} of {TRUNKS} trunks show all three regimes; the first of them is drawn")
    pictures = {
        "regimes": draw_forks(trunk, phi, phi_C, t_S, t_C, LIMITS, OUTCOMES),
        "noising": noising(images, points),
        "clocks": concepts.draw_clocks(np.asarray(SCHEDULE.time), {"t$_S$": t_S, "t$_C$": t_C}),
        "choice": choice(),
        "posterior": posterior(images, points),
        "copies": copies(images, points),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        style.save(figure, options.out / f"{name}.png")
    print(f"Wrote {', '.join(pictures)} to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
