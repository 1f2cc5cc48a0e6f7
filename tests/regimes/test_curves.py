import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.stats import binomtest

from diffusion_jax.regimes.curves import Curve, average

TIMES = np.geomspace(0.01, 10, 40)


def smooth(log_time):
    return 0.75 - 0.25 * np.tanh(1.3 * log_time)


def test_the_crossing_of_a_known_curve():
    values = smooth(np.log(TIMES))
    curve = Curve(TIMES, values, np.zeros_like(values), np.stack([values, values]))
    for level in (0.6, 0.775, 0.9):
        exact = np.exp(np.arctanh((0.75 - level) / 0.25) / 1.3)
        found = curve.crossing(level)
        assert found.value == pytest.approx(exact, rel=2e-3)
        assert found.low == found.high == pytest.approx(found.value)


def test_the_largest_of_several_crossings():
    values = np.sin(np.log(TIMES))  # 0 at t = e^-pi and 1
    curve = Curve(TIMES, values, np.zeros_like(values), np.stack([values, values]))
    assert curve.crossing(0.0).value == pytest.approx(1.0, rel=1e-3)


def test_a_level_that_is_not_reached():
    values = smooth(np.log(TIMES))
    curve = Curve(TIMES, values, np.zeros_like(values), np.stack([values, values]))
    assert np.isnan([curve.crossing(0.4).value, curve.crossing(0.4).low]).all()


def test_an_interval_that_many_replicates_miss_is_not_made_up():
    values = smooth(np.log(TIMES))
    curve = Curve(TIMES, values, np.zeros_like(values), np.stack([values, values - 0.5]))
    found = curve.crossing(0.775)
    assert np.isfinite(found.value)
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_intervals_cover():
    # Correlated along time, as the draws of the engine are.
    rng = np.random.default_rng(0)
    exact_mean = smooth(np.log(TIMES))
    exact_time = np.exp(np.arctanh((0.75 - 0.775) / 0.25) / 1.3)
    trials, mean_covered, time_covered = 80, 0, 0
    for trial in range(trials):
        shift = rng.standard_normal((300, 1))
        (curve,) = average(TIMES, [exact_mean + 0.2 * shift * np.exp(-(np.log(TIMES) ** 2))], trial)
        low, high = curve.interval
        mean_covered += low[20] <= exact_mean[20] <= high[20]
        crossing = curve.crossing(0.775)
        time_covered += crossing.low <= exact_time <= crossing.high
    for covered in (mean_covered, time_covered):
        assert binomtest(int(covered), trials, 0.95).pvalue > 1e-3


def test_averages_of_what_was_drawn():
    rng = np.random.default_rng(1)
    table = rng.standard_normal((5000, 3)).astype(np.float32)
    table[1000:, 1] = np.nan
    a, b = average(np.array([1.0, 2.0, 3.0]), [table, 2 * table + 1], num_replicates=2000)
    np.testing.assert_allclose(a.mean, np.nanmean(table, 0), atol=1e-6)
    np.testing.assert_allclose(a.standard_error, [5000**-0.5, 1000**-0.5, 5000**-0.5], rtol=0.05)
    np.testing.assert_allclose(a.replicates.std(0), a.standard_error, rtol=0.06)
    # The same replicates of the draws serve both.
    np.testing.assert_allclose(b.replicates, 2 * a.replicates + 1, atol=1e-5)


def test_a_function_of_a_curve():
    rng = np.random.default_rng(2)
    (curve,) = average(np.array([1.0]), [3 + 0.1 * rng.standard_normal((2000, 1))])
    mapped = curve.map(np.exp)
    assert mapped.mean[0] == pytest.approx(np.exp(curve.mean[0]))
    assert mapped.standard_error[0] == pytest.approx(
        np.exp(curve.mean[0]) * curve.standard_error[0], rel=1e-3
    )
    np.testing.assert_allclose(mapped.interval, np.exp(curve.interval), rtol=1e-6)


def flat_curve(values):
    values = np.asarray(values, float)
    return Curve(np.arange(1.0, len(values) + 1), values, np.zeros_like(values), values[None])


@pytest.mark.parametrize(
    ("values", "between"),
    [
        ([0.2, 0.4, 0.6, 0.7, 0.5, 0.7], (2, 3)),  # the touch at the fifth is no crossing
        ([0.9, 0.7, 0.5, 0.5 - 1e-9, 0.5], None),  # nor is a plateau on the level
        ([0.9, 0.7, 0.5, 0.5 + 1e-9, 0.3], (3, 5)),  # but through it is one
        ([0.9, np.nan, 0.4, 0.3, np.nan], (1, 3)),  # times without draws are passed over
        ([np.nan, np.nan, np.nan], None),
    ],
)
def test_touches_plateaus_and_gaps(values, between):
    found = flat_curve(values).crossing(0.5).value
    if between is None:
        assert np.isnan(found)
    else:
        assert between[0] < found < between[1] or found == pytest.approx(between[0])


@pytest.mark.parametrize("share_missing", [0.0, 0.2])
def test_many_replicates_are_what_each_is_alone(share_missing):
    """Rough curves, some of them flat at the level but for 1e-4: one root at a time by Brent."""
    rng = np.random.default_rng(3)
    curves = 0.5 + 0.1 * np.cumsum(rng.standard_normal((120, 25)), axis=1)
    curves[:20, 8:16] = 0.5 + 1e-4 * np.sign(rng.standard_normal((20, 8)))
    curves[20:30] = 0.9
    curves[rng.random(curves.shape) < share_missing] = np.nan
    times = np.sort(rng.uniform(0.1, 10, 25))
    expected = []
    for values in curves:
        taken = np.flatnonzero(np.isfinite(values))
        cubic = PchipInterpolator(np.log(times[taken]), values[taken])
        changes = np.flatnonzero(np.diff(np.sign(values[taken] - 0.5)))
        if len(changes):
            ends = np.log(times[taken[changes[-1] : changes[-1] + 2]])
            expected.append(np.exp(brentq(lambda x, of=cubic: of(x) - 0.5, *ends, xtol=1e-14)))
        else:
            expected.append(np.nan)
    alone = [
        Curve(times, values, np.zeros(25), values[None]).crossing(0.5).value for values in curves
    ]
    np.testing.assert_allclose(alone, expected, rtol=1e-9)
    crossing = ~np.isnan(expected)
    assert 50 < crossing.sum() < 120
    together = Curve(times, curves[0], np.zeros(25), curves[crossing]).crossing(0.5)
    quantiles = np.percentile(np.array(expected)[crossing], [2.5, 97.5])
    np.testing.assert_allclose([together.low, together.high], quantiles, rtol=1e-9)
