"""Forks of backward processes under exact scores, against the posterior engine and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianMixtureDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import cloning, neighbours, posterior
from diffusion_jax.regimes.cloning import Cloning
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.sampling import AncestralSampler, Sampler, sample
from diffusion_jax.schedule import NoiseSchedule, linear_schedule

SCHEDULE = linear_schedule(500)
STEPS = [350, 250, 175, 125, 75, 30]
TIMES = np.asarray(SCHEDULE.time, np.float64)[np.array(STEPS) - 1]
# Of 12 binomial tests at once, one p-value under this is seen once in 800 runs.
LEVEL = 1e-4


def training_points():
    """Two classes of twelve points in six dimensions."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 12)
    points = 0.7 * rng.standard_normal((24, 6)) + np.where(labels, 0.8, -0.8)[:, None]
    return points.astype(np.float32), labels


def mixture():
    law = GaussianMixture(dimension=16, mu=1.0, sigma=0.5)
    denoiser = GaussianMixtureDenoiser(SCHEDULE, jnp.ones(16), jnp.float32(0.5))
    return AncestralSampler(SCHEDULE), denoiser, law, TIMES


@pytest.fixture(scope="module")
def exact():
    """phi and phi_C of the training points at every fork, by the posterior engine."""
    draws = posterior.draw(*training_points(), TIMES, jax.random.key(4), 24_000)
    return (draws.class_probability**2).sum(2).mean(0), draws.collision.mean(0)


@pytest.mark.parametrize("clones", [1, 2])
def test_clones_of_the_exact_score_agree_with_the_posterior(exact, clones):
    """phi and phi_C at every fork, with the trunk as a clone and with two fresh ones."""
    points, labels = training_points()
    denoiser = EmpiricalDenoiser(SCHEDULE, jnp.asarray(points))
    forks = cloning.fork(
        AncestralSampler(SCHEDULE), denoiser, jax.random.key(3), STEPS, (6,), 0, 1500, clones
    )
    a, b = (neighbours.nearest(x.reshape(-1, 6), points) for x in forks.pairs())
    # The exact score ends on the training points.
    assert max(a.distance.max(), b.distance.max()) < 0.1
    same_point = (a.index == b.index).reshape(1500, -1).sum(0)
    same_class = (labels[a.index] == labels[b.index]).reshape(1500, -1).sum(0)

    phi, phi_c = exact
    assert phi[0] < 0.6 < 0.95 < phi[-1]
    assert phi_c[0] < 0.1 < 0.95 < phi_c[-1]
    assert Cloning(TIMES, same_class, 1500).p_values(phi).min() > LEVEL
    assert Cloning(TIMES, same_point, 1500).p_values(phi_c).min() > LEVEL


def test_clones_and_u_turns_of_a_mixture_agree_with_its_phi():
    """A U-turn ends in its own class as often as two clones agree: both are E sum_c p(c|x)^2."""
    sampler, denoiser, law, times = mixture()
    forks = cloning.fork(sampler, denoiser, jax.random.key(0), STEPS, (16,), 0, 1200)
    one, other = (x.sum(-1) > 0 for x in forks.pairs())
    assert Cloning(times, (one == other).sum(0), 1200).p_values(law.phi(times)).min() > LEVEL

    data, _ = law.sample(np.random.default_rng(1), 1200)
    back = cloning.u_turns(sampler, denoiser, jax.random.key(2), STEPS, data)
    own = (back.sum(-1) > 0) == (data.sum(-1) > 0)[:, None]
    assert Cloning(times, own.sum(0), 1200).p_values(law.phi(times)).min() > LEVEL
    assert (
        np.linalg.norm(back[:, -1] - data, axis=1).mean()
        < np.linalg.norm(back[:, 0] - data, axis=1).mean()
    )


def test_a_trunk_is_the_sample_and_depends_on_its_number_alone():
    sampler, denoiser, _, _ = mixture()
    key = jax.random.key(7)
    whole = cloning.fork(sampler, denoiser, key, STEPS, (16,), 0, 11, 2)
    parts = [
        cloning.fork(sampler, denoiser, key, STEPS, (16,), *place, 2) for place in ((0, 3), (3, 11))
    ]
    np.testing.assert_allclose(whole.trunk, sample(sampler, denoiser, key, 11, (16,)), atol=1e-5)
    for name in ("trunk", "clones"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-5)
    # No two of all the ends share their noise.
    ends = np.concatenate([whole.trunk[:, None], whole.clones.reshape(11, -1, 16)], axis=1)
    distance = np.linalg.norm(ends[:, :, None] - ends[:, None], axis=-1)
    assert distance[:, ~np.eye(ends.shape[1], dtype=bool)].min() > 1e-3


def test_trunk_and_clones_take_every_step_once():
    @struct.dataclass
    class Recorder(Sampler):
        schedule: NoiseSchedule

        def step(self, denoiser, x, step, noise):
            return 0.5 * x + step.astype(x.dtype)  # order matters

    schedule = linear_schedule(24)
    denoiser = GaussianMixtureDenoiser(schedule, jnp.ones(1), jnp.float32(1))
    forks = cloning.fork(Recorder(schedule), denoiser, jax.random.key(0), [24, 13, 1], (1,), 0, 4)
    np.testing.assert_allclose(
        forks.clones[:, :, 0], np.broadcast_to(forks.trunk[:, None], (4, 3, 1)), rtol=1e-6
    )
    steps_alone = sum(s * 0.5**s for s in range(24))
    assert np.all(np.abs(forks.trunk - steps_alone) < 1e-5)


def test_sharing_the_trunk_saves_calls():
    """On twenty forks, evenly spread: 38 % of the separate runs' calls, 72 % with fresh clones."""
    steps = range(1000, 0, -50)
    separate = cloning.separate_calls(steps, 1000)
    assert separate == 20 * 1000 + 10_500
    assert cloning.denoiser_calls(steps, 1000) == 11_500 < 0.4 * separate
    assert cloning.denoiser_calls(steps, 1000, 2) == 22_000


@pytest.mark.parametrize("steps", [[], [501], [0], [10, 20], [10, 10], [2.5]])
def test_forks_outside_the_schedule_are_refused(steps):
    sampler, denoiser, _, _ = mixture()
    with pytest.raises(UserError, match="descending order, from 500"):
        cloning.fork(sampler, denoiser, jax.random.key(0), steps, (16,), 0, 2)


def test_no_trunks_and_no_points_are_refused():
    sampler, denoiser, _, _ = mixture()
    with pytest.raises(UserError, match="at least one"):
        cloning.fork(sampler, denoiser, jax.random.key(0), [5], (16,), 3, 3)
    with pytest.raises(UserError, match="no points"):
        cloning.u_turns(sampler, denoiser, jax.random.key(0), [5], np.zeros((0, 16)))


@pytest.mark.parametrize("at_a_time", [2048, 16])
def test_nearest_points_are_those_of_all_distances(monkeypatch, at_a_time):
    monkeypatch.setattr(neighbours, "_POINTS", at_a_time)
    rng = np.random.default_rng(9)
    x, points = rng.standard_normal((2100, 3, 4)) + 20, rng.standard_normal((50, 3, 4)) + 20
    x[:50] = points
    found = neighbours.nearest(x, points)
    distance = np.linalg.norm((x[:, None] - points[None]).reshape(2100, 50, 12), axis=2)
    np.testing.assert_array_equal(found.index, distance.argmin(1))
    ordered = np.sort(distance, axis=1)
    np.testing.assert_allclose(found.distance, ordered[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.second, ordered[:, 1], rtol=1e-5)
    np.testing.assert_array_equal(found.memorised, ordered[:, 0] < ordered[:, 1] / 3)
    np.testing.assert_allclose(found.ratio, ordered[:, 0] / ordered[:, 1], rtol=1e-5, atol=1e-5)
    assert found.memorised[:50].all()
    assert not found.memorised.all()
    with pytest.raises(UserError, match="two points or more"):
        neighbours.nearest(x, points[:1])


def test_the_last_change_of_neighbour():
    index = np.array([[1, 2, 2, 2], [1, 1, 3, 1], [4, 4, 4, 4]])
    got = neighbours.last_change(index, np.array([3.0, 2.0, 1.0, 0.0]))
    np.testing.assert_array_equal(got, [2.5, 0.5, np.nan])
