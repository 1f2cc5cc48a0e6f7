"""U-turns in numbers: sums by brute force, fields of a known correlation, and laws of returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import cloning, uturns
from diffusion_jax.regimes.cloning import Cloning
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.sampling import AncestralSampler
from diffusion_jax.schedule import linear_schedule

SCHEDULE = linear_schedule(500)
TIMES = np.asarray(SCHEDULE.time, np.float64)
# Intervals by percentiles cover some less than 95 %; four standard errors are missed by one in
# 16 000 draws of the normal law.
FAR = 4


def pairs_of(height, width):
    """Distances of all pairs of pixels, and to what these round."""
    place = np.stack(np.divmod(np.arange(height * width), width), axis=1)
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    return distance, np.rint(distance).astype(int)


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (3, 2, 6, 4), (2, 2, 1, 5)])
def test_sums_over_pairs_are_those_of_the_covariance(shape):
    change = np.random.default_rng(0).exponential(size=shape)
    distance, rounded = pairs_of(*shape[2:])
    flat = change.reshape(*shape[:2], -1)
    covariance = np.stack([np.cov(each, rowvar=False) for each in flat])
    wanted = np.stack([np.bincount(rounded.ravel(), each.ravel()) for each in covariance])
    np.testing.assert_allclose(uturns.pair_sums(change), wanted, atol=1e-12)
    own = uturns.distances(*shape[2:])
    count = np.bincount(rounded.ravel())
    np.testing.assert_array_equal(own.pairs, count)
    np.testing.assert_allclose(own.mean, np.bincount(rounded.ravel(), distance.ravel()) / count)
    # And what is made of them, of all images together.
    found = uturns.correlated(np.ones(1), uturns.pair_sums(change)[:, None], shape[2:])
    total = covariance.sum(axis=0)
    assert found.susceptibility.mean[0] == pytest.approx(total.sum() / np.trace(total))
    function = np.bincount(rounded.ravel(), total.ravel()) / count
    np.testing.assert_allclose(found.function[0], function / function[0], atol=1e-12)


def test_overlap_and_changes():
    rng = np.random.default_rng(1)
    before, after = rng.standard_normal((3, 2, 2, 2)), rng.standard_normal((3, 4, 2, 2, 2))
    mean = rng.standard_normal((2, 2, 2))
    a, b = (before - mean).reshape(3, 1, -1), (after - mean).reshape(3, 4, -1)
    wanted = np.einsum("nip,nrp->nr", a, b) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)
    np.testing.assert_allclose(uturns.overlap(before, after, mean), wanted)
    change = uturns.changes(before, after)
    assert change[1, 3, 0, 1] == pytest.approx(np.linalg.norm(after[1, 3, 0, 1] - before[1, 0, 1]))
    itself = np.repeat(before[:, None], 2, axis=1)
    np.testing.assert_allclose(uturns.overlap(before, itself, mean), 1)
    assert np.isnan(uturns.overlap(before, itself, before[0])[0]).all()
    # d Var(q) over the returns of an image, and E q, as average has them.
    overlap = rng.uniform(-1, 1, (5, 3, 4))
    found = uturns.overlaps(np.arange(1.0, 4), overlap, dimension=8)
    np.testing.assert_allclose(found.mean.mean, overlap.mean(axis=(0, 2)))
    wanted = 8 * np.mean([[each.var(ddof=1) for each in row] for row in overlap], axis=0)
    np.testing.assert_allclose(found.susceptibility.mean, wanted)


def measured(change):
    """Of one time."""
    return uturns.correlated(np.ones(1), uturns.pair_sums(change)[:, None], change.shape[2:])


def test_pixels_that_change_alone_and_all_together():
    rng = np.random.default_rng(2)
    # Each image has pixels of its own spread, and a mean change of its own: neither counts.
    spread = rng.uniform(0.1, 1, (300, 1, 7, 9)) * rng.uniform(0, 3, (300, 1, 1, 1))
    alone = measured(5 * spread + spread * rng.standard_normal((300, 2, 7, 9)))
    chi = alone.susceptibility
    assert abs(chi.mean[0] - 1) < FAR * chi.standard_error[0] < 0.5
    # The trapezoid of C(0) = 1 and C(about 1 pixel) = 0.
    length = alone.length
    half = uturns.distances(7, 9).mean[1] / 2
    assert abs(length.mean[0] - half) < FAR * length.standard_error[0] < 0.4
    together = measured(np.broadcast_to(rng.standard_normal((9, 2, 1, 1)), (9, 2, 7, 9)))
    # Replicates are summed in float32.
    np.testing.assert_allclose(together.susceptibility.interval, 63, rtol=1e-6)
    np.testing.assert_allclose(together.function, 1, rtol=1e-9)
    assert together.length.mean[0] == pytest.approx(np.hypot(6, 8))


@pytest.mark.parametrize("returns", [2, 5])
def test_a_field_of_a_known_correlation_length(returns):
    """Of covariance exp(-r/2), against its own sums; on a line the length is that of the law."""
    distance, rounded = pairs_of(13, 16)
    covariance = np.exp(-distance / 2)
    root = np.linalg.cholesky(covariance)
    rng = np.random.default_rng(3)
    field = rng.standard_normal((250, returns, 208)) @ root.T
    found = measured(field.reshape(250, returns, 13, 16))
    wanted = np.bincount(rounded.ravel(), covariance.ravel()) / np.bincount(rounded.ravel())
    chi, length = found.susceptibility, found.length
    assert abs(chi.mean[0] - covariance.sum() / 208) < FAR * chi.standard_error[0]
    error = np.diff(found.interval, axis=0)[0, 0] / 3.92
    assert np.all(np.abs(found.function[0] - wanted) <= FAR * error + 1e-12)
    expected = uturns.length(wanted, found.distance)
    assert abs(length.mean[0] - expected) < FAR * length.standard_error[0] < 0.6
    line = np.arange(200.0)
    # The trapezoidal rule is off by l/12 (h/l)^2 of steps h = 1.
    assert uturns.length(np.exp(-line / 6), line) == pytest.approx(6 + 1 / 72, abs=1e-4)
    gauss = np.exp(-(line**2) / (2 * 5**2))
    assert uturns.length(gauss, line) == pytest.approx(np.sqrt(np.pi / 2) * 5, rel=1e-6)


def test_a_peak_is_found_and_what_hardly_changes_is_left_out():
    """Patches of 1, 2 and 4 pixels a side that change together, and rounding at the first time."""
    rng = np.random.default_rng(4)

    def blocks(side):
        coarse = rng.standard_normal((40, 2, 8 // side, 8 // side))
        return np.kron(coarse, np.ones((side, side)))

    fields = [1e-6 * blocks(8), blocks(1), blocks(2), blocks(4), blocks(2), blocks(1)]
    times = np.geomspace(0.1, 3, 6)
    found = uturns.correlated(times, np.stack([*map(uturns.pair_sums, fields)], axis=1), (8, 8))
    chi = found.susceptibility
    assert np.isnan([chi.mean[0], chi.interval[0, 0], found.length.mean[0]]).all()
    # sum_ij C_ij is (side^2)^2 for each of the blocks.
    wanted = np.array([1, 4, 16, 4, 1])
    assert np.all(np.abs(chi.mean[1:] - wanted) < FAR * chi.standard_error[1:])
    for curve in (chi, found.length):
        peak = curve.peak()
        assert times[2] < peak.low <= peak.value <= peak.high < times[4]
    # Four of forty images alone have changes.
    few = np.stack([uturns.pair_sums(fields[3])], axis=1)
    few[4:] = 0
    assert np.isnan(uturns.correlated(times[:1], few, (8, 8)).susceptibility.mean).all()
    assert np.isfinite(uturns.correlated(times[:1], few[:4], (8, 8)).susceptibility.mean).all()


def test_returns_of_a_gaussian_have_the_law_of_its_posterior():
    """x' given x is N(m + A (x - m), K^2 Delta + S): A, K and S along the modes, closed forms."""
    rng = np.random.default_rng(5)
    values = np.array([0.3, 2.0, 9.0, 0.05])
    modes = np.linalg.qr(rng.standard_normal((4, 4)))[0].T
    mean = rng.standard_normal(4)
    law = GaussianDenoiser(
        SCHEDULE, *map(jnp.float32, (mean.reshape(2, 2, 1), modes, values)), jnp.float32(0)
    )
    data = mean + (rng.standard_normal((3000, 4)) * np.sqrt(values)) @ modes
    steps = [400, 250, 120]
    images = data.reshape(-1, 2, 2, 1).astype(np.float32)
    back = cloning.u_turns(AncestralSampler(SCHEDULE), law, jax.random.key(1), steps, images)
    own, ends = (data - mean) @ modes.T, (back.reshape(3000, 3, 4) - mean) @ modes.T
    t = TIMES[np.array(steps) - 1][:, None]
    delta, signal = -np.expm1(-2 * t), np.exp(-t)
    total = signal**2 * values + delta
    slope, gain = signal**2 * values / total, signal * values / total
    variance = gain**2 * delta + values * delta / total
    products = own[:, None] * ends
    # E (x - m)_i (x' - m)_i = a_i l_i, the overlap before it is divided by the norms.
    error = products.std(axis=0) / np.sqrt(3000)
    assert np.all(
        np.abs(products.mean(axis=0) - slope * values) < FAR * error + 0.01 * slope * values
    )
    rest = ends - slope * own[:, None]
    # A variance's relative error is sqrt(2/n); the steps of the sampler cost a per cent.
    assert np.all(np.abs(rest.var(axis=0) / variance - 1) < FAR * np.sqrt(2 / 3000) + 0.02)
    # The overlap itself, against draws from that law.
    drawn = slope * own[:, None] + np.sqrt(variance) * rng.standard_normal((3000, 3, 4))
    overlaps = [uturns.overlap(own, each, np.zeros(4)) for each in (ends.astype(np.float64), drawn)]
    difference = overlaps[0].mean(axis=0) - overlaps[1].mean(axis=0)
    error = np.sqrt(sum(each.var(axis=0) for each in overlaps) / 3000)
    assert np.all(np.abs(difference) < FAR * error + 0.005)
    assert np.all(np.diff(overlaps[0].mean(axis=0)) > 0)


@struct.dataclass
class Scaled:
    """A denoiser whose noise is wrong by a factor."""

    denoiser: EmpiricalDenoiser
    factor: jax.Array

    def __call__(self, x, step):
        return self.factor * self.denoiser(x, step)


@pytest.mark.parametrize("factor", [1.0, 0.98])
def test_the_exact_score_returns_draws_from_the_posterior(factor):
    """Given the very x_t of the first return, to each point with its probability."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 12)
    points = 0.7 * rng.standard_normal((24, 6)) + np.where(labels, 0.8, -0.8)[:, None]
    points = points.astype(np.float32)
    exact = EmpiricalDenoiser(SCHEDULE, jnp.asarray(points))
    denoiser = exact if factor == 1 else Scaled(exact, jnp.float32(factor))
    steps, key, sampler = [350, 250, 175, 75], jax.random.key(3), AncestralSampler(SCHEDULE)
    start = np.tile(points, (60, 1))
    back = cloning.u_turns(sampler, denoiser, key, steps, start)
    distance = np.linalg.norm(back[:, :, None] - points, axis=-1)
    index, own = distance.argmin(axis=2), np.tile(np.arange(24), 60)
    for j, b in enumerate(steps):
        x = cloning.turning_points(sampler, key, b, start).astype(np.float64)
        t = TIMES[b - 1]
        squared = np.sum((x[:, None] - np.exp(-t) * points) ** 2, axis=2)
        weight = np.exp(-(squared - squared.min(axis=1)[:, None]) / (-2 * np.expm1(-2 * t)))
        p = weight / weight.sum(axis=1, keepdims=True)
        same_class = (p * (labels == labels[own][:, None])).sum(axis=1)
        for probability, hit in (
            (p[np.arange(1440), own], index[:, j] == own),
            (same_class, labels[index[:, j]] == labels[own]),
        ):
            error = np.sqrt(np.sum(probability * (1 - probability)) + 0.25) / 1440
            slack = 0.0 if factor == 1 else 0.02  # as wrong as the score
            assert abs(hit.mean() - probability.mean()) < FAR * error + slack
        # The same noise gives the same turning points: x_t - e^-t a has its variance.
        noise = (x - np.exp(-t) * start) / np.sqrt(-np.expm1(-2 * t))
        assert noise.var() == pytest.approx(1, abs=FAR * np.sqrt(2 / noise.size))


def test_a_mixture_keeps_its_class_at_t_S_as_often_as_phi_says():
    law = GaussianMixture(dimension=16, mu=1.0, sigma=0.5)
    step = int(np.abs(law.phi(TIMES) - 0.7752).argmin())
    sampler, denoiser = (
        AncestralSampler(SCHEDULE),
        GaussianMixtureDenoiser(SCHEDULE, jnp.ones(16), jnp.float32(0.5)),
    )
    data, _ = law.sample(np.random.default_rng(1), 3000)
    back = cloning.u_turns(sampler, denoiser, jax.random.key(2), [step + 1], data)
    same = (back[:, 0].sum(axis=1) > 0) == (data.sum(axis=1) > 0)
    phi = law.phi(TIMES[[step]])
    assert phi[0] == pytest.approx(0.7752, abs=0.01)
    assert Cloning(TIMES[[step]], np.array([same.sum()]), 3000).p_values(phi)[0] > 1e-4


def test_turns_outside_the_schedule_are_refused():
    sampler = AncestralSampler(SCHEDULE)
    with pytest.raises(UserError, match="from 500"):
        cloning.turning_points(sampler, jax.random.key(0), 501, np.zeros((2, 3)))
