"""Frechet distance: closed forms, the root of the matrix itself, and its bias."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from diffusion_jax.errors import UserError
from diffusion_jax.judging.frechet import frechet, frechet_of_one_law


def with_moments(mean, root, count, seed):
    """A set whose mean is exactly mean and whose covariance exactly root'root."""
    x = np.random.default_rng(seed).standard_normal((count, len(root)))
    x -= x.mean(axis=0)
    q, _ = np.linalg.qr(x)
    return mean + np.sqrt(count - 1) * q @ root


def test_covariances_that_commute():
    """|mu_x - mu_y|^2 + sum_i (s_i - r_i)^2 with the standard deviations along common axes."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    s, r = np.array([1.0, 0.5, 2.0, 0.0]), np.array([0.2, 0.5, 3.0, 0.7])
    shift = np.array([0.3, -1.0, 0.0, 2.0])
    x = with_moments(np.full(4, 5.0), np.diag(s) @ axes.T, 30, 1)
    y = with_moments(5.0 + shift, np.diag(r) @ axes.T, 40, 2)
    assert frechet(x, y) == pytest.approx(shift @ shift + np.sum((s - r) ** 2), rel=1e-12)


@pytest.mark.parametrize("sizes", [(60, 45), (60, 6)])
def test_it_is_the_formula_with_the_root_of_the_product(sizes):
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((n, 9)) @ rng.standard_normal((9, 9)) for n in sizes)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # The root of one covariance alone is real and accurate: S_x^{1/2} S_y S_x^{1/2}.
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values) @ vectors.T
    inner = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(first + second) - 2 * inner
    # Zero eigenvalues come back as 1e-16 of the largest, and their roots as 1e-8: four of nine.
    assert frechet(x, y) == pytest.approx(expected, rel=1e-10 if sizes[1] > 9 else 1e-6)
    assert frechet(y, x) == pytest.approx(frechet(x, y), rel=1e-12)
    if sizes[1] > 9:
        published = np.trace(first + second - 2 * sqrtm(first @ second).real)
        published += np.sum((x.mean(0) - y.mean(0)) ** 2)
        assert frechet(x, y) == pytest.approx(published, rel=1e-9)


def test_the_nuclear_norm_is_the_trace_of_the_root():
    """Two samples of each in five dimensions: covariances a a' and b b', the root's trace |a.b|."""
    a, b = np.random.default_rng(4).standard_normal((2, 5))
    x, y = (np.stack([v, -v]) / np.sqrt(2) for v in (a, b))
    expected = a @ a + b @ b - 2 * abs(a @ b)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-12)


def test_laws_of_the_distance():
    """Rotations and shifts of both change nothing, a scale its square; it is 0 of a set itself."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((20, 30)), 1.3 * rng.standard_normal((25, 30)) + 0.2
    turn = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    value = frechet(x, y)
    assert frechet(x @ turn + 3, y @ turn + 3) == pytest.approx(value, rel=1e-11)
    assert frechet(10 * x, 10 * y) == pytest.approx(100 * value, rel=1e-11)
    assert 0 <= frechet(x, rng.permutation(x)) < 1e-12 * np.sum(x * x)
    # A root of a distance: the triangle inequality, with a third set between.
    z = (x[:15] + y[:15]) / 2
    assert np.sqrt(value) <= np.sqrt(frechet(x, z)) + np.sqrt(frechet(z, y))


@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0, 1.0), (3.0, 1.0, 0.3, 0.1)])
def test_the_bias_between_two_sets_of_one_law(spread):
    variances, (m, n), count = np.array(spread), (300, 200), 1500
    rng = np.random.default_rng(6)
    values = [
        frechet(*(rng.standard_normal((size, 4)) * np.sqrt(variances) for size in (m, n)))
        for _ in range(count)
    ]
    pairs = np.outer(variances, variances) / (2 * np.add.outer(variances, variances))
    expected = (1 / m + 1 / n) * variances.sum()
    expected += (1 / (m - 1) + 1 / (n - 1)) * (pairs.sum() + variances.sum() / 4)
    # The next order is of relative size F/n.
    allowed = 3.5 * np.std(values) / np.sqrt(count) + 4 / n * expected
    assert abs(np.mean(values) - expected) < allowed < 0.1 * expected
    if spread[0] == spread[1]:
        assert expected == pytest.approx((1 / m + 1 / n) * 4 * 9 / 4, rel=0.005)


def test_disjoint_subsets_of_a_set_are_fresh_sets():
    """They are exchangeable, so that the expectation is one: over sets with draws of their own."""
    rng = np.random.default_rng(7)
    drawn, fresh = [], []
    for seed in range(80):
        real = rng.standard_normal((300, 10))
        drawn.append(frechet_of_one_law(real, (200, 40), seed, num_draws=3).mean)
        fresh.append(frechet(rng.standard_normal((200, 10)), rng.standard_normal((40, 10))))
    error = np.hypot(np.std(drawn), np.std(fresh)) / np.sqrt(80)
    # 10 features and 40 samples: nothing is different, and the distance is far from zero.
    assert abs(np.mean(drawn) - np.mean(fresh)) < 3.5 * error < 0.1 * np.mean(fresh)


def test_samples_that_are_off_are_beyond_what_real_ones_give():
    rng = np.random.default_rng(8)
    real = rng.standard_normal((600, 20))
    level = frechet_of_one_law(real, (500, 64), seed=0)
    assert level == frechet_of_one_law(real, (500, 64), seed=0)
    assert level != frechet_of_one_law(real, (500, 64), seed=1)
    assert 0 < level.low < level.mean < level.high
    # 1.4 times too wide: 20 (0.4)^2 = 3.2 more, and scatter of 0.4 or so.
    assert frechet(real[:500], 1.4 * rng.standard_normal((64, 20))) > level.high
    # Two in three are copies of real samples: of that the distance sees nothing.
    copies = np.concatenate([real[:43], rng.standard_normal((21, 20))])
    assert frechet(real[:500], copies) < level.high


def test_bad_features_and_sizes_are_refused():
    x = np.random.default_rng(9).standard_normal((10, 3))
    with pytest.raises(UserError, match="at least 2 of each"):
        frechet(x, x[:1])
    with pytest.raises(UserError, match="the same F"):
        frechet(x, x[:, :2])
    with pytest.raises(UserError, match="not finite"):
        frechet(x, np.where(x > 1, np.nan, x))
    for sizes, draws in (((6, 5), 4), ((1, 5), 4), ((5, 5), 1)):
        with pytest.raises(UserError, match="of 10 real samples"):
            frechet_of_one_law(x, sizes, 0, draws)
