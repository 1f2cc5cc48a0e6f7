import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_score
from diffusion_jax.regimes import lipschitz
from diffusion_jax.sampling import AncestralSampler
from diffusion_jax.schedule import constant_schedule, cosine_schedule, from_beta, linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def cloud(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def score(points, x, time):
    """The exact empirical score in numpy, at one x."""
    variance = 1 - np.exp(-2 * time)
    logits = -np.sum((x - np.exp(-time) * points) ** 2, axis=1) / (2 * variance)
    weights = np.exp(logits - logits.max())
    return (np.exp(-time) * weights @ points / weights.sum() - x) / variance


def jacobian(points, x, time, step=1e-5):
    """Central differences of the score."""
    shifts = step * np.eye(len(x))
    return np.stack(
        [(score(points, x + s, time) - score(points, x - s, time)) / (2 * step) for s in shifts]
    )


def noisy(points, time, size, seed=1):
    rng = np.random.default_rng(seed)
    chosen = points[rng.integers(0, len(points), size)].astype(np.float64)
    noise = rng.standard_normal(chosen.shape)
    return np.exp(-time) * chosen + np.sqrt(1 - np.exp(-2 * time)) * noise


def flat_cloud():
    """More points than dimensions, on a line short of filling them, off the axes and the origin."""
    across = np.linalg.qr(np.random.default_rng(4).standard_normal((5, 5)))[0]
    return (cloud(30, 4) @ across[:4] + 3).astype(np.float32)


CLOUDS = {
    "fewer points than dimensions": cloud(4, 7),
    "more points than dimensions": cloud(40, 4),
    "a direction without variance": flat_cloud(),
}


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("time", [0.05, 0.4, 1.5])
def test_constants_against_finite_differences(name, time):
    points = CLOUDS[name]
    x = noisy(points, time, 6)
    one_sided, local = lipschitz.local_constants(points, x, time)
    eigenvalues = np.stack(
        [np.linalg.eigvalsh(jacobian(points.astype(np.float64), each, time)) for each in x]
    )
    scale = 1 / (1 - np.exp(-2 * time))
    np.testing.assert_allclose(one_sided, eigenvalues[:, -1], atol=1e-4 * scale)
    np.testing.assert_allclose(local, np.abs(eigenvalues).max(1), atol=1e-4 * scale)


@pytest.mark.parametrize("name", CLOUDS)
def test_constants_against_the_jacobian_of_the_denoiser(name):
    points = CLOUDS[name]
    with jax.enable_x64(True):
        schedule = linear_schedule(100)
        denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points, jnp.float64))
        step = jnp.array([20])
        time = float(schedule.time[20])
        x = noisy(points, time, 5)

        def of_one(x):
            return noise_to_score(schedule, denoiser(x[None], step), step)[0]

        jacobians = np.asarray(jax.jit(jax.vmap(jax.jacobian(of_one)))(jnp.asarray(x)))
    np.testing.assert_allclose(jacobians, np.swapaxes(jacobians, 1, 2), atol=1e-9)
    one_sided, local = lipschitz.local_constants(points, x, time)
    tolerance = 1e-4 / (1 - math.exp(-2 * time))
    np.testing.assert_allclose(one_sided, np.linalg.eigvalsh(jacobians)[:, -1], atol=tolerance)
    np.testing.assert_allclose(local, np.linalg.norm(jacobians, 2, (1, 2)), atol=tolerance)


def test_more_dimensions_than_lanczos_steps():
    points = cloud(150, 200) * np.geomspace(1, 0.05, 200).astype(np.float32)
    x = noisy(points, 1.2, 5)
    one_sided, local = lipschitz.local_constants(points, x, 1.2)
    variance, expected = 1 - math.exp(-2.4), []
    for each in x:
        logits = -np.sum((each - math.exp(-1.2) * points) ** 2, axis=1) / (2 * variance)
        weights = np.exp(logits - logits.max())
        assert np.sum(weights) ** 2 / np.sum(weights**2) > 5  # spread over several points
        covariance = np.cov(points.astype(np.float64).T, aweights=weights, ddof=0)
        expected.append(np.linalg.eigvalsh(covariance)[-1])
    one_sided_expected = math.exp(-2.4) * np.array(expected) / variance**2 - 1 / variance
    np.testing.assert_allclose(one_sided, one_sided_expected, atol=1e-5 / variance)
    np.testing.assert_allclose(local, np.maximum(1 / variance, one_sided_expected), rtol=1e-5)


@pytest.mark.parametrize("time", [1e-3, 0.1, 2.0])
def test_two_points_reach_the_bound_half_way(time):
    points = cloud(2, 9) + 20
    x = math.exp(-time) * points.astype(np.float64).mean(axis=0, keepdims=True)
    one_sided, local = lipschitz.local_constants(points, x, time)
    diameter = lipschitz.diameter(points)
    variance = 1 - math.exp(-2 * time)
    steepest = math.exp(-2 * time) * diameter**2 / (4 * variance**2) - 1 / variance
    assert one_sided[0] == pytest.approx(steepest, rel=1e-4)
    assert local[0] == pytest.approx(lipschitz.lipschitz_bound(diameter, time), rel=1e-4)


@pytest.mark.parametrize("block", [7, 64])
def test_diameter_by_blocks(block, monkeypatch):
    monkeypatch.setattr(lipschitz, "_BLOCK", block)
    points = cloud(50, 6) + 100
    assert lipschitz.diameter(points) == pytest.approx(pdist(points).max(), rel=1e-6)


def test_curve_between_its_limits():
    points = cloud(60, 80)
    times = np.array([0.01, 0.3, 0.8, 1.5, 4.0])
    curve = lipschitz.lipschitz_curve(points, times, jax.random.key(0), 40)
    variance = 1 - np.exp(-2 * times)
    assert curve.local.shape == curve.one_sided.shape == (40, 5)
    # Small t: one training point has all the weight. Large t: all have the same.
    np.testing.assert_allclose(curve.one_sided[:, 0], -1 / variance[0], rtol=1e-6)
    spread = np.linalg.eigvalsh(np.cov(points.T, ddof=0))[-1]
    limit = np.exp(-8) * spread / variance[-1] ** 2 - 1 / variance[-1]
    np.testing.assert_allclose(curve.one_sided[:, -1], limit, atol=2e-4)
    assert np.ptp(curve.one_sided[:, 2:4], axis=0).min() > 0.1
    assert np.all(curve.local >= curve.one_sided)
    assert np.all(curve.local <= curve.bound * (1 + 1e-6))
    expected = lipschitz.lipschitz_bound(pdist(points).max(), times)
    np.testing.assert_allclose(curve.bound, expected, rtol=1e-5)


def test_curve_does_not_depend_on_the_chunk(monkeypatch):
    points, times = cloud(30, 40), np.array([0.5, 1.0])
    whole = lipschitz.lipschitz_curve(points, times, jax.random.key(0), 21)
    monkeypatch.setattr(lipschitz, "_CHUNK_BYTES", 1)
    parts = lipschitz.lipschitz_curve(points, times, jax.random.key(0), 21)
    np.testing.assert_allclose(parts.one_sided, whole.one_sided, atol=1e-5)


SCHEDULES = {
    "linear": linear_schedule(50),
    "cosine": cosine_schedule(20),
    "constant": constant_schedule(40),
    "two long steps": from_beta(np.array([0.5, 0.999])),
}


@pytest.mark.parametrize("name", ["linear", "two long steps"])
def test_factors_are_those_of_the_samplers(name):
    """The steps of both samplers, along a direction in which the points agree."""
    with jax.enable_x64(True):
        schedule = from_beta(np.asarray(SCHEDULES[name].beta, np.float64))
        points = jnp.array([[1.0, -1.0, 0.3], [-2.0, 0.5, 0.3], [0.2, 0.1, 0.3]])
        denoiser = EmpiricalDenoiser(schedule, points)
        sampler = AncestralSampler(schedule)
        x, along = jnp.array([[0.4, -0.3, 1.7]]), jnp.array([[0.0, 0.0, 1.0]])

        def ancestral(x, s):
            return sampler.move(denoiser, x, s, jnp.zeros_like(x))

        def euler(x, s):
            time = schedule.time
            before = jnp.where(s > 0, time[s - 1], jnp.zeros_like(time[0]))
            step = jnp.full(1, s)
            drift = x + 2 * noise_to_score(schedule, denoiser(x, step), step)
            return x + (time[s] - before) * drift

        steps = jnp.arange(schedule.num_steps)
        pushed = [
            jax.jit(jax.vmap(lambda s, f=f: jax.jvp(lambda x: f(x, s), (x,), (along,))[1]))(steps)
            for f in (ancestral, euler)
        ]
        expected = [np.asarray(p)[:, 0, 2] for p in pushed]
        found = [lipschitz.ancestral_factors(schedule), lipschitz.euler_factors(schedule)]
    np.testing.assert_allclose(found[0], expected[0], atol=1e-9)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-9)
    np.testing.assert_allclose(np.asarray(pushed)[:, :, 0, :2], 0, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ancestral_step_always_contracts(name):
    factors = lipschitz.ancestral_factors(SCHEDULES[name])
    assert np.all((factors >= 0) & (factors < 1))


def test_which_euler_steps_are_stable():
    assert lipschitz.stable_euler_steps(linear_schedule(1000)).all()
    # From t = 0.347 to 0 stable; from 3.800 down by 3.454 not.
    np.testing.assert_array_equal(
        lipschitz.stable_euler_steps(SCHEDULES["two long steps"]), [True, False]
    )
    # One step from t to 0 has eta = t: stable up to the root of t coth t = 2.
    for time, stable in ((1.914, True), (1.916, False)):
        schedule = from_beta(np.array([-np.expm1(-2 * time)]))
        assert lipschitz.stable_euler_steps(schedule).tolist() == [stable]


def test_what_cannot_be_asked():
    key = jax.random.key(0)
    with pytest.raises(UserError, match="float type"):
        lipschitz.diameter(np.zeros((3, 4), np.uint8))
    with pytest.raises(UserError, match="finite"):
        lipschitz.diameter(np.array([[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(UserError, match="positive"):
        lipschitz.lipschitz_curve(cloud(3, 4), np.array([0.0, 1.0]), key, 4)


def test_in_many_dimensions_the_local_constant_is_bounded():
    points = cloud(160, 130)
    x = noisy(points, 0.4, 3)
    one_sided, local = lipschitz.local_constants(points, x, 0.4)
    delta = 1 - np.exp(-0.8)
    for x_t, smallest, largest in zip(x, one_sided, local, strict=True):
        squared = ((x_t - np.exp(-0.4) * points.astype(np.float64)) ** 2).sum(1)
        p = np.exp(-(squared - squared.min()) / (2 * delta))
        covariance = np.cov(points.astype(np.float64), rowvar=False, aweights=p / p.sum(), ddof=0)
        k = np.linalg.eigvalsh(covariance)
        exact = np.exp(-0.8) * k / delta**2 - 1 / delta
        assert smallest == pytest.approx(exact[-1], abs=1e-4)
        assert np.abs(exact).max() <= largest + 1e-4
        assert largest == pytest.approx(max(1 / delta, exact[-1]), abs=1e-4)
