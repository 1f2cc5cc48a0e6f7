"""Information in the loss against closed forms: Gaussians, two points, the exact score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import transitions
from diffusion_jax.regimes.loss_information import (
    Losses,
    Strata,
    information,
    known_time,
    log_snr_of,
)
from diffusion_jax.schedule import cosine_schedule, from_time, linear_schedule
from diffusion_jax.training.evaluation import rows_of, stratified_losses

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SCHEDULE = linear_schedule(1000)


def losses_of(denoiser, x_0, seed, strata, rows=None):
    """Losses of so many rows of images, by default one each."""
    chosen = rows_of(len(x_0), rows or len(x_0))
    key, images = jax.random.key(seed), x_0[chosen].astype(np.float32)
    return stratified_losses(denoiser, strata.schedule, images, chosen, key, strata, 4096)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("schedule", [SCHEDULE, cosine_schedule(37), linear_schedule(22)])
def test_strata_are_the_trapezoidal_rule(schedule, first):
    """U(s0) = sum_s (L_s + L_{s+1})(lambda_s - lambda_{s+1})/4 + L_last/2, for any losses."""
    strata = Strata(schedule, 7, first)
    loss = np.random.default_rng(0).uniform(0, 3, schedule.num_steps)
    log_snr = log_snr_of(np.asarray(schedule.time, np.float64))
    parts = (loss[:-1] + loss[1:]) * -np.diff(log_snr) / 4
    expected = parts[first:].sum() + loss[-1] / 2
    assert strata.weights @ loss == pytest.approx(expected, rel=1e-12)
    assert strata.weights.sum() == pytest.approx(strata.total, rel=1e-12)
    # Evenly spaced places in every stratum meet each step as often as it weighs.
    places = (np.arange(20_000) + 0.5)[:, None] / 20_000 * np.ones(7)
    drawn = loss[strata.steps(places)].mean(axis=0).sum() * strata.weight
    assert drawn == pytest.approx(expected, rel=1e-3)
    assert strata.steps(places).min() >= first


def test_what_lies_above_a_time():
    """U(t) of the loss 1 is (lambda(t) - lambda(T) + 1)/2, of strata too."""
    strata = Strata(SCHEDULE, 9)
    times = np.asarray(SCHEDULE.time, np.float64)
    asked = np.array([1e-9, 0.03, 0.2, 1.0, times[-1]])
    expected = (log_snr_of(np.maximum(asked, times[0])) - log_snr_of(times[-1]) + 1) / 2
    shares = strata.weights / strata.weight
    np.testing.assert_allclose(strata.above(asked) @ shares, expected, rtol=1e-9)
    np.testing.assert_allclose(strata.bands @ shares, np.full(9, strata.weight), rtol=1e-9)
    np.testing.assert_allclose(strata.bands.sum(axis=0), strata.weight, rtol=1e-9)
    np.testing.assert_allclose(strata.time_of(expected), np.maximum(asked, times[0]), rtol=1e-9)


EIGENVALUES = np.array([4.0, 1.0, 0.25, 0.0625])


def gaussian(eigenvalues=EIGENVALUES, mean=0.0):
    d = len(eigenvalues)
    arrays = (jnp.full(d, mean), jnp.eye(d), jnp.asarray(eigenvalues, jnp.float32), jnp.zeros(()))
    return GaussianDenoiser(SCHEDULE, *(each.astype(jnp.float32) for each in arrays))


def gap_of_gaussian(time, eigenvalues, training, held_out):
    """G(t) = 1/2 sum_i g (h_i,held-out - h_i,training)/(1 + g l_i), g = 1/(e^2t - 1)."""
    g = 1 / np.expm1(2 * time)
    return 0.5 * np.sum(g * (held_out - training) / (1 + g * eigenvalues))


@pytest.mark.parametrize("off", [1.0, 1.04])
def test_the_gap_of_a_gaussian_lies_in_its_interval(off):
    """For 89 of 100 seeds at least, each with other images and other noise.

    The two sets have other laws, so that G is not 0; with `off` the denoiser is neither's.
    """
    strata, time = Strata(SCHEDULE), 0.2
    denoiser, above = gaussian(off * EIGENVALUES), strata.above(0.2)
    own, other = np.array([4.0, 1.0, 0.2, 0.0625]), np.array([4.4, 0.9, 0.4, 0.1])
    expected = gap_of_gaussian(time, off * EIGENVALUES, own, other)
    rng = np.random.default_rng(0)
    own_losses, other_losses = (
        losses_of(denoiser, np.sqrt(h) * rng.standard_normal((6400, 4)), seed, strata)
        for seed, h in enumerate((own, other))
    )
    inside = 0
    for seed in range(100):
        rows = slice(64 * seed, 64 * (seed + 1))
        found = information(part(own_losses, rows), part(other_losses, rows), above).gap.estimate
        inside += found.low <= expected <= found.high
    assert inside >= 89


def part(losses, rows):
    return Losses(losses.image[rows], losses.steps[rows], losses.losses[rows])


def test_common_noise_hides_less():
    """On the same images and noise the difference of two denoisers is known far better."""
    strata, x = Strata(SCHEDULE), np.random.default_rng(0).standard_normal((64, 4))
    x *= np.sqrt(EIGENVALUES)
    above = strata.above(0.2)
    good, worse = (losses_of(gaussian(each * EIGENVALUES), x, 1, strata) for each in (1, 1.2))
    difference = (worse - good).per_image(above)
    assert difference.std() < good.per_image(above).std() / 5
    # 1/2 int E|D - D'|^2 dg, both in closed form.
    g = np.linspace(0, 1 / np.expm1(0.4), 20_001)[:, None]
    h = (x**2).mean(axis=0)
    v, w = EIGENVALUES, 1.2 * EIGENVALUES
    excess = (h + g * w**2) / (1 + g * w) ** 2 - (h + g * v**2) / (1 + g * v) ** 2
    expected = 0.5 * np.trapezoid(excess.sum(axis=1), g[:, 0])
    assert abs(difference.mean() - expected) < 4 * difference.std() / 8


@pytest.mark.parametrize(("g", "own", "other"), [(1, 0.336831, 0.125433), (4, 0.632720, 0.943340)])
def test_two_points_and_one_between_them(g, own, other):
    """Points +-1 and the held-out point 0: integrals known by quadrature, G of either sign."""
    schedule = linear_schedule(1000)
    strata, time = Strata(schedule), np.log1p(1 / g) / 2
    points = np.array([[1.0], [-1.0]], np.float32)
    denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points))
    above = strata.above(time)
    for x, expected in ((points, own), (np.zeros((1, 1)), other)):
        losses = losses_of(denoiser, x, 3, strata, 16_384)
        # Rows are independent, though few images are behind them.
        rows = (losses.losses * above[losses.steps]).sum(axis=1)
        assert abs(rows.mean() - expected) < 4 * rows.std() / 128 + 1e-3 * expected


def test_the_exact_score_knows_log_n_and_remembers_all():
    n, strata = 24, Strata(SCHEDULE)
    rng = np.random.default_rng(5)
    points, others = rng.standard_normal((2, n, 6)).astype(np.float32)
    denoiser = EmpiricalDenoiser(SCHEDULE, jnp.asarray(points))
    own, other = (losses_of(denoiser, x, 1, strata, 3072) for x in (points, others))
    above = strata.above(strata.times[0])
    found = information(own, other, above, own)
    error = (own.losses * above[own.steps]).sum(axis=1).std() / np.sqrt(3072)
    assert abs(found.training.value - np.log(n)) < 4 * error
    assert found.short.value == 0
    assert found.share.estimate.value == found.share.estimate.low == 1
    # U(t) = log n - E H(a | x_t) at any time, and where 99 % of it are known.
    time = known_time(strata, own)
    times = np.array([0.05, 0.2, 0.5, 1.0, time])
    curve = transitions.of_points(points, None, jax.random.key(0), 2e-3, np.sort(times)).curves[
        "excess_entropy"
    ]
    entropy = np.interp(times, curve.times, curve.mean) * np.log(n)
    nats = (own.losses * strata.above(times)[:, own.steps]).sum(axis=2)
    errors = 4 * nats.std(axis=1) / np.sqrt(3072) + 0.02
    assert np.all(np.abs(nats.mean(axis=1) - (np.log(n) - entropy)) < errors)
    assert nats.mean(axis=1)[-1] == pytest.approx(0.99 * found.training.value, rel=2e-3)


def test_a_score_that_is_a_law_of_its_own_remembers_nothing():
    """A Gaussian that saw neither set: G is its closed form of the two sets, M near 0."""
    strata, rng = Strata(SCHEDULE), np.random.default_rng(8)
    own, other = np.sqrt(EIGENVALUES) * rng.standard_normal((2, 60, 4))
    exact = EmpiricalDenoiser(SCHEDULE, jnp.asarray(own, jnp.float32))
    above = strata.above(0.02)
    of_network = [losses_of(gaussian(), x, 2, strata) for x in (own, other)]
    found = information(*of_network, above, losses_of(exact, own, 2, strata))
    squares = ((x**2).mean(axis=0) for x in (own, other))
    expected = gap_of_gaussian(0.02, EIGENVALUES, *squares)
    low, high = found.gap.interval
    assert low < expected < high
    assert found.short.value > 1
    assert abs(found.share.value) < 0.2
    # Each stratum by itself adds up to the whole.
    bands = information(*of_network, strata.bands).gap.value
    whole = information(*of_network, strata.above(strata.times[0])).gap.value
    assert bands.sum() == pytest.approx(float(whole), rel=1e-9)


def test_rows_of_one_image_count_as_one():
    image, losses = np.array([3, 3, 3, 9]), np.array([[1.0], [2], [3], [10]], np.float32)
    steps = np.zeros((4, 1), np.int32)
    rows = Losses(image, steps, losses)
    np.testing.assert_array_equal(rows.per_image(np.array([0.5])), [1, 5])
    other = Losses(image, steps, np.zeros((4, 1), np.float32))
    low, high = information(other, rows, np.array([0.5])).gap.interval
    assert (low, high) == (1, 5)  # either image alone, and nothing beyond
    with pytest.raises(UserError, match="different images"):
        rows - Losses(image + 1, steps, losses)
    with pytest.raises(UserError, match="or steps"):
        rows - Losses(image, steps + 1, losses)


def test_a_share_of_nothing_is_not_a_number():
    few = Losses(np.arange(4), np.zeros((4, 1), np.int32), np.full((4, 1), 0.01, np.float32))
    found = information(few, few, np.array([1.0]), few)
    assert np.isnan(found.share.value)
    with pytest.raises(UserError, match="two steps"):
        Strata(from_time(np.array([0.5])))
