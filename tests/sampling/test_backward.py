"""The backward process that the commands run: what it holds to where the network errs."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array
from sklearn.datasets import load_digits

from diffusion_jax import sampling
from diffusion_jax.denoisers import (
    ClippedDenoiser,
    Denoiser,
    EmpiricalDenoiser,
    GaussianMixtureDenoiser,
)
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_x_0, x_0_to_noise
from diffusion_jax.sampling import SAMPLERS, Sampler, backward, matched_start, sample
from diffusion_jax.sampling.loop import _sample_batch
from diffusion_jax.sampling.respacing import clock_of, first_step, spread_steps
from diffusion_jax.schedule import (
    NoiseSchedule,
    constant_schedule,
    cosine_schedule,
    from_beta,
    from_time,
    linear_schedule,
)

SCHEDULES = {"linear": linear_schedule, "cosine": cosine_schedule, "constant": constant_schedule}


@struct.dataclass
class Erring:
    """A denoiser with a fixed smooth error, of 2 % of the noise's deviation."""

    denoiser: Denoiser
    waves: Array

    def __call__(self, x, step):
        flat = x.reshape(len(x), -1) @ self.waves + jnp.arange(len(self.waves), dtype=x.dtype)[None]
        error = 0.02 * jnp.sqrt(jnp.float32(2)) * jnp.sin(flat)
        return self.denoiser(x, step) + error.reshape(x.shape)


@pytest.fixture(scope="module")
def digits():
    images = (load_digits().images[:200] / 16).astype(np.float32).reshape(200, 8, 8, 1)
    return images - images.mean(), images.mean()


@pytest.mark.parametrize("calls", [10, 50, 1000])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samples_of_an_erring_score_are_like_the_data(digits, schedule, name, calls):
    points, mean = digits
    made = SCHEDULES[schedule](1000)
    waves = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)) / 16, jnp.float32)
    denoiser = Erring(EmpiricalDenoiser(made, jnp.asarray(points)), waves)
    asked = None if calls == 1000 else calls
    process = backward(made, denoiser, name, asked, bounds=(-mean, 1 - mean))
    samples = process.sample(jax.random.key(0), 128, (8, 8, 1)) + mean
    # Rounding alone: the last step ends on the prediction, and that is clipped.
    assert samples.min() > -1e-6
    assert samples.max() < 1 + 1e-6
    assert samples.std() == pytest.approx(points.std(), rel=0.25)
    if calls == 10:  # what is held within the range would leave it
        free = backward(made, denoiser, name, asked).sample(jax.random.key(0), 128, (8, 8, 1))
        assert (free + mean).min() < -1e-5


def test_clipping_is_of_the_predicted_data_alone():
    schedule = linear_schedule(50)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((6, 4, 4, 2)), jnp.float32)
    data = jnp.asarray(rng.uniform(-3, 3, (6, 4, 4, 2)), jnp.float32)
    low, high = np.array([-1.0, -0.5], np.float32), np.array([0.5, 2.0], np.float32)

    def denoiser(x, step):
        return x_0_to_noise(schedule, data, x, step)

    clipped = ClippedDenoiser(denoiser, schedule, jnp.asarray(low), jnp.asarray(high))
    for s in (0, 10, 49):
        steps = jnp.full(6, s)
        got = noise_to_x_0(schedule, clipped(x, steps), x, steps)
        # At the last step a rounding of the noise is 157 times as large in the data.
        np.testing.assert_allclose(got, np.clip(data, low, high), atol=2e-4)
    within = ClippedDenoiser(denoiser, schedule, jnp.float32(-3), jnp.float32(3))
    np.testing.assert_allclose(within(x, steps), denoiser(x, steps), atol=1e-6)


def test_no_process_starts_where_a_step_multiplies_errors():
    """1/sqrt(1 - beta) is 31 at the last step of the cosine schedule, and at most 2 before."""
    cosine = cosine_schedule(1000)
    growth = 1 / np.sqrt(1 - np.asarray(cosine.beta, np.float64))
    assert growth[-1] > 31
    assert growth[-2] < 2.01
    assert first_step(cosine) == 998
    assert first_step(linear_schedule(1000)) == 999
    assert first_step(from_beta(np.array([0.1, 0.999, 0.5, 0.97, 0.999]))) == 2
    assert first_step(from_beta(np.array([0.999]))) == 0

    def denoiser(x, step):
        return jnp.where(step[:, None] > 998, jnp.nan, x)

    for name in SAMPLERS:
        for calls in (None, 10, 1000):
            process = backward(cosine, denoiser, name, calls)
            keys = jax.random.split(jax.random.key(0), 2)
            end = sampling.sampling_loop(process.sampler, process.denoiser, jnp.ones((2, 1)), keys)
            assert np.isfinite(end).all()
            assert process.calls == (10 if calls == 10 else 999)


def test_a_faithful_process_is_the_authors():
    """Noise off at steps 1 and 0; nothing clipped, nothing left out, from N(0, I)."""
    schedule = cosine_schedule(40)
    denoiser = EmpiricalDenoiser(schedule, jnp.asarray([[0.0, 2.0], [2.0, 0.0]]))
    start = partial(matched_start, mean=np.ones(2), mode=np.array([1.0, 0]), largest=9.0, total=9.0)
    process = backward(schedule, denoiser, bounds=(-0.1, 0.1), start=start, faithful=True)
    key = jax.random.key(3)
    own = sample(sampling.AncestralSampler(schedule, faithful=True), denoiser, key, 20, (2,))
    np.testing.assert_array_equal(process.sample(key, 20, (2,)), own)
    assert np.abs(own).max() > 1


@struct.dataclass
class HeunSampler(Sampler):
    """The probability flow d x_hat/d rho = eps by Heun's method: two calls per step."""

    calls_per_step: ClassVar[int] = 2
    schedule: NoiseSchedule

    def step(self, denoiser, state, step, keys):
        time = self.schedule.time
        before = jnp.maximum(step - 1, 0)
        rho = jnp.sqrt(jnp.expm1(2 * time))
        h = jnp.where(step == 0, -rho[0], rho[before] - rho[step]).astype(state.dtype)
        x_hat = state * jnp.exp(time[step]).astype(state.dtype)
        eps = denoiser(state, jnp.full(len(state), step))
        scale = jnp.exp(-time[before]).astype(state.dtype)
        other = denoiser(scale * (x_hat + h * eps), jnp.full(len(state), before))
        mean = jnp.where(step == 0, eps, (eps + other) / 2)
        after = x_hat + h * mean
        return jnp.where(step == 0, after, scale * after)


@struct.dataclass
class TwoNoises(Sampler):
    """Ancestral sampling whose noise is the sum of two draws."""

    schedule: NoiseSchedule

    def step(self, denoiser, state, step, keys):
        halves = jax.vmap(jax.random.split)(keys)
        noise = sum(sampling.normal(halves[:, i], state.shape[1:]) for i in (0, 1))
        own = sampling.AncestralSampler(self.schedule)
        return own.move(denoiser, state, step, noise / jnp.sqrt(jnp.float32(2)))


def test_a_sampler_from_outside_says_how_many_calls_a_step_takes(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "heun", HeunSampler)
    schedule = linear_schedule(1000)
    mixture = GaussianMixtureDenoiser(schedule, jnp.full(4, 0.5), jnp.float32(0.3))
    ends = {}
    for name, calls in (("heun", 60), ("heun", 240), ("dpm-solver-2m", 1000)):
        process = backward(schedule, mixture, name, calls)
        assert process.calls == calls
        assert process.sampler.schedule.num_steps == calls // (2 if name == "heun" else 1)
        ends[name, calls] = process.sample(jax.random.key(0), 64, (4,))
    exact = ends["dpm-solver-2m", 1000]
    errors = [np.abs(ends["heun", calls] - exact).mean() for calls in (60, 240)]
    assert errors[1] < errors[0] / 6  # of second order: 16, but for the last step's first order
    for calls in (3, 21, 2002):
        message = f"calls = {calls} must lie between 4 and 2000, and be a multiple of 2 for heun"
        with pytest.raises(UserError, match=message):
            backward(schedule, mixture, "heun", calls)


def test_a_sampler_may_draw_more_than_one_noise(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "two", TwoNoises)
    schedule, n = linear_schedule(200), 4000
    mixture = GaussianMixtureDenoiser(schedule, jnp.zeros(2), jnp.float32(0.7))
    x = backward(schedule, mixture, "two").sample(jax.random.key(0), n, (2,), batch_size=n)
    own = backward(schedule, mixture).sample(jax.random.key(0), n, (2,), batch_size=n)
    # Two draws of one law, and draws of their own: no noise is used twice.
    assert np.all(np.abs(x.var(0) / own.var(0) - 1) < 5 * np.sqrt(4 / n))
    assert abs(np.corrcoef(x[:, 0], own[:, 0])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / np.sqrt(n)


def test_ancestral_sampling_in_few_of_its_steps_is_warned_of(digits):
    """Not where no step is left out, nor of samplers without noise."""
    points, mean = digits
    few = "ancestral sampling with 20 calls: samples contract"
    for made, name, calls, bounds, text in (
        (linear_schedule(1000), "ancestral", 20, (-mean, 1 - mean), few),
        (linear_schedule(1000), "ancestral", 20, None, "samples are too wide"),
        (linear_schedule(1000), "ancestral", 100, None, None),
        (linear_schedule(1000), "ancestral", None, None, None),
        (linear_schedule(1000), "ddim", 20, None, None),
        (linear_schedule(25), "ancestral", None, None, None),
        (linear_schedule(25), "ancestral", 25, None, None),
        (cosine_schedule(60), "ancestral", 60, None, None),  # begins after its last step
    ):
        denoiser = EmpiricalDenoiser(made, jnp.asarray(points))
        said = backward(made, denoiser, name, calls, bounds=bounds).warning()
        assert said is None if text is None else text in said


def test_an_unknown_sampler_and_impossible_calls_are_refused():
    schedule = linear_schedule(50)
    with pytest.raises(UserError, match="no sampler 'euler'; choose from ancestral, ddim"):
        backward(schedule, lambda x, s: x, "euler")
    for calls in (-1, 0, 1, 51):
        with pytest.raises(UserError, match=f"calls = {calls} must lie between 2 and 50"):
            backward(schedule, lambda x, s: x, "ddim", calls)


def test_the_matched_start_has_the_moments_of_x_t():
    """Exactly: the start is affine in the noise, so its mean and covariance can be read off."""
    rng = np.random.default_rng(0)
    schedule = from_time(np.linspace(0.1, 1.2, 5))
    mode = rng.standard_normal((2, 3))
    mode /= np.linalg.norm(mode)
    mean, largest, rest = rng.standard_normal((2, 3)), 5.0, 0.4
    start = matched_start(schedule, mean, mode, largest, largest + 5 * rest)
    zero = np.asarray(start(jnp.zeros((1, 2, 3))))[0]
    np.testing.assert_allclose(zero, np.exp(-1.2) * mean, rtol=1e-5)
    basis = jnp.eye(6).reshape(6, 2, 3)
    linear = (np.asarray(start(basis)) - zero).reshape(6, 6)
    projector = np.outer(mode, mode)
    data = largest * projector + rest * (np.eye(6) - projector)
    wanted = np.exp(-2.4) * data - np.expm1(-2.4) * np.eye(6)
    np.testing.assert_allclose(linear.T @ linear, wanted, rtol=1e-5, atol=1e-6)


def test_the_flow_needs_the_matched_start():
    """The flow of a Gaussian multiplies a mode by sqrt(lambda/(lambda e^-2T + Delta_T)).

    With T = 0.8, as here, it ends far from the data's variance where it starts from N(0, I).
    """
    schedule = from_time(np.geomspace(1e-4, 0.8, 200))
    mixture = GaussianMixtureDenoiser(schedule, jnp.zeros((1, 2)), jnp.float32(0.3))
    mode = np.array([[1.0, 0.0]])
    start = partial(matched_start, mean=np.zeros((1, 2)), mode=mode, largest=0.09, total=0.18)
    n = 20_000
    variances = [
        backward(schedule, mixture, "dpm-solver-2m", start=begin)
        .sample(jax.random.key(0), n, (1, 2), batch_size=n)
        .var()
        for begin in (start, None)
    ]
    at_end = 0.09 * np.exp(-1.6) - np.expm1(-1.6)
    tolerance = 5 * np.sqrt(1 / n) + 0.005  # of the draws, and of the solver
    assert variances[0] == pytest.approx(0.09, rel=tolerance)
    assert variances[1] == pytest.approx(0.09 / at_end, rel=tolerance)
    assert abs(at_end - 1) > 3 * tolerance


def test_steps_are_spread_as_another_schedule_spreads_its_own():
    schedule = linear_schedule(1000)
    other = from_time(np.array([0.02, 0.3, 0.5, 0.6, 0.7, 1.0, 3.0]))
    reading = clock_of(schedule, other)
    assert np.all(np.diff(reading) > 0)
    steps = spread_steps(reading[(reading >= 0) & (reading <= 6)], 7)
    times = np.asarray(schedule.time)[(reading >= 0) & (reading <= 6)][steps]
    np.testing.assert_allclose(times, np.asarray(other.time), atol=0.01)
    np.testing.assert_allclose(clock_of(schedule, schedule), np.arange(1000), atol=1e-3)


def test_few_samples_compile_few_programs():
    schedule = linear_schedule(30)
    sampler, denoiser = sampling.DDIMSampler(schedule), EmpiricalDenoiser(schedule, jnp.eye(2))
    before = _sample_batch._cache_size()
    whole = sample(sampler, denoiser, jax.random.key(0), 30, (2,))
    for count in (1, 2, 3, 5, 8, 9, 30, 31):
        part = sample(sampler, denoiser, jax.random.key(0), count, (2,))
        assert part.shape == (count, 2)
        np.testing.assert_allclose(part[:30], whole[:count], rtol=1e-5, atol=1e-6)
    assert _sample_batch._cache_size() - before == 2
    for count, size in ((0, 64), (-1, 64), (4, 0)):
        with pytest.raises(UserError, match="must be at least 1"):
            sample(sampler, denoiser, jax.random.key(0), count, (2,), size)
