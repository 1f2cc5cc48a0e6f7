import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.process import noise_to_score
from diffusion_jax.sampling import AncestralSampler, sample, sampling_loop
from diffusion_jax.schedule import linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(0, 0.5, (12, 3, 2, 1))


def test_the_empirical_score_is_the_gradient_of_the_log_density(points):
    with jax.enable_x64(True):
        schedule = linear_schedule(100)
        a = jnp.asarray(points)
        denoiser = EmpiricalDenoiser(schedule, a)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 3, 2, 1)))
        for s in (2, 30, 60, 99):
            signal, delta = schedule.alpha_bar[s] ** 0.5, schedule.noise_variance[s]

            def log_density(y, signal=signal, delta=delta):
                squared = jnp.sum((y[None] - signal * a) ** 2, axis=(1, 2, 3))
                return jax.nn.logsumexp(-squared / (2 * delta))

            step = jnp.full(5, s)
            score = noise_to_score(schedule, denoiser(x, step), step)
            exact = jax.vmap(jax.grad(log_density))(x)
            np.testing.assert_allclose(score, exact, rtol=1e-8, atol=1e-10)
            p = np.exp(denoiser.posterior(x, step))
            np.testing.assert_allclose(p.sum(1), 1)


def test_samples_of_the_empirical_score_are_training_points(points):
    schedule = linear_schedule(200)
    denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points, jnp.float32))
    x = sample(AncestralSampler(schedule), denoiser, jax.random.key(0), 480, (3, 2, 1))
    distance = np.sqrt(((x[:, None] - points[None]) ** 2).sum((2, 3, 4)))
    assert distance.min(1).max() < 1e-3
    # All points alike, as the initial noise knows none of them: chi-squared with 11 degrees.
    counts = np.bincount(distance.argmin(1), minlength=12)
    assert np.sum((counts - 40) ** 2 / 40) < 31.3  # its 99.9 % quantile


def test_a_run_in_two_stretches_is_the_run(points):
    schedule = linear_schedule(50)
    denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points, jnp.float32))
    sampler = AncestralSampler(schedule)
    keys = jax.random.split(jax.random.key(1), 4)
    x = jax.random.normal(jax.random.key(2), (4, 3, 2, 1))
    run = jax.jit(sampling_loop, static_argnums=())
    whole = run(sampler, denoiser, x, keys)
    half = run(sampler, denoiser, x, keys, 50, 20)
    np.testing.assert_array_equal(run(sampler, denoiser, half, keys, 20, 0), whole)
    other = run(sampler, denoiser, half, jax.random.split(jax.random.key(3), 4), 20, 0)
    assert np.abs(other - whole).max() > 1e-3
