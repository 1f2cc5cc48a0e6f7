"""I(c; x_t), its rate and its peak: against the guidance vector, closed forms and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from diffusion_jax.errors import UserError
from diffusion_jax.regimes import class_information
from diffusion_jax.regimes.class_information import CLOCKS, groups_named, merged, pairs, part
from diffusion_jax.regimes.curves import Curve
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.measures import OBSERVABLES
from diffusion_jax.regimes.observables import Ensemble
from diffusion_jax.regimes.posterior import draw
from diffusion_jax.regimes.transitions import TIMES, summarize, summarize_class
from diffusion_jax.symmetry import Group

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

LOG_2 = np.log(2)
LARGE = GaussianMixture(1024)


def rate_of(draws, weights):
    """What each draw adds to -dI/dt (N, T)."""
    return OBSERVABLES["class_rate"].values(Ensemble(draws, 2, weights))


def entropy_of(draws, weights):
    return OBSERVABLES["class_entropy"].values(Ensemble(draws, 2, weights))


def noise_of(key, num_draws, d):
    """The engine's own noise, from its key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key)[1], jnp.arange(num_draws))
    return np.asarray(jax.vmap(lambda k: jax.random.normal(k, (d,)))(keys), np.float64)


def guidance(points, groups, index, z, t):
    """|e(x | c) - e(x)|^2/Delta in float64, from the two denoised images; and H(c | x_t).

    Args:
      groups: of each point (n,); points of a negative one count for nothing.
    """
    a, chosen = points.astype(np.float64), groups >= 0
    delta, shrink = -np.expm1(-2 * t), np.exp(-t)
    x = shrink * a[index] + np.sqrt(delta) * z
    log_weight = -np.sum((x[:, None] - shrink * a[None]) ** 2, 2) / (2 * delta)
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True)) * chosen
    inside = np.where(groups == groups[index][:, None], weight, 0)

    def noise(weights):
        return (x - shrink * (weights / weights.sum(1, keepdims=True)) @ a) / np.sqrt(delta)

    p = np.stack([weight[:, groups == c].sum(1) for c in range(groups.max() + 1)], 1)
    p /= p.sum(1, keepdims=True)
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), 1)
    return np.sum((noise(inside) - noise(weight)) ** 2, 1) / delta, entropy


@pytest.fixture(scope="module")
def cloud():
    """Four unequal classes of images of 3 x 2 pixels and two channels, two points nearly equal."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(range(4), [5, 9, 12, 3]))
    points = rng.normal(0, 0.4, (29, 3, 2, 2)) + 0.5 * rng.normal(size=(4, 3, 2, 2))[labels]
    points[1] = points[0] + 1e-3
    return points.astype(np.float32), labels


@pytest.mark.parametrize(
    "groups", [None, [[0], [2]], [[3, 0], [1, 2]], [[1, 3], [2]]], ids=["all", "pair", "2+2", "2+1"]
)
def test_the_rate_is_the_square_of_the_guidance_vector(cloud, groups):
    points, labels = cloud
    times, key, num = np.array([0.15, 0.4, 0.8, 1.6, 3.0]), jax.random.key(3), 8 * 29 * 20
    draws = draw(points, labels, times, key, num)
    z, group_of, rows = noise_of(key, num, 12), labels, np.arange(num)
    weights = np.bincount(labels) / 29
    if groups is not None:
        group_of = np.full(29, -1)
        for number, group in enumerate(groups):
            group_of[np.isin(labels, group)] = number
        rows = np.flatnonzero(group_of[draws.index] >= 0)
        draws = merged(draws, groups)
        np.testing.assert_array_equal(draws.labels, group_of[draws.index])
        weights = np.bincount(group_of[group_of >= 0]) / np.sum(group_of >= 0)
    rates, entropies = rate_of(draws, weights), entropy_of(draws, weights)
    flat = points.reshape(29, -1)
    for j, t in enumerate(times):
        direct, entropy = guidance(flat, group_of, draws.index, z[rows], t)
        np.testing.assert_allclose(entropies[:, j], entropy, atol=2e-4)
        difference = rates[:, j] - direct
        error = difference.std() / np.sqrt(len(rows))
        assert abs(difference.mean()) < 4 * error
        assert direct.mean() > 8 * error  # so it could have failed


def test_the_rate_is_the_slope_of_the_information(cloud):
    """-dI/dt, by differences of H(c | x_t) on the same draws."""
    points, labels = cloud
    times, step = np.array([0.4, 0.9, 1.7]), 1e-2
    grid = (times[:, None] + step * np.array([-1, 0, 1])).reshape(-1)
    weights = np.bincount(labels) / 29
    draws = draw(points, labels, grid, jax.random.key(4), 29 * 400)
    entropy = entropy_of(draws, weights).astype(np.float64)
    slope = (entropy[:, 2::3] - entropy[:, ::3]) / (2 * step)
    difference = slope - rate_of(draws, weights)[:, 1::3]
    error = difference.std(0) / np.sqrt(len(difference))
    assert np.all(np.abs(difference.mean(0)) < 4 * error)
    assert np.all(slope.mean(0) > 8 * error)


def test_known_answers_of_two_gaussians():
    for s, entropy, information, unsure in (
        (0.25, 0.581726, 0.111421, 0.795946),
        (1, 0.356316, 0.336831, 0.449600),
        (4, 0.060427, 0.632720, 0.068597),
    ):
        t = 0.5 * np.log(1024 / s)
        assert float(LARGE.class_entropy(t)) == pytest.approx(entropy, abs=1e-6)
        assert float(LARGE.class_information(t)) == pytest.approx(information, abs=1e-6)
        assert float(LARGE.class_rate(t)) / s == pytest.approx(unsure, abs=1e-6)
    peak = LARGE.rate_peak()
    assert peak == pytest.approx(3.260234, abs=1e-6)
    assert peak == pytest.approx(0.5 * np.log(1024) - 0.2055, abs=1e-4)
    assert float(LARGE.separation(peak)) == pytest.approx(1.508331, abs=1e-6)
    assert float(LARGE.class_rate(peak)) == pytest.approx(0.479516, abs=1e-6)
    assert float(LARGE.phi(peak)) == pytest.approx(0.841044, abs=1e-6)
    assert LARGE.rate_peak(CLOCKS["per t"]) == pytest.approx(peak, abs=1e-6)
    assert LARGE.rate_peak(CLOCKS["per log t"]) == pytest.approx(3.354615, abs=1e-6)
    assert LARGE.rate_peak(CLOCKS["per log SNR"]) == pytest.approx(3.261094, abs=1e-6)
    half = brentq(lambda t: float(LARGE.class_entropy(t)) - LOG_2 / 2, 3, 4)
    assert half == pytest.approx(3.444200, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_the_closed_rate_is_the_slope_of_the_closed_information(sigma):
    mixture, t, step = GaussianMixture(50, 0.7, sigma), np.array([0.3, 1.0, 1.9, 3.0]), 1e-5
    slope = (mixture.class_entropy(t + step) - mixture.class_entropy(t - step)) / (2 * step)
    np.testing.assert_allclose(mixture.class_rate(t), slope, rtol=1e-6)


def test_many_points_of_two_gaussians():
    """In 64 dimensions speciation, at 2.08, is far above the collapse of 2 000 points, at 0.78."""
    mixture = GaussianMixture(64)
    points, labels = mixture.sample(np.random.default_rng(1), 2000)
    times = np.geomspace(1.2, 4, 14)
    found = summarize(draw(points, labels, times, jax.random.key(5), 2500), 2000, np.full(2, 0.5))
    for name in ("class_entropy", "class_information", "class_rate"):
        curve, exact = found.curves[name], getattr(mixture, name)(times)
        # The points' own centres are off by 1/sqrt(n): s by 1/700 or so, what is of it no more.
        assert np.all(np.abs(curve.mean - exact) < 4 * curve.standard_error + 3e-3)
    peak = found.times["t_S_rate"]
    assert peak.low < mixture.rate_peak() < peak.high < peak.low + 0.15
    for clock, time in class_information.peaks(found.curves["class_rate"]).items():
        assert time.low < mixture.rate_peak(CLOCKS[clock]) < time.high


@pytest.mark.parametrize("dimension", [16, 64, 1024])
def test_the_peak_of_a_smooth_curve_is_found_between_the_times(dimension):
    mixture = GaussianMixture(dimension)
    rate = mixture.class_rate(TIMES)
    curve = Curve(TIMES, rate, np.zeros_like(rate), np.stack([rate, rate]))
    found = curve.peak()
    assert found.value == pytest.approx(mixture.rate_peak(), rel=2e-3)
    assert found.low == found.high == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("values", "between"),
    [
        ([0, 1, 3, 1, 0], (2.5, 3.5)),
        ([0, 2, 1, 0, 0, 1.2, 2.5, 1.3, 0], (6.5, 7.5)),  # the larger of two
        ([0, np.nan, 1, 3, 1, np.nan, 0], (3.5, 4.5)),
        ([0, 1, 2, 3], None),
        ([3, 2, 1, 0], None),
        ([-1, -0.5, -1], None),
        ([0, 0, 0, 0], None),
        ([np.nan, np.nan], None),
    ],
)
def test_where_a_peak_is_and_is_not(values, between):
    values = np.array(values, float)
    times = np.arange(1.0, len(values) + 1)
    found = Curve(times, values, np.zeros_like(values), np.stack([values, values])).peak()
    if between is None:
        assert np.isnan([found.value, found.low, found.high]).all()
    else:
        assert between[0] < found.low == found.value == found.high < between[1]


def test_a_peak_that_replicates_miss_has_no_interval():
    rise, peak = np.arange(5.0), np.array([0.0, 1, 3, 1, 0])
    found = Curve(np.arange(1.0, 6), peak, 0 * peak, np.stack([peak, rise])).peak()
    assert 2.5 < found.value < 3.5
    assert np.isnan([found.low, found.high]).all()


def test_a_pair_is_what_its_points_alone_are(cloud):
    """And a group of all classes but one, the classes in another order."""
    points, labels = cloud
    times = np.array([0.2, 0.7, 1.5])
    draws = draw(points, labels, times, jax.random.key(6), 29 * 60)
    weights = np.bincount(labels) / 29
    for groups in ([[2], [1]], [[3, 1], [0]]):
        inside = np.isin(labels, np.concatenate(groups))
        group_of = np.array([next((i for i, g in enumerate(groups) if c in g), 0) for c in labels])
        alone = draw(points[inside], group_of[inside], times, jax.random.key(7), 60 * inside.sum())
        shares = np.bincount(group_of[inside]) / inside.sum()
        expected = summarize(alone, int(inside.sum()), shares)
        found = part(draws, weights, "abcd", groups)
        np.testing.assert_allclose(found.weights, shares)
        assert found.groups == tuple(tuple("abcd"[label] for label in group) for group in groups)
        assert found.regimes.floor == pytest.approx(expected.floor)
        for name in class_information.MEASURES:
            one, other = found.regimes.curves[name], expected.curves[name]
            error = np.hypot(one.standard_error, other.standard_error)
            assert np.all(np.abs(one.mean - other.mean) < 4 * error + 1e-6)


def test_groups_of_one_class_each_are_all_classes(cloud):
    points, labels = cloud
    draws = draw(points, labels, np.array([0.2, 0.7, 1.5]), jax.random.key(8), 29 * 20)
    weights = np.bincount(labels) / 29
    same = merged(draws, [[0], [1], [2], [3]])
    for name in ("log_own", "log_evidence", "squared"):
        np.testing.assert_allclose(getattr(same, name), getattr(draws, name), rtol=1e-5, atol=1e-6)
    whole, parted = (
        summarize(draws, 29, weights),
        part(draws, weights, "abcd", [[0], [1], [2], [3]]),
    )
    for name in class_information.MEASURES:
        np.testing.assert_allclose(
            parted.regimes.curves[name].mean, whole.curves[name].mean, rtol=1e-5, atol=1e-6
        )
    # In another order, and in coarser groups, x_t says less: I(groups) <= I(classes).
    coarse = part(draws, weights, "abcd", [[3, 0], [2, 1]]).regimes.curves["class_information"]
    assert np.all(coarse.mean < whole.curves["class_information"].mean)


def test_pairs_are_told_of_three_to_ten_classes(cloud):
    points, labels = cloud
    draws = draw(points, labels, np.array([0.3, 0.6, 1.2]), jax.random.key(9), 29 * 20)
    found = pairs(draws, np.bincount(labels) / 29, "abcd")
    assert [pair.name for pair in found] == ["a | b", "a | c", "a | d", "b | c", "b | d", "c | d"]
    assert pairs(draws, np.full(2, 0.5), "ab") == pairs(draws, np.full(11, 1 / 11), "x" * 11) == ()


def test_a_class_of_one_point(cloud):
    points = np.concatenate([cloud[0][:6], 3 + cloud[0][6:7]])
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    times = np.array([1e-3, 0.5, 5.0])
    draws = draw(points, labels, times, jax.random.key(10), 70)
    found = part(draws, np.bincount(labels) / 7, "abc", [[2], [0]]).regimes
    for name in class_information.MEASURES:
        assert np.isfinite(found.curves[name].mean).all()
    assert found.curves["class_information"].mean[0] == pytest.approx(found_entropy(1, 3), abs=1e-3)


def found_entropy(*counts):
    share = np.array(counts) / sum(counts)
    return -np.sum(share * np.log(share))


def test_what_x_t_says_of_its_point_is_the_entropy_of_the_distinct_ones():
    """Three copies of one point, two of another, five alone."""
    rng = np.random.default_rng(11)
    points = rng.normal(size=(10, 5)).astype(np.float32)
    points[1] = points[2] = points[0]
    points[4] = points[3]
    times = np.array([1e-3, 12.0])
    found = summarize(draw(points, None, times, jax.random.key(11), 100), 10, np.ones(1)).curves
    entropy = found_entropy(3, 2, 1, 1, 1, 1, 1)
    np.testing.assert_allclose(found["point_information"].mean, [entropy, 0], atol=1e-4)
    largest = (3 / 3 + 2 / 2 + 5) / 10
    np.testing.assert_allclose(found["largest_weight"].mean, [largest, 0.1], atol=1e-4)
    assert "class_information" not in found


def test_the_largest_weight_of_two_points():
    """Of two points it is 1/2 (1 + E |tanh y|), y of two Gaussians without width."""
    points, times = np.array([[0.5], [-0.5]], np.float32), np.array([0.1, 0.5, 1.5])
    found = summarize(draw(points, None, times, jax.random.key(12), 4000), 2, np.ones(1))
    s = 0.25 / np.expm1(2 * times)
    z, w = np.linspace(-10, 10, 40_001), np.exp(-(np.linspace(-10, 10, 40_001) ** 2) / 2)
    exact = 0.5 + 0.5 * np.abs(np.tanh(s[:, None] + np.sqrt(s)[:, None] * z)) @ (w / w.sum())
    curve = found.curves["largest_weight"]
    assert np.all(np.abs(curve.mean - exact) < 4 * curve.standard_error)


def test_a_single_class_has_no_rate_of_its_own(cloud):
    points, labels = cloud
    draws = draw(points, labels, np.array([0.3, 0.6, 1.2]), jax.random.key(13), 29 * 20)
    one = summarize_class(draws, 29, np.bincount(labels) / 29, 1)
    assert {"class_rate", "class_information"}.isdisjoint(one.curves)
    assert "t_S_rate" not in one.times
    assert {"class_entropy", "point_information", "largest_weight"} <= set(one.curves)


def test_the_rate_with_a_symmetry_is_that_of_the_orbit_stored():
    rng = np.random.default_rng(14)
    images = rng.uniform(size=(12, 3, 4, 2)).astype(np.float32)
    labels, times = np.arange(12) % 3, np.array([0.2, 0.5, 1.0])
    group, weights = Group.flip(), np.full(3, 1 / 3)
    lazy = draw(images, labels, times, jax.random.key(14), 12 * 250, group)
    stored = np.concatenate([images, images[:, :, ::-1]])
    plain = draw(stored, np.tile(labels, 2), times, jax.random.key(15), 24 * 125)
    one, other = rate_of(lazy, weights), rate_of(plain, weights)
    error = np.hypot(one.std(0), other.std(0)) / np.sqrt(len(one))
    assert np.all(np.abs(one.mean(0) - other.mean(0)) < 4 * error)
    assert np.all(one.mean(0) > 8 * error)


NAMES = ("0", "church outdoor", "a,b")


def test_a_partition_names_classes():
    assert groups_named([["a,b", "0"], ["church outdoor"]], NAMES) == [[2, 0], [1]]
    assert groups_named(["0", ("a,b",)], NAMES) == [[0], [2]]
    assert groups_named([[2, 0], [1]], ("0", "1", "2")) == [[2, 0], [1]]
    assert groups_named([1, 0], ("0", "1", "2")) == [[1], [0]]


@pytest.mark.parametrize(
    ("partition", "names", "message"),
    [
        ([["0"], []], NAMES, r"group 2 of the partition names no class; the classes are 0, church"),
        ([["0"], ["x"]], NAMES, "the data set of the partition has no class x; its classes are 0"),
        ([["0"], ["a,b", "0"]], NAMES, "the partition names class 0 more than once"),
        ([["0", "0"], ["a,b"]], NAMES, "the partition names class 0 more than once"),
        ([["0", "a,b"]], NAMES, "a partition has two groups of classes at least, not 1"),
        ([], NAMES, "a partition has two groups of classes at least, not 0"),
        ([["0"], ["1"]], (), "a partition is one of classes, and the data set does not have two"),
        ([["0"], ["1"]], ("0",), "a partition is one of classes, and the data set does not have"),
    ],
    ids=["empty", "unknown", "twice", "twice in one", "one", "none", "no labels", "one class"],
)
def test_what_a_partition_must_be(partition, names, message):
    with pytest.raises(UserError, match=message):
        groups_named(partition, names)
