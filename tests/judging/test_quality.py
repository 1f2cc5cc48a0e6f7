"""Kernel distance, precision and recall: closed forms, brute force, hand-made configurations."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.judging import quality


def gaussian_moments(mean, sigma):
    return np.array([mean, mean**2 + sigma**2, mean**3 + 3 * mean * sigma**2])


def test_mmd2_is_unbiased_for_two_gaussians():
    """(x y + 1)^3 = sum_j binom(3, j) x^j y^j: the distance is that of the first three moments."""
    rng = np.random.default_rng(0)
    difference = gaussian_moments(0.4, 0.9) - gaussian_moments(-0.1, 0.6)
    expected = np.sum(np.array([3, 3, 1]) * difference**2)
    values = [
        quality.mmd2(
            rng.normal(0.4, 0.9, (7, 1)),
            rng.normal(-0.1, 0.6, (5, 1)),
        )
        for _ in range(20_000)
    ]
    error = np.std(values) / np.sqrt(len(values))
    assert error < 0.03 * expected
    assert abs(np.mean(values) - expected) < 3.5 * error


def test_mmd2_of_one_law_is_zero_on_average_and_negative_half_the_time():
    rng = np.random.default_rng(1)
    values = np.array([quality.mmd2(*rng.standard_normal((2, 9, 4))) for _ in range(6000)])
    error = values.std() / np.sqrt(len(values))
    # With the diagonal it would be k(x, x)/9 off on either side, hundreds of errors.
    assert abs(values.mean()) < 3.5 * error < 0.05
    assert 0.3 < np.mean(values < 0) < 0.8


@pytest.mark.parametrize("sizes", [(2, 3), (12, 7), (700, 530)])
def test_mmd2_is_the_sum_over_all_pairs(sizes):
    rng = np.random.default_rng(2)
    x, y = (rng.standard_normal((n, 3)) + 0.3 for n in sizes)

    def average(a, b, distinct):
        kernel = (np.einsum("if,jf->ij", a, b) / 3 + 1) ** 3
        return kernel[~np.eye(len(a), dtype=bool)].mean() if distinct else kernel.mean()

    expected = average(x, x, True) + average(y, y, True) - 2 * average(x, y, False)
    np.testing.assert_allclose(quality.mmd2(x, y), expected, rtol=1e-10)
    np.testing.assert_allclose(quality.mmd2(y, x), expected, rtol=1e-10)
    shuffled = quality.mmd2(rng.permutation(x), rng.permutation(y))
    np.testing.assert_allclose(shuffled, expected, rtol=1e-10)


def test_the_standard_error_of_the_subsets_covers_the_population():
    rng = np.random.default_rng(3)
    difference = gaussian_moments(0.5, 1.0) - gaussian_moments(0.0, 1.0)
    expected = np.sum(np.array([3, 3, 1]) * difference**2)
    off = []
    for seed in range(300):
        found = quality.kid(rng.normal(0.5, 1, (480, 1)), rng.normal(0, 1, (500, 1)), 16, 30, seed)
        off.append((found.mean - expected) / found.standard_error)
    # Student's t with 15 degrees of freedom, a little skewed: deviation 1.07.
    assert abs(np.mean(off)) < 0.35
    assert 0.9 < np.std(off) < 1.35


def test_kid_follows_from_its_seed_and_its_subsets_share_nothing(monkeypatch):
    x, y = np.random.default_rng(4).standard_normal((2, 64, 5))
    first, again, other = (quality.kid(x, y, 4, 15, seed) for seed in (0, 0, 1))
    assert first == again != other

    seen = []
    monkeypatch.setattr(quality, "mmd2", lambda *pair: float(len(seen.append(pair) or seen)))
    found = quality.kid(x, y, 4, 15, 0)
    assert (found.mean, found.standard_error) == (2.5, np.std([1, 2, 3, 4], ddof=1) / 2)
    for side, whole in enumerate((x, y)):
        rows = np.concatenate([pair[side] for pair in seen])
        assert len(np.unique(rows, axis=0)) == len(rows) == 60
        assert np.isin(rows, whole).all()


def test_precision_and_recall_of_the_same_and_of_distant_sets():
    x = np.random.default_rng(5).standard_normal((1100, 4))
    assert quality.precision_recall(x, x) == quality.PrecisionRecall(1.0, 1.0)
    assert quality.precision_recall(x, x + 100) == quality.PrecisionRecall(0.0, 0.0)
    # Copies of a few points are all precise, and cover only what is near.
    repeated = quality.precision_recall(x, np.repeat(x[:20], 55, axis=0))
    assert repeated.precision == 1.0
    assert repeated.recall == 20 / 1100


def test_precision_and_recall_of_a_few_points_on_a_line():
    """k = 1: radii 1, 1, 1, 8 on the real side, 0.5, 0.5, 17, 0.5 on the other."""
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    fake = np.array([[2.5], [3.0], [20.0], [2.0]])
    found = quality.precision_recall(real, fake, k=1)
    # 3 is on the edge of the ball of 2; 20 is outside that of 10.
    assert found.precision == 3 / 4
    # The ball of 20 holds 10, that of 2 its own centre; 0 and 1 are in none.
    assert found.recall == 2 / 4
    # k = 2: radii 2, 1, 2, 9 and 0.5, 1, 17.5, 1. Now 1 is on the edge of the ball of 2.
    found = quality.precision_recall(real, fake, k=2)
    assert (found.precision, found.recall) == (3 / 4, 3 / 4)


def test_precision_and_recall_by_brute_force_in_any_order():
    rng = np.random.default_rng(6)
    real, fake = rng.standard_normal((620, 3)), 0.7 * rng.standard_normal((540, 3)) + 0.5

    def covered(points, manifold, k):
        inside = 0
        radius = [np.sort(np.linalg.norm(manifold - a, axis=1))[k] for a in manifold]
        for point in points:
            inside += bool(np.any(np.linalg.norm(manifold - point, axis=1) <= radius))
        return inside / len(points)

    for k in (1, 3):
        found = quality.precision_recall(real, fake, k)
        assert found.precision == covered(fake, real, k)
        assert found.recall == covered(real, fake, k)
        assert 0.2 < found.recall < found.precision < 1
        swapped = quality.precision_recall(fake, real, k)
        assert (swapped.precision, swapped.recall) == (found.recall, found.precision)
        shuffled = quality.precision_recall(rng.permutation(real), rng.permutation(fake), k)
        assert shuffled == found


def test_bad_features_are_refused():
    x = np.random.default_rng(7).standard_normal((10, 3))
    with pytest.raises(UserError, match="at least 2 of each"):
        quality.mmd2(x, x[:1])
    with pytest.raises(UserError, match="at least 4 of each"):
        quality.precision_recall(x[:3], x)
    with pytest.raises(UserError, match="k = 0"):
        quality.precision_recall(x, x, 0)
    with pytest.raises(UserError, match="at least 12 of each"):
        quality.kid(x, x, 3, 4, 0)
    with pytest.raises(UserError, match="must be at least 2"):
        quality.kid(x, x, 1, 4, 0)
    with pytest.raises(UserError, match="the same F"):
        quality.mmd2(x, x[:, :2])
    with pytest.raises(UserError, match="the same F"):
        quality.precision_recall(x.ravel(), x)
    with pytest.raises(UserError, match="not finite"):
        quality.mmd2(x, np.where(x > 1, np.nan, x))
