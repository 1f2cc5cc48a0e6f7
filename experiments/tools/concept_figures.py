"""Draws the pictures of docs/concepts: python -m experiments.tools.concept_figures."""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffusion_jax as dj
from diffusion_jax.data import mnist
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.plots import style
from diffusion_jax.plots.forks import Trunk, draw_forks
from diffusion_jax.regimes import transitions
from diffusion_jax.runtime import backend
from experiments.command import parse, reports_errors

FOLDER = Path(__file__).parents[2] / "docs" / "concepts"
DIGITS, PER_CLASS, SIDE = ("1", "8"), 500, 32
STEPS, TRUNKS, CLONES, SEED = 400, 32, 3, 0
LIMITS = (0.18, 2.6)
# Of the states shown, and of those among them at which clones leave.
WATCHED = (2.28, 1.6, 1.06, 0.707, 0.44, 0.27)
FORKS = (1.6, 0.707, 0.27)
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
    curves, t_S, t_C = (
        regimes.curves,
        *(regimes.times[name].value for name in ("t_S_phi", "t_C_phi")),
    )
    trunk, shows = chosen_trunk(images, points)
    print(f"{shows} of {TRUNKS} trunks show all three regimes; the first of them is drawn")
    options.out.mkdir(parents=True, exist_ok=True)
    figure = draw_forks(trunk, curves["phi"], curves["phi_C"], t_S, t_C, LIMITS, OUTCOMES)
    style.save(figure, options.out / "regimes.png")
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
