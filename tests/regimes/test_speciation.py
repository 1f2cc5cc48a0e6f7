import math

import jax
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import multivariate_normal

from diffusion_jax.errors import UserError
from diffusion_jax.regimes import gaussian_classes, posterior, speciation
from diffusion_jax.regimes.gaussian_classes import (
    Gaussian,
    gaussian_moments,
    gaussian_speciation_time,
)


def swapped_halves(d, low=0.5, high=1.5):
    """Two classes of mean zero whose variances are `low` and `high` on either half."""
    variance = np.where(np.arange(d) < d // 2, low, high)
    return Gaussian(np.zeros(d), variance), Gaussian(np.zeros(d), variance[::-1])


def full(law):
    return Gaussian(law.mean, np.diag(law.covariance))


def random_law(rng, d):
    factor = rng.standard_normal((d, d + 1)) / math.sqrt(d)
    return Gaussian(rng.standard_normal(d) / 2, factor @ factor.T)


def scipy_log_ratio(first, second, time, x):
    """The independent u: log densities of scipy, with the covariance of x_t written out."""
    logs = []
    for law in (first, second):
        covariance = np.diag(law.covariance) if law.covariance.ndim == 1 else law.covariance
        noisy = np.exp(-2 * time) * covariance + (1 - np.exp(-2 * time)) * np.eye(len(law.mean))
        logs.append(multivariate_normal(np.exp(-time) * law.mean, noisy).logpdf(x))
    return logs[0] - logs[1]


KNOWN = {
    64: (0.5119, 0.5199),
    256: (0.8645, 0.8664),
    1024: (1.2125, 1.2130),
    4096: (1.5595, 1.5596),
}


@pytest.mark.parametrize("d", KNOWN)
def test_known_answers_for_classes_of_one_mean(d):
    first, second = swapped_halves(d)
    exact, formula = KNOWN[d]
    assert round(gaussian_speciation_time(first, second), 4) == exact
    assert round(gaussian_speciation_time(second, first), 4) == exact
    assert round(gaussian_classes.asymptotic_time(first, second), 4) == formula


def test_quarter_log_scaling_up_to_a_million_dimensions():
    times = [gaussian_speciation_time(*swapped_halves(4**k)) for k in (8, 9, 10)]
    np.testing.assert_allclose(np.diff(times), math.log(4) / 4, atol=1e-5)
    assert times[-1] == pytest.approx(
        gaussian_classes.asymptotic_time(*swapped_halves(4**10)), abs=1e-6
    )


@pytest.mark.parametrize("sigma2", [0.2, 1.0, 3.0])
def test_opposite_means_have_the_closed_form(sigma2):
    mean = np.random.default_rng(0).standard_normal(50)
    pair = [Gaussian(sign * mean, np.full(50, sigma2)) for sign in (1, -1)]
    expected = 0.5 * math.log(mean @ mean + 1 - sigma2)
    assert gaussian_speciation_time(*pair) == pytest.approx(expected, abs=1e-9)
    assert gaussian_speciation_time(full(pair[0]), pair[1]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("log_odds", [0.3, 0.45, -0.3, -3.0])
def test_weights_move_the_crossing_of_gaussian_u(log_odds):
    # V = 2D without the weights, so D + log_odds = sqrt(2D) and D = 2s.
    mean = np.full(100, 0.8)
    pair = [Gaussian(sign * mean, np.ones(100)) for sign in (1, -1)]
    s = (1 - log_odds + math.sqrt(1 - 2 * log_odds)) / 2
    found = gaussian_speciation_time(*pair, log_odds)
    assert found == pytest.approx(0.5 * math.log(mean @ mean / s), abs=1e-9)
    assert math.isnan(gaussian_speciation_time(*pair, 0.6))  # never in doubt


def test_a_single_wider_direction_is_never_certain_for_the_wider_class():
    # D = (x - log(1 + x))/2 and V = x^2/2, so D^2 < V/2 for x > 0.
    wide = Gaussian(np.zeros(5), np.array([1000.0, 1, 1, 1, 1]))
    narrow = Gaussian(np.zeros(5), np.ones(5))
    assert math.isnan(gaussian_speciation_time(wide, narrow))
    time = gaussian_speciation_time(narrow, wide)
    x = 1 / (1 + 999 * math.exp(-2 * time)) - 1
    assert x - math.log1p(x) == pytest.approx(-math.sqrt(2) * x, abs=1e-8)
    assert math.isnan(gaussian_speciation_time(narrow, narrow))


def test_full_and_diagonal_forms_agree():
    first, second = swapped_halves(40, 0.1, 3.0)
    first = Gaussian(np.linspace(-1, 1, 40), first.covariance)
    for time in (0.01, 1.0, 8.0):
        np.testing.assert_allclose(
            gaussian_moments(full(first), second, time),
            gaussian_moments(first, second, time),
            rtol=1e-9,
        )


def test_moments_at_large_times_keep_their_digits():
    first, second = swapped_halves(64)
    mean, variance = gaussian_moments(first, second, 15.0)
    assert mean == pytest.approx(math.exp(-60) * 64 / 4, rel=1e-9)
    assert variance == pytest.approx(2 * mean, rel=1e-9)


@pytest.mark.parametrize("time", [0.1, 0.7, 2.0])
def test_moments_against_monte_carlo(time):
    rng = np.random.default_rng(3)
    first, second = random_law(rng, 6), random_law(rng, 6)
    noise = rng.standard_normal((100_000, 6))
    u = gaussian_classes.gaussian_log_ratio(first, second, time, noise)
    x = first.at(time).sample(noise)
    np.testing.assert_allclose(u, scipy_log_ratio(first, second, time, x), rtol=1e-8, atol=1e-8)
    mean, variance = gaussian_moments(first, second, time)
    squared = (u - u.mean()) ** 2
    # Four standard errors: a false alarm in 16 000.
    assert abs(u.mean() - mean) < 4 * u.std() / math.sqrt(len(u))
    assert abs(u.var() - variance) < 4 * squared.std() / math.sqrt(len(u))


def test_gaussian_u_has_phi_0_7752_at_the_speciation_time():
    nodes, weights = hermegauss(200)
    weights /= weights.sum()
    phi = 0.5 * (1 + weights @ np.tanh(1 + nodes))
    assert round(phi, 4) == 0.7752
    noise = np.random.default_rng(0).standard_normal((20_000, 512))
    first, second = swapped_halves(512)
    time = gaussian_speciation_time(first, second)
    u = gaussian_classes.gaussian_log_ratio(first, second, time, noise)
    error = (np.tanh(u / 2) / 2).std() / math.sqrt(len(u))
    # u is not quite Gaussian: with 400 000 samples phi is 0.7763, give or take 0.0004.
    assert gaussian_classes.same_class_probability(u) == pytest.approx(phi, abs=4 * error + 0.003)


def test_sampled_crossing_of_phi_has_the_closed_form():
    # u of opposite means is Gaussian, so phi = 0.7752 exactly where D^2 = V.
    mean = np.full(16, 0.9)
    pair = [Gaussian(sign * mean, np.full(16, 0.5)) for sign in (1, -1)]
    noise = np.random.default_rng(0).standard_normal((20_000, 16))
    found = gaussian_classes.same_class_crossing(*pair, noise)
    error = (found.high - found.low) / 3.92
    assert error < 0.01
    assert found.value == pytest.approx(gaussian_speciation_time(*pair), abs=4 * error)
    near = [Gaussian(sign * mean / 9, np.ones(16)) for sign in (1, -1)]
    assert math.isnan(gaussian_classes.same_class_crossing(*near, noise).value)


def test_both_classes_have_one_phi_whatever_their_laws():
    rng = np.random.default_rng(5)
    first, second = random_law(rng, 3), random_law(rng, 3)
    noise = rng.standard_normal((200_000, 3))
    u = [
        gaussian_classes.gaussian_log_ratio(*p, 0.3, noise)
        for p in ((first, second), (second, first))
    ]
    both = [gaussian_classes.same_class_probability(each) for each in u]
    p = 1 / (1 + np.exp(-np.concatenate(u)))
    assert both[0] == pytest.approx(both[1], abs=4 * p.std() * math.sqrt(2 / 200_000))
    assert np.mean(p**2 + (1 - p) ** 2) == pytest.approx(both[0], abs=0.004)


def reference_draws(points, labels, times, index, noise):
    """The engine's draws in float64, one point at a time."""
    classes = labels.max() + 1
    evidence = np.empty((len(index), len(times), classes))
    for i, mu in enumerate(index):
        for j, t in enumerate(times):
            x = np.exp(-t) * points[mu] + np.sqrt(1 - np.exp(-2 * t)) * noise[i]
            squared = np.sum((x - np.exp(-t) * points) ** 2, axis=1)
            weight = np.exp(-(squared - squared[mu]) / (2 * (1 - np.exp(-2 * t))))
            weight[mu] = 0
            evidence[i, j] = np.log([weight[labels == c].sum() for c in range(classes)])
    nothing = np.zeros((len(index), len(times)))
    return posterior.Draws(np.asarray(times), index, labels[index], *4 * [nothing], *2 * [evidence])


def test_log_ratio_is_that_of_leave_one_out_densities():
    rng = np.random.default_rng(0)
    points, labels = rng.standard_normal((30, 3)), np.repeat([0, 1, 2, 3], [5, 10, 8, 7])
    index, noise, times = np.array([0, 7, 20, 29]), rng.standard_normal((4, 3)), [0.3, 1.2]
    draws = reference_draws(points, labels, times, index, noise)
    u = speciation.log_ratio(draws, np.bincount(labels), [0, 2], [1])
    for i, mu in enumerate(index):
        for j, t in enumerate(times):
            x = np.exp(-t) * points[mu] + np.sqrt(1 - np.exp(-2 * t)) * noise[i]
            density = multivariate_normal(np.zeros(3), 1 - np.exp(-2 * t)).pdf(
                x - np.exp(-t) * points
            )
            others = np.arange(30) != mu
            one, two = (density[np.isin(labels, s) & others].mean() for s in ([0, 2], [1]))
            assert u[i, j] == pytest.approx(math.log(one / two), abs=1e-9)


def ideal_draws(times, size, rng):
    """Draws whose evidences give the exact u of two Gaussians with means +-4 in one dimension."""
    labels = np.repeat([0, 1], size)
    s = 16 * np.exp(-2 * times)
    u = 2 * s + 2 * np.sqrt(s) * rng.standard_normal((2 * size, 1))
    evidence = np.stack([np.where(labels == 0, u.T, -u.T).T, np.zeros_like(u)], axis=2)
    nothing = np.zeros_like(u)
    return posterior.Draws(times, np.arange(2 * size), labels, *4 * [nothing], *2 * [evidence])


def test_intervals_cover_the_exact_time():
    rng = np.random.default_rng(0)
    times, huge = np.linspace(0.5, 3, 26), np.array([10**12, 10**12])
    covered = []
    for _ in range(150):
        draws = ideal_draws(times, 200, rng)
        found = speciation.separation(draws, huge, [0], [1], resamples=400)
        covered += [t.low < math.log(4) < t.high for t in found.time]
        assert all(t.low < t.value < t.high for t in found.time)
    # 0.942 in 2000 trials; four standard deviations of 300 are 0.054.
    assert 0.888 < np.mean(covered) < 1


def test_data_against_exact_roots():
    laws = swapped_halves(8, 0.25, 9.0)
    rng = np.random.default_rng(1)
    points = np.concatenate([law.sample(rng.standard_normal((2500, 8))) for law in laws])
    times = np.linspace(0.3, 1.5, 13)
    draws = posterior.draw(
        points.astype(np.float32), np.repeat([0, 1], 2500), times, jax.random.key(0), 4000
    )
    found = speciation.separation(draws, np.array([2500, 2500]), [0], [1])
    exact = gaussian_speciation_time(*laws)
    for time in found.time:
        error = (time.high - time.low) / 3.92
        assert error < 0.035
        assert time.value == pytest.approx(exact, abs=4 * error)
    middle = np.argmin(np.abs(times - exact))
    mean, variance = gaussian_moments(*laws, times[middle])
    error = np.sqrt(found.variance[:, middle] / 2000)
    np.testing.assert_array_less(np.abs(found.mean[:, middle] - mean), 4 * error)
    np.testing.assert_allclose(found.variance[:, middle], variance, rtol=0.25)


def test_hierarchical_classes_part_one_after_the_other():
    rng = np.random.default_rng(0)
    centres = np.array([[-12.0, -2, 0], [-12, 2, 0], [12, -4, 0], [12, 4, 0]])
    points = np.concatenate([c + 0.5 * rng.standard_normal((200, 3)) for c in centres])
    counts, times = np.full(4, 200), np.linspace(0.1, 3.5, 69)
    draws = posterior.draw(
        points.astype(np.float32), np.repeat(np.arange(4), 200), times, jax.random.key(0), 800
    )
    pairs, intervals = speciation.pairwise(draws, counts)
    tree = speciation.class_tree(pairs)
    parted = speciation.splits(tree)
    assert parted == [([0, 1], [2, 3]), ([2], [3]), ([0], [1])]
    for (a,), (b,) in parted[1:]:
        half = (centres[a] - centres[b]) / 2
        expected = 0.5 * math.log(half @ half + 1 - 0.25)
        error = (intervals[a, b] - intervals[a, b].mean()).max() / 1.96
        assert pairs[a, b] == pytest.approx(expected, abs=4 * error)
        assert pairs[b, a] == pytest.approx(expected, abs=4 * error)
    top = speciation.separation(draws, counts, *parted[0])
    # The offsets of +-2 and +-4 across widen each super-class, hardly along the line between them.
    for time in top.time:
        assert time.value == pytest.approx(0.5 * math.log(144.75), abs=0.15)
    assert tree[0, 2] == pytest.approx(np.mean([pairs[0, 1], pairs[1, 0]]))


def test_what_cannot_be_asked():
    rng = np.random.default_rng(0)
    draws = ideal_draws(np.linspace(0.5, 3, 6), 20, rng)
    counts = np.array([20, 20])
    with pytest.raises(UserError, match="separate sets"):
        speciation.separation(draws, counts, [0], [0, 1])
    with pytest.raises(UserError, match="1 points"):
        speciation.separation(draws, np.array([20, 1]), [0], [1])
    with pytest.raises(UserError, match="larger ones"):
        speciation.separation(ideal_draws(np.linspace(0.1, 0.5, 6), 20, rng), counts, [0], [1])
    first, _ = swapped_halves(4)
    with pytest.raises(UserError, match="4 and 6 dimensions"):
        gaussian_speciation_time(first, swapped_halves(6)[1])
    with pytest.raises(UserError, match="one mean"):
        gaussian_classes.asymptotic_time(first, Gaussian(np.ones(4), np.ones(4)))
    with pytest.raises(UserError, match="covariance of shape"):
        Gaussian(np.zeros(3), np.ones(4))
