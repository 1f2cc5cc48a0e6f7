import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import wasserstein_distance

from diffusion_jax.denoisers import GaussianMixtureDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.flow_error import flow_error
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.sampling import AncestralSampler, sample, sampling_loop
from diffusion_jax.sampling.ode import DDIMSampler, DPMSolver2M
from diffusion_jax.sampling.respacing import RespacedDenoiser, clock, respaced, spread_steps
from diffusion_jax.schedule import from_time, linear_schedule

CENTRE, SIGMA = 2.0, 0.5


def mixture_denoiser(schedule, centre=(CENTRE,)):
    return GaussianMixtureDenoiser(schedule, jnp.asarray(centre), jnp.asarray(SIGMA))


def flow(t, y):
    """dy/dt = -y - score of the one-dimensional mixture."""
    gamma = 1 - np.exp(-2 * t) + SIGMA**2 * np.exp(-2 * t)
    pull = CENTRE * np.exp(-t)
    return -y - (pull * np.tanh(pull * y / gamma) - y) / gamma


@pytest.mark.parametrize(("kind", "order"), [(DDIMSampler, 1), (DPMSolver2M, 2)])
def test_order_of_convergence_on_the_mixture(kind, order):
    """Against an adaptive solver of the same ODE, from t = 2 to 0.05, without the last step."""
    first, last = 0.05, 2.0
    y = np.array([-2.0, -0.3, 0.1, 0.8, 1.7])
    exact = solve_ivp(flow, (last, first), y, rtol=1e-12, atol=1e-12).y[:, -1]
    errors, counts = [], np.array([33, 65, 129, 257])
    with jax.enable_x64(True):
        for count in counts:
            # even in log alpha/sigma = -1/2 log(e^2t - 1)
            ratio = np.geomspace(np.expm1(2 * first), np.expm1(2 * last), count)
            schedule = from_time(0.5 * np.log1p(ratio))
            keys = jax.random.split(jax.random.key(0), len(y))
            x = jnp.asarray(y)[:, None]
            end = sampling_loop(kind(schedule), mixture_denoiser(schedule), x, keys, int(count), 1)
            errors.append(np.max(np.abs(np.asarray(end)[:, 0] - exact)))
    measured = -np.diff(np.log(errors)) / np.diff(np.log(counts - 1))
    assert np.all(np.abs(measured - order) < 0.15), measured
    assert errors[-1] < 0.02 * (0.02 if order == 2 else 1)


def reference(schedule, x, denoiser, multistep):
    """DPM-Solver++ as published, in x, alpha, sigma and lambda; DDIM is its first order."""
    alpha_bar = np.exp(-2 * np.asarray(schedule.time, np.float64))
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    log_ratio = np.log(alpha / sigma)
    data = []
    for s in reversed(range(len(alpha))):
        data.append((x - sigma[s] * denoiser(x)) / alpha[s])
        if s == 0:
            return data[-1]
        h = log_ratio[s - 1] - log_ratio[s]
        mean = data[-1]
        if multistep and len(data) > 1:
            r = (log_ratio[s] - log_ratio[s + 1]) / h
            mean = (1 + 1 / (2 * r)) * data[-1] - data[-2] / (2 * r)
        x = sigma[s - 1] / sigma[s] * x - alpha[s - 1] * np.expm1(-h) * mean
    raise AssertionError


@pytest.mark.parametrize("kind", [DDIMSampler, DPMSolver2M])
@pytest.mark.parametrize("times", [(0.01,), (0.01, 0.3), (0.01, 0.1, 0.4, 1.0, 2.5)])
def test_trajectories_are_the_published_ones(kind, times):
    x = np.random.default_rng(0).standard_normal((3, 2))
    with jax.enable_x64(True):
        schedule = from_time(np.array(times))
        keys = jax.random.split(jax.random.key(0), 3)
        got = sampling_loop(kind(schedule), lambda x, s: jnp.sin(x), jnp.asarray(x), keys)
        expected = reference(schedule, x, np.sin, kind is DPMSolver2M)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_ddim_writes_the_noise_back():
    """x <- sqrt(alpha_bar_{s-1}) D + sqrt(1 - alpha_bar_{s-1}) eps."""
    schedule = linear_schedule(50)
    a = np.asarray(schedule.alpha_bar, np.float64)
    x = np.random.default_rng(1).standard_normal((4, 5))
    eps, keys = np.sin(x), jax.random.split(jax.random.key(0), 4)
    for s in (1, 2, 30, 49):
        data = (x - np.sqrt(1 - a[s]) * eps) / np.sqrt(a[s])
        got = DDIMSampler(schedule).step(
            lambda x, s: jnp.sin(x), jnp.asarray(x, jnp.float32), jnp.int32(s), keys
        )
        expected = np.sqrt(a[s - 1]) * data + np.sqrt(1 - a[s - 1]) * eps
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_a_run_that_is_forked_goes_on():
    """DDIM from x alone is exact; 2M has forgotten its last step and makes the next as DDIM."""
    schedule = linear_schedule(30)
    denoiser = mixture_denoiser(schedule)
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(jax.random.key(1), (4, 1))
    run = jax.jit(sampling_loop)
    ddim, solver = DDIMSampler(schedule), DPMSolver2M(schedule)
    half = run(ddim, denoiser, x, keys, 30, 12)
    np.testing.assert_allclose(
        run(ddim, denoiser, half, keys, 12, 0), run(ddim, denoiser, x, keys), rtol=1e-6
    )
    one = run(solver, denoiser, half, keys, 12, 11)
    np.testing.assert_array_equal(one, run(ddim, denoiser, half, keys, 12, 11))
    second = run(solver, denoiser, half, keys, 12, 10)
    assert np.max(np.abs(np.asarray(second - run(ddim, denoiser, half, keys, 12, 10)))) > 1e-4


@pytest.mark.parametrize("name", ["step", "time", "log-snr", "sigma"])
def test_steps_are_spread_evenly_over_the_clock(name):
    schedule = linear_schedule()
    reading = clock(schedule, name)
    for calls in (2, 7, 40):
        steps = spread_steps(reading, calls)
        assert (steps[0], steps[-1], len(steps)) == (0, 999, calls)
        assert np.all(np.diff(steps) > 0)
        # No further from even than half a step of the schedule, but for steps that would coincide.
        even = np.linspace(reading[0], reading[-1], calls)
        width = np.abs(np.gradient(reading))
        free = np.flatnonzero(np.diff(steps, prepend=-9) > 1)
        free = free[np.diff(steps, append=1999)[free] > 1]
        assert len(free) > 0
        assert np.all(np.abs(reading[steps] - even)[free] < 0.75 * width[steps][free])
    np.testing.assert_array_equal(spread_steps(reading, 1000), np.arange(1000))


def test_the_clocks_readings():
    schedule = linear_schedule()
    a = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    ratio = np.sqrt((1 - a) / a)
    np.testing.assert_allclose(clock(schedule, "time"), -np.log(a) / 2, rtol=1e-5)
    np.testing.assert_allclose(clock(schedule, "log-snr"), -2 * np.log(ratio), atol=1e-4)
    np.testing.assert_allclose(clock(schedule, "sigma"), ratio ** (1 / 7), rtol=1e-5)


def test_bad_respacing_is_refused():
    reading = np.arange(10.0)
    for calls in (1, 11):
        with pytest.raises(UserError, match=f"2 to 10 calls, not {calls}"):
            spread_steps(reading, calls)
    with pytest.raises(UserError, match="a clock must"):
        spread_steps(np.array([0.0, 1.0, 1.0, 2.0]), 3)
    with pytest.raises(UserError, match="no clock 'hours'"):
        clock(linear_schedule(), "hours")


def test_a_respaced_schedule_has_the_levels_of_its_steps():
    schedule = linear_schedule()
    steps = spread_steps(clock(schedule, "log-snr"), 25)
    few = respaced(schedule, steps)
    np.testing.assert_allclose(few.alpha_bar, schedule.alpha_bar[steps], rtol=1e-6)
    np.testing.assert_allclose(few.noise_variance, schedule.noise_variance[steps], rtol=1e-6)
    told = RespacedDenoiser(lambda x, s: x * s.astype(x.dtype)[:, None], jnp.asarray(steps))
    got = told(jnp.ones((3, 1)), jnp.array([0, 7, 24]))
    np.testing.assert_array_equal(np.asarray(got)[:, 0], steps[[0, 7, 24]])


def test_all_steps_respaced_are_the_schedule():
    schedule = linear_schedule(60)
    denoiser = mixture_denoiser(schedule)
    steps = spread_steps(clock(schedule, "step"), 60)
    few, told = respaced(schedule, steps), RespacedDenoiser(denoiser, jnp.asarray(steps))
    for kind in (AncestralSampler, DDIMSampler, DPMSolver2M):
        whole = sample(kind(schedule), denoiser, jax.random.key(0), 50, (1,))
        got = sample(kind(few), told, jax.random.key(0), 50, (1,))
        np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-4)


def test_deterministic_samples_of_one_seed_agree_between_numbers_of_calls():
    """The ODE decides; but for the few that start near the border of the classes."""
    schedule = linear_schedule()
    denoiser = mixture_denoiser(schedule, (0.5, 1.0))
    drawn = []
    for calls in (80, 160):
        steps = spread_steps(clock(schedule, "sigma"), calls)
        sampler = DPMSolver2M(respaced(schedule, steps))
        told = RespacedDenoiser(denoiser, jnp.asarray(steps))
        drawn.append(sample(sampler, told, jax.random.key(2), 500, (2,), batch_size=500))
    assert np.quantile(np.abs(drawn[0] - drawn[1]), 0.95) < 0.01
    ancestral = sample(AncestralSampler(schedule), denoiser, jax.random.key(2), 500, (2,), 500)
    assert np.median(np.abs(ancestral - drawn[1])) > 0.1


@pytest.mark.parametrize("kind", [DDIMSampler, DPMSolver2M])
def test_errors_by_quantiles_are_those_of_samples(kind):
    """The library's float32 samples in d = 4, folded and projected, against drawn data."""
    mixture, n = GaussianMixture(4, 1.0, 0.5), 40_000
    schedule = linear_schedule()
    steps = spread_steps(clock(schedule, "step"), 8)
    with jax.enable_x64(True):
        fine = from_time(np.asarray(schedule.time, np.float64)[steps])
        error = flow_error(kind(fine), mixture)
    few = respaced(schedule, steps)
    denoiser = GaussianMixtureDenoiser(few, jnp.ones(4), jnp.asarray(0.5))
    x = sample(kind(few), denoiser, jax.random.key(3), n, (4,), batch_size=n).astype(np.float64)
    data, _ = mixture.sample(np.random.default_rng(0), n)
    projected = [np.abs(points.sum(1)) / 2 for points in (x, data)]
    across = [(points[:, 0] - points[:, 1]) / np.sqrt(2) for points in (x, data)]
    noise = 4 * 0.5 * np.sqrt(2 / n)
    assert error.projection > 2 * noise
    assert error.orthogonal > 2 * noise
    assert abs(wasserstein_distance(*projected) - error.projection) < noise
    assert abs(wasserstein_distance(*across) - error.orthogonal) < noise


def test_many_steps_leave_the_start_alone():
    """With the start's variance matched, what is left of 2M's error is the discretization's."""
    mixture = GaussianMixture(256, 1.0, 1.0)
    with jax.enable_x64(True):
        schedule = linear_schedule()
        coarse, fine = (
            flow_error(
                DPMSolver2M(respaced(schedule, spread_steps(clock(schedule, "sigma"), calls))),
                mixture,
                matched_start=True,
            )
            for calls in (60, 240)
        )
        plain = flow_error(DPMSolver2M(schedule), mixture)
    assert fine.projection < coarse.projection / 8
    assert plain.projection > 10 * fine.projection
