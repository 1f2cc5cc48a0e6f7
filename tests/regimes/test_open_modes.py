"""Open modes, dimensions and identities along time, on laws where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from diffusion_jax.process import diffuse
from diffusion_jax.regimes.jacobian import Spectra, spectra
from diffusion_jax.regimes.open_modes import curves, local_dimension, losses, opening_times
from diffusion_jax.schedule import from_time, linear_schedule

KEY = jax.random.key(1)
SCHEDULE = linear_schedule(200)


def known(values, dimension):
    """The spectra of which these are the eigenvalues (N, k)."""
    values = np.asarray(values, float)
    zeros = np.zeros(len(values))
    return Spectra(values, None, values.sum(1), zeros, zeros, np.zeros_like(values), dimension)


def noised(points, step, seed):
    """x_t of each of the points, and its noise."""
    z = np.random.default_rng(seed).standard_normal(points.shape).astype(np.float32)
    steps = jnp.full(len(points), step)
    return np.asarray(diffuse(SCHEDULE, jnp.asarray(points), steps, jnp.asarray(z))), z


def test_times_at_which_modes_open():
    wanted = [0.202733, 0.895880, 1.198948, 2.307560]
    assert opening_times([0.5, 5, 10, 100]) == pytest.approx(wanted, abs=1e-6)
    # At its own time a mode's eigenvalue is 1/2.
    schedule = from_time(opening_times([0.5, 5, 10, 100]))
    values = jnp.array([0.5, 5.0, 10.0, 100.0])
    denoiser = GaussianDenoiser(schedule, jnp.zeros(4), jnp.eye(4), values, jnp.array(0.0))
    for step in range(4):
        found = spectra(denoiser, schedule, np.zeros((1, 4)), step, KEY, 4)
        assert found.eigenvalues[0, 3 - step] == pytest.approx(0.5, abs=1e-6)


def test_the_dimension_of_planes_with_noise_a_point_and_a_whole_space():
    plane = GaussianDenoiser(
        SCHEDULE, jnp.zeros(12), jnp.eye(12)[:3], jnp.array([2.0, 1.0, 0.7]), jnp.array(1e-3)
    )
    step = round(float(SCHEDULE.step_of_time(0.02)))  # Delta between both variances
    dimension, gap = local_dimension(spectra(plane, SCHEDULE, np.ones((2, 12)), step, KEY, 6))
    assert dimension.tolist() == [3, 3]
    assert (gap > 0.8).all()
    # Late, the plane is closed too; all of space is open to ever so little noise.
    late = spectra(plane, SCHEDULE, np.ones((1, 12)), 199, KEY, 6)
    assert local_dimension(late)[0].tolist() == [0]
    tiny = from_time(np.array([1e-5]))
    full = spectra(plane, tiny, np.ones((1, 12)), 0, KEY, 12)
    assert local_dimension(full)[0].tolist() == [12]
    some = spectra(plane, tiny, np.ones((1, 12)), 0, KEY, 6)
    assert np.isnan(local_dimension(some)[0]).all()  # the rest is not known
    assert some.at_least.all()
    point = EmpiricalDenoiser(SCHEDULE, jnp.ones((1, 12)))
    found = local_dimension(spectra(point, SCHEDULE, np.ones((2, 12)), 100, KEY, 4))
    assert found[0].tolist() == [0, 0]
    assert found[1] == pytest.approx(1)


def test_which_gaps_are_clear():
    values = [
        [0.9, 0.8, 0.1, 0.1],  # a gap of 0.7
        [0.9, 0.7, 0.4, 0.2],  # none over 1/2
        [5.0, 0.3, 0.2, 0.1],  # between classes, over 1
        [0.4, 0.3, 0.2, -0.1],  # before the first
        [0.9, 0.8, 0.8, 0.7],  # perhaps after the last
    ]
    dimension, gap = local_dimension(known(values, 9))
    assert dimension == pytest.approx([2, np.nan, 1, 0, np.nan], nan_ok=True)
    assert gap == pytest.approx([0.7, 0.3, 0.7, 0.6, 0.1])
    assert local_dimension(known(values, 4))[0] == pytest.approx([2, np.nan, 1, 0, 4], nan_ok=True)
    assert known(values, 9).open_modes.tolist() == [2, 2, 1, 0, 4]
    # A plane's noise must have a variance below a ninth of the plane's: the best t is between.
    for noise, clear in [(0.105, True), (0.117, False)]:
        delta = np.sqrt(noise)
        pair = known([[1 / (1 + delta), noise / (noise + delta)]], 2)
        assert (local_dimension(pair)[0] == 1).all() == clear


def test_the_trace_of_an_optimal_denoiser_is_its_loss_along_time():
    """Of points, the exact score; off by 2 % the losses differ, and Stein's identity stays."""
    rng = np.random.default_rng(3)
    points = (rng.standard_normal((40, 6)) * np.geomspace(2, 0.2, 6)).astype(np.float32)
    drawn = points[rng.integers(len(points), size=400)]
    denoiser = EmpiricalDenoiser(SCHEDULE, jnp.asarray(points))
    steps = (20, 60, 100, 150)
    found, exact, off = [], [], []
    for step in steps:
        x, z = noised(drawn, step, step)
        eps = np.asarray(denoiser(jnp.asarray(x), jnp.full(len(x), step)))
        one = spectra(denoiser, SCHEDULE, x, step, KEY, 6)
        found.append(one)
        exact.append(losses(one, eps, z))
        # eps scaled by c has the trace d - c (d - tr M).
        scaled = 6 - 1.02 * (6 - one.trace)
        other = Spectra(one.eigenvalues, None, scaled, *(one.trace_error,) * 2, one.residual, 6)
        off.append(losses(other, 1.02 * eps, z))
    times = np.asarray(SCHEDULE.time, np.float64)[list(steps)]
    table = curves(times, found, exact)
    assert table["trace"].mean == pytest.approx([each.trace.mean() for each in found])
    for name in ("noise_loss", "stein"):
        both = [
            each.trace - getattr(one, name.removeprefix("noise_"))
            for each, one in zip(found, exact, strict=True)
        ]
        for difference in both:
            assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))
    for compared in (exact, off):
        difference = curves(times, found, compared)["difference"]
        assert (np.abs(difference.mean) < 4 * difference.standard_error).all()
        low, high = difference.interval
        assert (low < 0).any()
        assert (high > 0).any()


def test_curves_average_over_draws():
    values = np.array([[[0.9, 0.1], [0.9, 0.8]], [[0.4, 0.1], [0.6, 0.4]]])
    table = curves(np.array([0.1, 1.0]), [known(each, 2) for each in values])
    assert table["open_modes"].mean.tolist() == [1.5, 0.5]
    assert table["trace"].mean == pytest.approx([1.35, 0.75])
    assert table["local_dimension"].mean[0] == 1.5  # 1 and 2
    assert table["local_dimension"].mean[1] == 0  # of the one draw that has a clear gap
    assert table["gap"].mean == pytest.approx([0.8, 0.5])
    assert set(table) == {"open_modes", "trace", "local_dimension", "gap", "asymmetry"}


def test_between_two_gaussians_a_mode_is_wider_open_than_one():
    """On the border, x = 0, M = 1 - Delta/Gamma + Delta e^-2t |m|^2/Gamma^2 along m."""
    denoiser = GaussianMixtureDenoiser(SCHEDULE, 5 * jnp.eye(4)[0], jnp.array(1.0))
    step = 100
    s2, delta = float(SCHEDULE.alpha_bar[step]), float(SCHEDULE.noise_variance[step])
    found = spectra(denoiser, SCHEDULE, np.zeros((1, 4)), step, KEY, 2)
    assert found.eigenvalues[0] == pytest.approx([s2 + 25 * delta * s2, s2], rel=1e-6)
    assert found.eigenvalues[0, 0] > 1
