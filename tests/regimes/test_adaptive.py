from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, foldnorm, norm

from diffusion_jax.denoisers import GaussianMixtureDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import adaptive
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.sampler_error import sampler_error, steps_needed
from diffusion_jax.sampling import AncestralSampler, sampling_loop
from diffusion_jax.schedule import linear_schedule

TIMES = np.geomspace(1e-4, 10, 600)


@pytest.mark.parametrize("num_steps", [2, 25, 1000])
def test_schedule_has_its_ends_and_valid_betas(num_steps):
    schedule = adaptive.adaptive_schedule(
        TIMES, adaptive.mixture_density(TIMES, GaussianMixture(256, 1.0, 0.3)), num_steps
    )
    beta, time = np.asarray(schedule.beta), np.asarray(schedule.time)
    assert schedule.num_steps == num_steps
    assert np.all((beta > 0) & (beta < 1))
    assert np.all(np.diff(time) > 0)
    assert beta[0] == pytest.approx(0.1 / num_steps, rel=1e-4)
    assert time[-1] == pytest.approx(5.0589, abs=1e-4)


def test_steps_follow_their_density():
    first, last, floor, num_steps = 0.1, 4.0, 0.25, 4001
    times = np.linspace(0.05, 5, 2000)
    density = np.exp(-((times - 2) ** 2))
    schedule = adaptive.adaptive_schedule(times, density, num_steps, first, last, floor)
    total = quad(lambda t: np.exp(-((t - 2) ** 2)), first, last)[0]
    counts, edges = np.histogram(np.asarray(schedule.time)[1:], np.linspace(first, last, 14))
    wanted = [
        (1 - floor) * quad(lambda t: np.exp(-((t - 2) ** 2)), a, b)[0] / total
        + floor * (b - a) / (last - first)
        for a, b in pairwise(edges)
    ]
    np.testing.assert_allclose(counts / (num_steps - 1), wanted, atol=1.5 / num_steps)


def test_equal_steps_in_the_logarithm_of_the_variance():
    # One mode and hardly a floor: |d log Gamma| is the same in every step.
    eigenvalue = 0.04
    density = adaptive.step_density(TIMES, np.array([eigenvalue]))
    schedule = adaptive.adaptive_schedule(TIMES, density, 200, 1e-4, 4.0, floor=1e-6)
    time = np.asarray(schedule.time, np.float64)
    gamma = -np.expm1(-2 * time) + eigenvalue * np.exp(-2 * time)
    steps = np.diff(np.log(gamma))
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.01)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 1.5])
def test_error_density_from_the_excess_entropy_is_that_of_modes_and_class(sigma):
    """d (u^2 + f' + f''/2) = (d - 1) v^2 + E A^2, with A along m from its definition."""
    mixture = GaussianMixture(8, 1.0, sigma)
    z = np.linspace(-10, 10, 4001)
    h = 1e-3
    for t in (0.4, 1.0, 1.7):
        before, here, after = mixture.excess_entropy(np.array([t - h, t, t + h]), 1000)
        u = 1 / np.expm1(2 * t)
        slope, curvature = (after - before) / (2 * h), (after - 2 * here + before) / h**2
        from_entropy = 8 * (u * u + slope + curvature / 2)
        s, gamma = float(mixture.separation(t)), float(mixture.gamma(t))
        v = (1 - sigma**2) * np.exp(-2 * t) / gamma
        along = v - s / np.cosh(s + np.sqrt(s) * z) ** 2 / gamma
        direct = 7 * v * v + np.trapezoid(along**2 * norm.pdf(z), z)
        assert from_entropy == pytest.approx(direct, rel=1e-4)
    s, gamma = mixture.separation(TIMES), mixture.gamma(TIMES)
    v = (1 - sigma**2) * np.exp(-2 * TIMES) / gamma
    trace = 8 * v - 2 * s * (1 - mixture.phi(TIMES)) / gamma
    bound = adaptive.entropy_error(TIMES, mixture.excess_entropy(TIMES, 1000), 8)
    early = (TIMES > 0.01) & (TIMES < 1)
    np.testing.assert_allclose(np.sqrt(8 * bound[early]), np.abs(trace[early]), atol=0.02)


def test_class_error_is_the_square_of_the_covariance_along_the_centres():
    mixture = GaussianMixture(1024)
    got = adaptive.class_error(TIMES, mixture.phi(TIMES))
    z = np.linspace(-10, 10, 4001)
    for i in np.flatnonzero((TIMES > 2.3) & (TIMES < 5))[::6]:
        s = float(mixture.separation(TIMES[i]))
        exact = np.trapezoid((s / np.cosh(s + np.sqrt(s) * z) ** 2) ** 2 * norm.pdf(z), z)
        assert got[i] == pytest.approx(exact, rel=0.03)


def test_divergence_of_the_paths_is_that_of_the_density():
    """One Gaussian mode: the exact sum over steps tends to (int sqrt(g))^2/L, and not less."""
    eigenvalue, first, last, num_steps = 0.05, 1e-3, 4.0, 2000
    density = adaptive.step_density(TIMES, np.array([eigenvalue]))

    def divergence(time):
        h, t = np.diff(time), time[1:]
        beta, signal = -np.expm1(-2 * h), np.exp(-2 * t)
        posterior = eigenvalue * (1 - signal) / (1 - signal + eigenvalue * signal)
        share = -np.expm1(-2 * time[:-1]) / (1 - signal)
        share = share + np.exp(-2 * time[:-1]) * beta * posterior / (1 - signal) ** 2
        return 0.5 * np.sum(share - 1 - np.log(share))

    schedule = adaptive.adaptive_schedule(TIMES, density, num_steps, first, last, floor=1e-6)
    found = divergence(np.asarray(schedule.time, np.float64))
    length = 0.5 * np.log(
        (1 - (1 - eigenvalue) * np.exp(-2 * last)) / (1 - (1 - eigenvalue) * np.exp(-2 * first))
    )
    assert found == pytest.approx(length**2 / num_steps, rel=0.02)
    assert divergence(np.linspace(first, last, num_steps)) > 2 * found
    assert divergence(np.geomspace(first, last, num_steps)) > 1.4 * found


def test_errors_by_quadrature_are_those_of_the_sampler():
    """The library's sampler and denoiser, simulated in d = 4."""
    sigma, d, num_steps, pairs, fork = 0.3, 4, 30, 20_000, 14
    mixture = GaussianMixture(d, 1.0, sigma)
    schedule = linear_schedule(num_steps)
    error = sampler_error(schedule, mixture)
    denoiser = GaussianMixtureDenoiser(schedule, jnp.ones(d), jnp.float32(sigma))
    sampler = AncestralSampler(schedule)
    run = jax.jit(sampling_loop)
    keys = [jax.random.split(key, pairs) for key in jax.random.split(jax.random.key(3), 3)]
    start = jax.random.normal(jax.random.key(4), (pairs, d))
    # Steps L-1..fork+1 are shared: the state before step `fork` is at times[fork].
    trunk = run(sampler, denoiser, start, keys[0], num_steps, fork + 1)
    ends = [np.asarray(run(sampler, denoiser, trunk, key, fork + 1, 0)) for key in keys[1:]]

    same = int(np.sum((ends[0].sum(1) > 0) == (ends[1].sum(1) > 0)))
    low, high = binom.ppf([5e-4, 1 - 5e-4], pairs, error.phi[fork])
    assert low <= same <= high
    projection = np.sort(np.abs(ends[0].sum(1)) / 2)
    # Quantiles between tabulated ones, since scipy looks for each of them by itself.
    table = np.linspace(0, 2 + 6 * sigma, 20_000)
    below = foldnorm(2 / sigma, scale=sigma).cdf(table)
    exact = np.interp((np.arange(pairs) + 0.5) / pairs, below, table)
    # The distance of two empirical laws fluctuates by about sigma/sqrt(pairs).
    noise = 2 * sigma / np.sqrt(pairs)
    assert abs(np.mean(np.abs(projection - exact)) - error.projection) < noise
    orthogonal = ends[0] @ (np.array([1.0, -1, 1, -1]) / 2)
    deviation = np.sqrt(2 / np.pi) * abs(orthogonal.std() - sigma)
    assert deviation == pytest.approx(error.orthogonal, abs=2.5 * sigma / np.sqrt(pairs))


def test_projection_of_a_single_gaussian_follows_the_variance_recursion():
    # The centres nearly coincide, so that the projection is one component like the others, folded.
    error = sampler_error(linear_schedule(40), GaussianMixture(2, 1e-4, 0.4))
    assert error.projection == pytest.approx(error.orthogonal, rel=1e-4)
    # A side is all that the clones have in common, and step 0 no longer changes it.
    assert error.phi[0] == pytest.approx(1, abs=1e-9)
    assert np.all(np.diff(error.phi) < 0)


def test_errors_vanish_with_the_steps():
    mixture = GaussianMixture(64, 1.0, 0.5)
    errors = [sampler_error(linear_schedule(num_steps), mixture) for num_steps in (100, 200, 400)]
    for a, b in pairwise(errors):
        assert a.projection / b.projection == pytest.approx(2, rel=0.15)
        assert a.orthogonal / b.orthogonal == pytest.approx(2, rel=0.15)
    assert errors[-1].phi_bias < 2e-3


@pytest.mark.parametrize(("sigma", "projection", "phi"), [(1.0, 2.5, 5), (0.1, 3, 3)])
def test_adaptive_steps_beat_the_linear_ones(sigma, projection, phi):
    mixture = GaussianMixture(1024, 1.0, sigma)
    ours = adaptive.adaptive_schedule(TIMES, adaptive.mixture_density(TIMES, mixture), 50)
    mine, theirs = sampler_error(ours, mixture), sampler_error(linear_schedule(50), mixture)
    assert theirs.projection > projection * mine.projection
    assert theirs.phi_bias > phi * mine.phi_bias


def test_steps_needed_is_a_power_law_after_the_last_failure():
    steps = np.array([10, 20, 40, 80])
    assert steps_needed(steps, 3.0 / steps, 3 / 29) == pytest.approx(29)
    assert steps_needed(steps, np.array([1.0, 4, 1, 0.5]), 2) == pytest.approx(20 * np.sqrt(2))
    assert steps_needed(steps, 3.0 / steps, 1) == 10
    assert np.isnan(steps_needed(steps, 3.0 / steps, 0.01))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adaptive.step_density(TIMES), "needs a spectrum"),
        (lambda: adaptive.step_density(TIMES, excess_entropy=TIMES), "dimension"),
        (lambda: adaptive.class_error(TIMES, np.ones(600)), "no speciation time"),
        (lambda: adaptive.adaptive_schedule(TIMES, np.zeros(600), 10), "positive somewhere"),
        (lambda: adaptive.adaptive_schedule(TIMES, np.full(600, np.nan), 10), "finite"),
        (lambda: adaptive.adaptive_schedule(TIMES[::-1], TIMES, 10), "increase"),
        (lambda: adaptive.adaptive_schedule(TIMES, TIMES, 1), "at least 2 steps"),
        (lambda: adaptive.adaptive_schedule(TIMES, TIMES, 10, 3.0, 2.0), "first < last"),
        (lambda: adaptive.adaptive_schedule(TIMES, TIMES, 10, floor=0.0), "floor"),
    ],
)
def test_what_cannot_be_done_is_said(call, message):
    with pytest.raises(UserError, match=message):
        call()
