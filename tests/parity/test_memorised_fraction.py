"""The authors' memorised fraction in PyTorch against ours, sample by sample."""

import numpy as np
import pytest
from scipy.stats import binomtest

torch = pytest.importorskip("torch", reason="torch is not installed")

from diffusion_jax.regimes.neighbours import nearest  # noqa: E402  (after torch is known to be there)
from diffusion_jax.training.evaluation import memorisation  # noqa: E402
from torch_ref import memorised  # noqa: E402

SHAPE = (6, 6, 1)


@pytest.fixture(scope="module")
def points():
    """Like images less their mean, in [-1, 1]; the last 20 of 220 are copies of the first."""
    drawn = np.random.default_rng(0).uniform(-1, 1, (200, *SHAPE)).astype(np.float32)
    return np.concatenate([drawn, drawn[:20]])


def at_ratio(points, ratio, seed):
    """Samples between two points with d_1/d_2 = ratio as far as float32 has it, of no third point.

    On the line through both, x = a + r/(1 + r) (b - a): |x - a|/|x - b| = r.
    """
    rng = np.random.default_rng(seed)
    apart = np.linalg.norm((points[:, None] - points).reshape(len(points), len(points), -1), axis=2)
    samples = []
    for place, r in enumerate(ratio):
        a = 20 + (place % 180)  # a point without a copy
        order = [b for b in np.argsort(apart[a]) if b != a and apart[a, b] > 0]
        b = order[0]  # its nearest: on the first quarter of the way no other is second
        samples.append(
            points[a].astype(float) + r / (1 + r) * (points[b].astype(float) - points[a])
        )
    return np.stack(samples)[rng.permutation(len(samples))].astype(np.float32)


def both(samples, points):
    ratio = memorised.distance_ratio(torch.from_numpy(samples), torch.from_numpy(points))
    return memorised.memorised(ratio).numpy(), nearest(samples, points).memorised, ratio.numpy()


def test_every_sample_is_judged_alike(points):
    """Copies with noise of all sizes, samples of no point, and some a ten-thousandth off 1/3."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((2000, *SHAPE)) * rng.uniform(0, 0.5, (2000, 1, 1, 1))
    copies = points[rng.integers(0, 200, 2000)] + noise
    fresh = rng.uniform(-1, 1, (1000, *SHAPE))
    off = rng.choice([-1, 1], 1000) * np.geomspace(1e-4, 0.1, 1000)
    close = at_ratio(points, (1 + off) / 3, 2)
    samples = np.concatenate([copies, fresh, close, points]).astype(np.float32)
    theirs, ours, ratio = both(samples, points)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ratio < 1 / 3, theirs)  # the authors compare in NumPy
    assert 1000 < ours.sum() < 3500
    near_third = np.abs(3 * ratio[3000:4000] - 1)
    assert np.sum(near_third < 2e-4) > 50
    assert memorisation(samples, points)["memorised_fraction"] == theirs.mean()


def test_a_copy_of_a_point_that_has_a_copy_is_not_memorised(points):
    """0/0 is NaN, and NaN < 1/3 is false; ours asks 0 < 0/3."""
    theirs, ours, ratio = both(points, points)
    copied = np.r_[:20, 200:220]
    assert np.isnan(ratio[copied]).all()
    assert not theirs[copied].any()
    assert not ours[copied].any()
    assert theirs[20:200].all()
    assert ours[20:200].all()
    assert np.all(ratio[20:200] == 0)
    # Nor with noise, where d_1 = d_2 > 0.
    theirs, ours, ratio = both((points[:20] + np.float32(0.03)), points)
    assert not (theirs | ours).any()
    np.testing.assert_array_equal(ratio, 1)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_within_rounding_of_a_third_either_may_come_out(points, scale):
    """Within 2e-7 of 1/3, relatively, it is rounding that decides, in theirs as in ours.

    A float32 distance of many differences is off by a last place or two, 1e-7 of it; five times
    that away from a third both are right.
    """
    off = np.concatenate([np.zeros(300), np.tile([-1.0, 1.0], 150) * np.geomspace(2e-6, 1e-3, 300)])
    samples, scaled = (
        np.float32(scale) * each for each in (at_ratio(points, (1 + off) / 3, 3), points)
    )
    theirs, ours, _ = both(samples, scaled)
    exact = np.sort(
        np.linalg.norm((samples[:, None].astype(float) - scaled).reshape(600, 220, -1), axis=2),
        axis=1,
    )
    ratio = 3 * exact[:, 0] / exact[:, 1] - 1
    sure = np.abs(ratio) > 1e-6
    np.testing.assert_array_equal(theirs[sure], ratio[sure] < 0)
    np.testing.assert_array_equal(ours[sure], ratio[sure] < 0)
    assert 200 < np.sum(~sure) < 400


def test_a_third_to_the_last_bit_is_not_memorised():
    """d_1 = k and d_2 = 3 k: 1/3 in float32 is above 1/3, and ours asks k < 3 k/3."""
    k = np.arange(1, 3000, dtype=np.float32)
    ratio = torch.from_numpy(k) / torch.from_numpy(3 * k)
    assert not memorised.memorised(ratio).any()
    for start in k[::300]:
        line = np.array([[-start], [3 * start]], np.float32)
        theirs, ours, _ = both(np.zeros((1, 1), np.float32), line)
        assert not theirs.any()
        assert not ours.any()


def test_the_number_that_is_written_is_a_mean_over_resamples():
    """Of N samples of fraction f: mean f, standard deviation sqrt(f (1 - f)/N)."""
    ratio = torch.from_numpy(np.random.default_rng(4).uniform(0, 1, 900).astype(np.float32))
    ratio[:30] = torch.nan
    found = memorised.memorised_fraction(ratio, seed=0)
    assert found == memorised.memorised_fraction(ratio, seed=0)
    assert found != memorised.memorised_fraction(ratio, seed=1)
    share = np.nansum(ratio.numpy() < 1 / 3) / 900  # NaN counts as a sample that is not memorised
    assert found.fraction == share
    error = np.sqrt(share * (1 - share) / 900)
    assert abs(found.mean - share) < 3.5 * error / np.sqrt(1000)
    # A standard deviation of 1000 resamples is within 1/sqrt(2000) of its own.
    assert found.standard_error == pytest.approx(error, rel=3.5 / np.sqrt(2000))
    wilson = binomtest(round(share * 900), 900).proportion_ci(method="wilson")
    assert found.low == pytest.approx(wilson.low, abs=0.004)
    assert found.high == pytest.approx(wilson.high, abs=0.004)


def test_none_memorised_is_zero():
    found = memorised.memorised_fraction(torch.ones(50), seed=0)
    assert found == memorised.MemorisedFraction(0.0, 0.0, 0.0, 0.0, 0.0)
