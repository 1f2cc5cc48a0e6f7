import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from diffusion_jax.sampling import AncestralSampler, Sampler, sample, sampling_loop
from diffusion_jax.schedule import NoiseSchedule, linear_schedule


@struct.dataclass
class GaussianDenoiser:
    """Exact noise of data N(mean, covariance) in closed form: -sqrt(1 - alpha_bar) score."""

    schedule: NoiseSchedule
    mean: Array
    values: Array
    vectors: Array

    def __call__(self, x, step):
        a = jnp.sqrt(self.schedule.alpha_bar[step])[:, None]
        variance = self.schedule.noise_variance[step][:, None]
        centred = (x - a * self.mean[None]) @ self.vectors
        white = centred / (a**2 * self.values[None] + variance)
        return jnp.sqrt(variance) * (white @ self.vectors.T)


def gaussian(schedule):
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    values, mean = np.array([0.05, 0.5, 2.0]), np.array([0.5, -1.0, 0.2])
    denoiser = GaussianDenoiser(
        schedule, *(jnp.asarray(a, jnp.float32) for a in (mean, values, vectors))
    )
    return denoiser, mean, values, vectors


def exact_law(schedule, faithful, mean, values):
    """Mean and variance of each mode under the discrete sampler: it is linear, so they close.

    x <- A x + B + sqrt(beta) z, with A and B from the Gaussian's noise prediction.
    """
    beta = np.asarray(schedule.beta, np.float64)
    alpha_bar = np.cumprod(1 - beta)
    m, v = np.zeros(len(values)), np.ones(len(values))
    for s in reversed(range(len(beta))):
        gain = beta[s] / (alpha_bar[s] * values + 1 - alpha_bar[s])
        scale = 1 / np.sqrt(1 - beta[s])
        m = scale * (m - gain * (m - np.sqrt(alpha_bar[s]) * mean))
        v = (scale * (1 - gain)) ** 2 * v + (beta[s] if s > int(faithful) else 0)
    return m, v


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("num_steps", [50, 1000])
def test_ancestral_sampling_of_a_gaussian(num_steps, faithful):
    """Against the sampler's own law at once; and that law tends to the data's."""
    schedule = linear_schedule(num_steps)
    denoiser, mean, values, vectors = gaussian(schedule)
    sampler = AncestralSampler(schedule, faithful)
    n = 10_000
    x = sample(sampler, denoiser, jax.random.key(1), n, (3,), batch_size=n)
    modes = x.astype(np.float64) @ vectors
    m, v = exact_law(schedule, faithful, mean @ vectors, values)
    assert np.all(np.abs(modes.mean(0) - m) < 4 * np.sqrt(v / n))
    assert np.all(np.abs(modes.var(0) / v - 1) < 4 * np.sqrt(2 / n))
    correlation = np.corrcoef(modes.T)[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlation) < 4 / np.sqrt(n))
    if num_steps == 1000:
        # The discretization's own bias at 1000 steps is under 1 % of a standard deviation and
        # under 2 % of a variance; Monte-Carlo error at four standard deviations on top.
        deviation = np.sqrt(values)
        assert np.all(np.abs(modes.mean(0) - mean @ vectors) < 0.01 + 4 * deviation / np.sqrt(n))
        assert np.all(np.abs(modes.var(0) / values - 1) < 0.02 + 4 * np.sqrt(2 / n))


@pytest.mark.parametrize("faithful", [False, True])
def test_one_step_is_the_formula(faithful):
    schedule = linear_schedule(50)
    beta = np.asarray(schedule.beta, np.float64)
    alpha_bar = np.cumprod(1 - beta)
    x, z = np.random.default_rng(2).standard_normal((2, 4, 5))
    eps = np.sin(x)
    for s in (0, 1, 2, 49):
        noise_on = s > (1 if faithful else 0)
        expected = (x - beta[s] / np.sqrt(1 - alpha_bar[s]) * eps) / np.sqrt(1 - beta[s])
        expected = expected + noise_on * np.sqrt(beta[s]) * z
        got = AncestralSampler(schedule, faithful).move(
            lambda x, step: jnp.sin(x),
            jnp.asarray(x, jnp.float32),
            jnp.int32(s),
            jnp.asarray(z, jnp.float32),
        )
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_loop_visits_every_step_once_from_the_last():
    schedule = linear_schedule(30)

    @struct.dataclass
    class Recorder(Sampler):
        schedule: NoiseSchedule

        def step(self, denoiser, x, step, keys):
            return 2 * x + step.astype(x.dtype)  # order matters

    keys = jax.random.split(jax.random.key(0), 1)
    got = sampling_loop(Recorder(schedule), lambda x, s: x, jnp.zeros((1, 1)), keys)
    assert float(got[0, 0]) == pytest.approx(sum(s * 2.0**s for s in range(30)))


def test_a_sample_depends_on_its_index_alone():
    schedule = linear_schedule(50)
    denoiser, *_ = gaussian(schedule)
    sampler, key = AncestralSampler(schedule), jax.random.key(5)
    whole = sample(sampler, denoiser, key, 20, (3,), batch_size=20)
    parts = sample(sampler, denoiser, key, 13, (3,), batch_size=5)
    np.testing.assert_allclose(whole[:13], parts, rtol=1e-5, atol=1e-5)
    assert len(np.unique(whole[:, 0])) == 20
