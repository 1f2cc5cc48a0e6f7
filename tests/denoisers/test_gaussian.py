"""The score of a Gaussian, against d x d matrices in float64 and what is known of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import data_of, quick_jit
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal, norm

from diffusion_jax import covariance
from diffusion_jax.denoisers import DENOISERS, GaussianDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_score
from diffusion_jax.regimes.cloning import fork, u_turns
from diffusion_jax.regimes.spectrum import mode_times
from diffusion_jax.sampling import AncestralSampler, DDIMSampler, DPMSolver2M, sample, sampling_loop
from diffusion_jax.sampling.likelihood import basis_probes, log_likelihood
from diffusion_jax.sampling.respacing import with_calls
from diffusion_jax.schedule import from_time, linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SHAPE = (3, 2, 2)
SCHEDULE = linear_schedule(200)
STEPS = np.array([0, 1, 5, 30, 80, 140, 199])
VALUES = np.array([0.5, 5.0, 10.0, 100.0])
KEY = jax.random.key(0)


def points_of(n, seed=0):
    """Of unequal variances and a mean; the last pixel is the same in all."""
    rng = np.random.default_rng(seed)
    points = (
        rng.standard_normal((n, 12)) * np.geomspace(2, 0.05, 12) @ rng.standard_normal((12, 12))
    )
    points[:, -1] = 0.3
    return (points + rng.standard_normal(12)).reshape(n, *SHAPE).astype(np.float32)


def dense(points, rank, floor):
    """m and the whole covariance, in float64."""
    flat = points.reshape(len(points), -1).astype(np.float64)
    m = flat.mean(0)
    C = (flat - m).T @ (flat - m) / len(flat)
    values, vectors = np.linalg.eigh(C)
    kept = values > 1e-12 * values[-1]
    if rank is not None:
        kept[: len(values) - rank] = False
    V, values = vectors[:, kept].T, values[kept]
    if floor == "rest":
        floor = (np.trace(C) - values.sum()) / (len(m) - len(V))
    return m, V.T @ np.diag(values) @ V + floor * (np.eye(len(m)) - V.T @ V)


def dense_denoised(m, C, x, t):
    law = np.exp(-2 * t) * C - np.expm1(-2 * t) * np.eye(len(m))
    return m + np.exp(-t) * C @ np.linalg.solve(law, x - np.exp(-t) * m)


def noised(points, steps, seed=1):
    rng = np.random.default_rng(seed)
    t = np.asarray(SCHEDULE.time, np.float64)[steps][:, None, None, None]
    a = points[rng.integers(len(points), size=len(steps))]
    z = rng.standard_normal((len(steps), *SHAPE))
    return (np.exp(-t) * a + np.sqrt(-np.expm1(-2 * t)) * z).astype(np.float32)


@quick_jit
def data_and_noise(denoiser, x, step):
    return denoiser.predict_x_0(x, step), denoiser(x, step)


@quick_jit
def flow(denoiser, x, step, end):
    return denoiser.flow(x, step, end)


@pytest.mark.parametrize("n", [7, 40])
@pytest.mark.parametrize(
    ("rank", "floor"), [(None, 0), (None, 0.2), (3, 0), (3, 0.2), (3, "rest"), (0, "rest"), (12, 0)]
)
def test_against_the_whole_covariance(n, rank, floor):
    points = points_of(n)
    denoiser = GaussianDenoiser.fit(SCHEDULE, points, rank, floor)
    m, C = dense(points, rank, floor)
    x = noised(points, STEPS)
    t = np.asarray(SCHEDULE.time, np.float64)[STEPS]
    exact = np.stack(
        [dense_denoised(m, C, *each) for each in zip(x.reshape(-1, 12), t, strict=True)]
    )
    exact = exact.reshape(x.shape)
    got, noise = data_and_noise(denoiser, x, STEPS)
    np.testing.assert_allclose(got, exact, atol=1e-5 * np.abs(exact).max(), rtol=0)
    scale = np.sqrt(-np.expm1(-2 * t)).reshape(-1, 1, 1, 1)
    signal = np.exp(-t).reshape(-1, 1, 1, 1)
    error = np.abs(noise - (x - signal * exact) / scale) * scale
    assert error.max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("n", [7, 40])
def test_fitted_in_blocks_it_is_the_same(n, monkeypatch):
    """And from what else points may be: not centred, uint8, one component."""
    points = points_of(n)
    whole = GaussianDenoiser.fit(SCHEDULE, points)
    monkeypatch.setattr(covariance, "_KEPT_BYTES", 0)
    monkeypatch.setattr(covariance, "_BLOCK_BYTES", 8 * 12 * 5)  # the last block is short
    parts = GaussianDenoiser.fit(SCHEDULE, points)
    assert len(parts.modes) == len(whole.modes) == min(n - 1, 11)
    np.testing.assert_allclose(parts.eigenvalues, whole.eigenvalues, rtol=1e-5)
    x = noised(points, STEPS)
    ends = [data_of(each, x, STEPS) for each in (whole, parts)]
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-5)
    grey = np.arange(24, dtype=np.uint8).reshape(6, 4)
    np.testing.assert_allclose(
        GaussianDenoiser.fit(SCHEDULE, grey).eigenvalues, [4 * 280 / 6 / 255**2], rtol=1e-5
    )
    np.testing.assert_allclose(GaussianDenoiser.fit(SCHEDULE, grey).mean, grey.mean(0) / 255)
    line = GaussianDenoiser.fit(SCHEDULE, np.array([[1.0], [3.0]]))
    np.testing.assert_allclose((line.mean[0], line.eigenvalues[0]), (2, 1))


def test_points_without_variance():
    """One, or one many times: D is the point; with a floor, the filter of that floor."""
    point = points_of(1)
    x = noised(point, STEPS)
    for points in (point, np.repeat(point, 3, 0), np.repeat(point, 30, 0)):
        denoiser = GaussianDenoiser.fit(SCHEDULE, points)
        assert denoiser.modes.shape == (0, 12)
        repeated = np.broadcast_to(point, x.shape)
        np.testing.assert_allclose(data_of(denoiser, x, STEPS), repeated, atol=1e-6)
        assert GaussianDenoiser.fit(SCHEDULE, points, floor="rest").floor == 0
    wide = GaussianDenoiser.fit(SCHEDULE, point, floor=0.5)
    t = np.asarray(SCHEDULE.time, np.float64)[STEPS].reshape(-1, 1, 1, 1)
    gain = 0.5 * np.exp(-t) / (0.5 * np.exp(-2 * t) - np.expm1(-2 * t))
    exact = point + gain * (x - np.exp(-t) * point)
    np.testing.assert_allclose(data_of(wide, x, STEPS), exact, atol=2e-5)


def test_the_floor_that_is_the_rest_keeps_the_trace():
    points = points_of(40)
    denoiser = GaussianDenoiser.fit(SCHEDULE, points, 4, "rest")
    flat = points.reshape(40, -1)
    trace = np.sum((flat - flat.mean(0)) ** 2) / 40
    assert denoiser.eigenvalues.sum() + 8 * denoiser.floor == pytest.approx(trace, rel=1e-5)
    whole = GaussianDenoiser.fit(SCHEDULE, points, floor="rest")
    assert 0 <= whole.floor < 1e-12 * trace  # rounding of what is nothing
    assert GaussianDenoiser.fit(SCHEDULE, flat[:, :3], floor="rest").floor == 0  # no direction left


def rotated():
    """The eigenvalues whose answers are known, along modes across the axes, in float64."""
    modes, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((4, 4)))
    return modes, np.array([0.3, -1.0, 0.2, 2.0])


def with_values(schedule, floor=None):
    """All four modes, or all but the first, whose eigenvalue is the floor."""
    modes, mean = rotated()
    first = 0 if floor is None else 1
    arrays = (mean, modes[first:], VALUES[first:], 0.0 if floor is None else floor)
    return GaussianDenoiser(schedule, *map(jnp.asarray, arrays))


@pytest.mark.parametrize("floor", [None, 0.5])
def test_known_answers(floor):
    with jax.enable_x64(True):
        times = np.sort([0.1, 1.0, 3.0, *mode_times(VALUES)])
        schedule = from_time(times)
        denoiser = with_values(schedule, floor)
        modes, _ = rotated()

        @quick_jit
        def derivatives(denoiser, step):
            both = data_and_noise.__wrapped__
            return jax.jacfwd(lambda y: both(denoiser, y[None], step))(jnp.ones(4))

        def jacobian(time, which):
            step = np.full(1, np.searchsorted(times, time - 1e-9))
            return modes @ np.asarray(derivatives(denoiser, step)[which])[0] @ modes.T

        of_data, of_noise = 0, 1

        times_known = [0.202733, 0.895880, 1.198948, 2.307560]
        np.testing.assert_allclose(mode_times(VALUES), times_known, atol=5e-7)
        for i, time in enumerate(mode_times(VALUES)):
            J = np.exp(-time) * jacobian(time, of_data)
            assert J[i, i] == pytest.approx(0.5, abs=1e-12)
        J = np.exp(-1) * jacobian(1.0, of_data)
        known = np.diag([0.072579, 0.439018, 0.610163, 0.939946])
        np.testing.assert_allclose(J, known, atol=6e-7)
        # The noise predicted is A (x - e^-t m), so its loss is an expectation over a and z.
        A = np.diag(jacobian(1.0, of_noise))
        delta = -np.expm1(-2)
        loss = np.sum((1 - A * delta**0.5) ** 2 + A**2 * np.exp(-2) * VALUES)
        assert loss == pytest.approx(2.061706, abs=1e-6)
        assert np.trace(J) == pytest.approx(loss, rel=1e-12)
        gain = np.diag(J) * np.e
        x_0_loss = np.sum((1 - gain / np.e) ** 2 * VALUES + gain**2 * delta)
        assert x_0_loss == pytest.approx(13.172358, abs=1e-6)
        first, last = (int(np.searchsorted(times, t - 1e-9)) for t in (0.1, 3.0))
        along = quick_jit(jax.jacfwd(lambda y: denoiser.flow(y[None], last, first)[0]))
        factors = modes @ np.asarray(along(jnp.zeros(4))) @ modes.T
        known = np.diag([0.769004, 2.057414, 2.861111, 8.117027])
        np.testing.assert_allclose(factors, known, atol=1e-6)


@pytest.mark.parametrize("floor", [0, 0.4])
def test_the_score_is_the_gradient_of_the_log_density(floor):
    with jax.enable_x64(True):
        schedule = linear_schedule(100)
        points = points_of(7).astype(np.float64)
        denoiser = GaussianDenoiser.fit(schedule, points, None if floor else 4, floor)
        m, C = dense(points, None if floor else 4, floor)
        x = np.random.default_rng(1).standard_normal((3, *SHAPE))

        def log_density(y, signal, precision):
            y = y.reshape(-1) - signal * m
            return -0.5 * y @ precision @ y

        gradient = quick_jit(jax.vmap(jax.grad(log_density), (0, None, None)))
        score = quick_jit(lambda x, s: noise_to_score(schedule, denoiser(x, s), s))
        signals, deltas = np.sqrt(schedule.alpha_bar), np.asarray(schedule.noise_variance)
        for s in (0, 30, 99):
            precision = np.linalg.inv(signals[s] ** 2 * C + deltas[s] * np.eye(12))
            exact = gradient(x, signals[s], precision)
            np.testing.assert_allclose(score(x, np.full(3, s)), exact, rtol=1e-7)


def test_the_flow_solves_its_equation():
    """dx/dt = -x - score, by an adaptive solver, up and down and to t = 0."""
    with jax.enable_x64(True):
        times = np.array([1e-4, 0.1, 0.5, 2.0])
        points = points_of(7).astype(np.float64)
        denoiser = GaussianDenoiser.fit(from_time(times), points, 4, 0.3)
        m, C = dense(points, 4, 0.3)
        x = np.random.default_rng(2).standard_normal((2, *SHAPE))

        def slope(t, y):
            y = y.reshape(2, 12)
            law = np.exp(-2 * t) * C - np.expm1(-2 * t) * np.eye(12)
            score = np.linalg.solve(law, (np.exp(-t) * m - y).T).T
            return (-y - score).reshape(-1)

        for start, end in ((3, 1), (3, -1), (1, 2), (2, 2)):
            span = (times[start], 0.0 if end < 0 else times[end])
            exact = solve_ivp(slope, span, x.reshape(-1), rtol=1e-11, atol=1e-12).y[:, -1]
            got = np.asarray(flow(denoiser, x, start, end))
            np.testing.assert_allclose(got.reshape(-1), exact, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("floor", [0, 0.3])
def test_the_flow_of_a_flow_is_the_flow(floor):
    """With a step of its own for each example, and modes of no variance, down to the data."""
    points = points_of(7)
    x = noised(points, STEPS)
    with jax.enable_x64(True):
        exact = GaussianDenoiser.fit(linear_schedule(200), points, floor=floor)
        exact_x = x.astype(float)
        for middle, end in ((STEPS // 2, -1), (199 - STEPS, STEPS // 3), (0, -1)):
            middle, end = (np.broadcast_to(each, STEPS.shape) for each in (middle, end))
            through = flow(exact, flow(exact, exact_x, STEPS, middle), middle, end)
            np.testing.assert_allclose(through, flow(exact, exact_x, STEPS, end), atol=1e-10)
        ends = np.asarray(flow(exact, exact_x, STEPS, np.full(len(STEPS), -1)))
        one = np.asarray(flow(exact, exact_x[2:3], int(STEPS[2]), 1))
        again = flow(exact, exact_x, STEPS, np.ones(len(STEPS), int))
        np.testing.assert_allclose(one[0], again[2], atol=1e-12)
    denoiser = GaussianDenoiser.fit(SCHEDULE, points, floor=floor)
    got = np.asarray(flow(denoiser, x, STEPS, -1))
    np.testing.assert_allclose(got, ends, atol=1e-5 * np.abs(ends).max())
    # At t = 0 the law is that of the data: with no floor, in the span of the points.
    modes = np.asarray(denoiser.modes)
    left = (got - np.asarray(denoiser.mean)).reshape(len(x), -1)
    left = np.abs(left - left @ modes.T @ modes).max()
    assert left > 0.1 if floor else left < 1e-6 * np.abs(ends).max()


@pytest.mark.parametrize(("kind", "order"), [(DDIMSampler, 1), (DPMSolver2M, 2)])
def test_samplers_go_along_the_flow_with_their_order(kind, order):
    """From t = 2 to 0.05, without the last step, a point of the schedule being all they know."""
    counts, errors = np.array([33, 65, 129]), []
    with jax.enable_x64(True):
        x, keys = np.random.default_rng(0).standard_normal((5, 4)), jax.random.split(KEY, 5)

        @quick_jit
        def error(sampler, denoiser):
            last = denoiser.num_steps
            end = sampling_loop(sampler, denoiser, jnp.asarray(x), keys, last, 1)
            return jnp.abs(end - denoiser.flow(jnp.asarray(x), last - 1, 0)).max()

        for count in counts:
            ratio = np.geomspace(np.expm1(0.1), np.expm1(4.0), count)
            schedule = from_time(0.5 * np.log1p(ratio))  # even in log alpha/sigma
            errors.append(float(error(kind(schedule), with_values(schedule, 0.5))))
    measured = -np.polyfit(np.log(counts - 1), np.log(errors), 1)[0]
    assert measured == pytest.approx(order, abs=0.12), errors


def check_moments(got, points, chance):
    """Means and covariance of samples are the points', but for 4.5 times their standard errors."""
    got, flat = (each.reshape(len(each), -1) for each in (got, points))
    m, C = flat.mean(0), np.cov(flat, rowvar=False, bias=True)
    deviation = np.sqrt(np.diag(C))
    assert np.all(np.abs(got.mean(0) - m) <= 4.5 * deviation / np.sqrt(len(got)) + chance)
    spread = np.sqrt((np.outer(deviation, deviation) ** 2 + C**2) / len(got))
    found = np.cov(got, rowvar=False, bias=True)
    assert np.all(np.abs(found - C) <= 4.5 * spread + chance * deviation.max())


def test_samples_forks_and_turns_have_the_moments():
    """On eight devices. The steps' own error is that of 200 steps: 0.02 of the deviation."""
    points = points_of(40)
    scale = points.std()
    denoiser = DENOISERS["gaussian"](SCHEDULE, points, None)
    sampler = AncestralSampler(SCHEDULE)
    ends = sample(sampler, denoiser, KEY, 2000, SHAPE, 2000)
    check_moments(ends, points, 0.03 * scale)
    forks = fork(sampler, denoiser, jax.random.key(1), [199, 100], SHAPE, 0, 800)
    check_moments(forks.trunk, points, 0.03 * scale)
    check_moments(forks.clones[:, 0, 0], points, 0.03 * scale)
    # Of a mode of variance l a clone keeps the share l e^-2t/(l e^-2t + Delta).
    C = np.cov(points.reshape(40, -1), rowvar=False, bias=True)
    values, vectors = (each[..., -3:] for each in np.linalg.eigh(C))
    trunk, clone = (each[:, 1].reshape(800, -1) @ vectors for each in forks.pairs())
    time = float(SCHEDULE.time[99])
    kept = values * np.exp(-2 * time) / (values * np.exp(-2 * time) - np.expm1(-2 * time))
    assert kept.min() < 0.4 < 0.7 < kept.max()
    for i in range(3):
        correlation = np.corrcoef(trunk[:, i], clone[:, i])[0, 1]
        assert abs(correlation - kept[i]) < 0.01 + 4.5 * (1 - kept[i] ** 2) / 800**0.5
    repeated = np.tile(points, (20, 1, 1, 1))
    turned = u_turns(sampler, denoiser, jax.random.key(2), [120, 5], repeated)
    check_moments(turned[:, 0], points, 0.03 * scale)
    assert np.abs(turned[:, 1] - repeated).mean() < 0.2 * scale
    schedule, few = with_calls(SCHEDULE, denoiser, 50, "log-snr")
    ends = sample(DPMSolver2M(schedule), few, jax.random.key(3), 2000, SHAPE, 2000)
    check_moments(ends, points, 0.03 * scale)


def test_likelihood_is_the_gaussians():
    schedule = linear_schedule(300)
    T = float(schedule.time[-1])
    points = points_of(40)
    denoiser = GaussianDenoiser.fit(schedule, points, 5, 0.3)
    m, C = dense(points, 5, 0.3)
    x = points[:6]
    got, end = log_likelihood(denoiser, schedule, jnp.asarray(x), basis_probes(6, SHAPE))
    end = np.asarray(end).reshape(6, -1)
    # It starts from N(0, I), where the flow's own law at the last step is a little wider.
    law = multivariate_normal(np.exp(-T) * m, np.exp(-2 * T) * C - np.expm1(-2 * T) * np.eye(12))
    got += law.logpdf(end) - norm.logpdf(end).sum(1)
    blur = np.expm1(2 * float(schedule.time[0]))
    exact = multivariate_normal(m, C + blur * np.eye(12)).logpdf(x.reshape(6, -1))
    np.testing.assert_allclose(got, exact, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((0, 2, 2, 1))}, r"shape \(0, 2, 2, 1\).*one point at least"),
        ({"points": np.zeros(3)}, "one point at least"),
        ({"points": np.array([[1.0], [np.nan]])}, "point 1 holds values that are not finite"),
        ({"points": np.array([["a"], ["b"]])}, "give real numbers"),
        ({"rank": -1}, "rank = -1 must be a whole number from 0 to 12"),
        ({"rank": 13}, "rank = 13 must be"),
        ({"rank": 2.5}, "rank = 2.5 must be"),
        ({"floor": -0.1}, "floor = -0.1 must be a variance"),
        ({"floor": np.inf}, "floor = inf must be"),
        ({"floor": "half"}, "floor = 'half' must be"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_cannot_be_fitted_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        GaussianDenoiser.fit(**({"schedule": SCHEDULE, "points": points_of(5)} | change))


def test_too_many_of_both_are_refused(monkeypatch):
    monkeypatch.setattr(covariance, "_LARGEST_GRAM", 6)
    with pytest.raises(UserError, match="take at most 6 images"):
        GaussianDenoiser.fit(SCHEDULE, points_of(7))
