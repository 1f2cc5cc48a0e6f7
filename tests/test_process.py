import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from diffusion_jax import process
from diffusion_jax.schedule import linear_schedule

SCHEDULE = linear_schedule(50)


def test_discrete_process_has_the_closed_forms_moments():
    """x <- sqrt(1 - beta) x + sqrt(beta) z, simulated step by step, against `diffuse`'s law."""
    num_samples, start, last = 40_000, 0.7, 30
    x = np.full(num_samples, start)
    rng = np.random.default_rng(0)
    for beta in np.asarray(SCHEDULE.beta[: last + 1], np.float64):
        x = np.sqrt(1 - beta) * x + np.sqrt(beta) * rng.standard_normal(num_samples)
    step = jnp.full(num_samples, last)
    noise = jax.random.normal(jax.random.key(0), (num_samples, 1))
    closed = np.asarray(process.diffuse(SCHEDULE, jnp.full((num_samples, 1), start), step, noise))
    alpha_bar = float(SCHEDULE.alpha_bar[last])
    for draws in (x, closed.ravel()):
        error = np.sqrt((1 - alpha_bar) / num_samples)
        assert abs(draws.mean() - np.sqrt(alpha_bar) * start) < 4 * error
        assert abs(draws.var() / (1 - alpha_bar) - 1) < 4 * np.sqrt(2 / num_samples)


def test_diffuse_is_exact_at_given_noise():
    rng = np.random.default_rng(1)
    x_0, noise = rng.standard_normal((2, 3, 4, 5, 2)).astype(np.float32)
    step = np.array([0, 20, 49])
    a = np.cumprod(1 - np.asarray(SCHEDULE.beta, np.float64))[step][:, None, None, None]
    got = process.diffuse(SCHEDULE, jnp.asarray(x_0), jnp.asarray(step), jnp.asarray(noise))
    np.testing.assert_allclose(got, np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise, atol=1e-6)


def test_conversions_recover_what_made_x_t():
    """From x_0 and noise: each quantity by its definition, and back, with no common code."""
    rng = np.random.default_rng(2)
    x_0, noise = (jnp.asarray(a, jnp.float32) for a in rng.standard_normal((2, 3, 4, 4, 1)))
    step = jnp.array([1, 10, 49])
    a = np.cumprod(1 - np.asarray(SCHEDULE.beta, np.float64))[np.asarray(step)][:, None, None, None]
    x_t = process.diffuse(SCHEDULE, x_0, step, noise)
    score = (-(x_t - np.sqrt(a) * x_0) / (1 - a)).astype(np.float32)

    # x_0 is 360 times smaller than x_t at the last step: its rounding error is as much larger.
    scale = 1 / np.sqrt(a)
    got = process.noise_to_x_0(SCHEDULE, noise, x_t, step)
    assert np.all(abs(got - x_0) < 1e-6 * scale)
    np.testing.assert_allclose(process.x_0_to_noise(SCHEDULE, x_0, x_t, step), noise, atol=1e-4)
    np.testing.assert_allclose(process.noise_to_score(SCHEDULE, noise, step), score, rtol=2e-3)
    np.testing.assert_allclose(process.score_to_noise(SCHEDULE, score, step), noise, atol=1e-3)


@pytest.mark.parametrize("sde", [process.VPSDE(), process.VPSDE(2.0, 2.0)])
@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
def test_vpsde_signal_is_the_integral_of_beta(sde, time):
    integral, _ = quad(lambda t: float(sde.beta(t)), 0, time)
    assert float(sde.alpha_bar(time)) == pytest.approx(np.exp(-integral), rel=1e-5)


def test_linear_schedule_tends_to_the_vpsde():
    """alpha_bar of the L-step schedule at t = s/L; the gap halves as L doubles."""
    sde = process.VPSDE(0.1, 20.0)
    gaps = []
    for num_steps in (1000, 2000, 4000):
        schedule = linear_schedule(num_steps)
        middle = num_steps // 2
        gaps.append(abs(float(schedule.time[middle - 1] + 0.5 * jnp.log(sde.alpha_bar(0.5)))))
    np.testing.assert_allclose(np.array(gaps[:-1]) / gaps[1:], 2, rtol=0.1)


def moments(sde, mean, variance, start, end, num_steps):
    """The Euler-Maruyama scheme's own mean and variance, step by step in float64."""
    dt = (end - start) / num_steps
    for k in range(num_steps):
        beta = sde.beta_min + (start + k * dt) * (sde.beta_max - sde.beta_min)
        mean *= 1 - beta * dt / 2
        variance = variance * (1 - beta * dt / 2) ** 2 + beta * dt
    return mean, variance


def test_euler_maruyama_against_its_moment_recursion():
    sde, num_samples = process.VPSDE(0.1, 20.0), 40_000
    x = 1.5 + 0.5 * jax.random.normal(jax.random.key(1), (num_samples,))
    for num_steps in (8, 40):  # coarse enough to differ from the exact process
        got = np.asarray(sde.euler_maruyama(jax.random.key(2), x, 0.0, 0.4, num_steps))
        mean, variance = moments(sde, 1.5, 0.25, 0.0, 0.4, num_steps)
        assert abs(got.mean() - mean) < 4 * np.sqrt(variance / num_samples)
        assert abs(got.var() / variance - 1) < 4 * np.sqrt(2 / num_samples)


def test_euler_maruyama_stationary_variance():
    sde, dt, num_samples = process.VPSDE(2.0, 2.0), 0.5, 40_000
    x = jax.random.normal(jax.random.key(3), (num_samples,))
    got = np.asarray(sde.euler_maruyama(jax.random.key(4), x, 0.0, 20.0, 40))
    exact = 1 / (1 - 2.0 * dt / 4)
    assert abs(got.var() / exact - 1) < 4 * np.sqrt(2 / num_samples)


def test_euler_maruyama_has_weak_order_one():
    """Fitted from the recursion, which the tests above tie to the code: no Monte-Carlo noise."""
    sde = process.VPSDE(0.1, 20.0)
    alpha_bar = np.exp(-0.1 - 0.5 * 19.9)
    exact = 1.5 * np.sqrt(alpha_bar), 0.25 * alpha_bar + 1 - alpha_bar
    steps = np.array([200, 400, 800, 1600])
    errors = np.array(
        [np.abs(np.subtract(moments(sde, 1.5, 0.25, 0.0, 1.0, n), exact)) for n in steps]
    )
    for error in errors.T:
        order = -np.polyfit(np.log(steps), np.log(error), 1)[0]
        assert order == pytest.approx(1, abs=0.1)
