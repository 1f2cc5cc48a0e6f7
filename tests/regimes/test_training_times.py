"""When a training reaches something, and the power of n by which that grows."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.training_times import Reached, power_law, reached, when


def test_the_update_from_which_on():
    updates = np.array([10, 100, 1000, 10_000])
    np.testing.assert_allclose(reached(updates, [0, 0, 1, 1], 0.5), 10**2.5)
    np.testing.assert_allclose(reached(updates, [0, 0.25, 1, 1], 0.25), 100)
    # Once it falls below again, the last rise counts; where it ends below, nothing does.
    np.testing.assert_allclose(reached(updates, [0, 1, 0, 1], 0.5), 10**3.5)
    found = reached(updates, [[0, 1, 1, 0.4], [1, 1, 1, 1], [np.nan, np.nan, 1, 1]], 0.5)
    np.testing.assert_allclose(found, [np.nan, 10, 1000])
    np.testing.assert_array_equal(reached(updates[:1], [0.5], 0.5), 10)
    assert reached(updates, [-np.inf, -np.inf, 0, 0], 0.0) == pytest.approx(1000)
    for wrong in ([], [0, 1], [3, 3], [5, 4]):
        with pytest.raises(UserError, match="must increase from 1 on"):
            reached(np.array(wrong), np.zeros(len(wrong)), 0)


def test_an_interval_may_have_no_end():
    updates = np.array([1, 10, 100])
    values = np.array([0, 0.3, 1])
    rows = np.stack([values * factor for factor in np.linspace(0.4, 1.6, 41)])
    found = when(updates, values, rows, 0.5)
    assert found.estimate.low < found.update < 100
    assert np.isnan(found.estimate.high)  # a tenth of the replicates ends below the level
    assert found.estimate.low == pytest.approx(10 ** (1 + 0.02 / 1.12), rel=0.05)
    assert when(updates, values + 1, rows + 1, 0.5).from_start


@pytest.mark.parametrize("b", [1.0, 0.0, -0.5])
def test_a_power_law_is_found_and_covered(b):
    """Times with known errors: the exponent lies in its interval for 88 of 100 draws at least."""
    rng, inside = np.random.default_rng(0), 0
    sizes = [32, 64, 64, 128, 256]
    for _ in range(100):
        errors = 0.1 * rng.standard_normal((5, 401))
        times = []
        for size, own in zip(sizes, errors, strict=True):
            value = 7.0 * size**b * np.exp(own[0])
            times.append(Reached(value, value * np.exp(own[1:]), False))
        law = power_law(sizes, times)
        inside += law.exponent.low <= b <= law.exponent.high
    assert inside >= 88
    exact = power_law(sizes, [Reached(7.0 * n**b, np.full(9, 7.0 * n**b), False) for n in sizes])
    assert exact.exponent.value == pytest.approx(b, abs=1e-12)
    assert exact.prefactor == pytest.approx(7)
    assert exact.sizes == sizes


def test_what_has_no_power_law():
    def at(update, from_start=False):
        return Reached(update, np.full(5, update), from_start)

    assert power_law([32], [at(5.0)]) is None
    assert power_law([32, 32], [at(5.0), at(6.0)]) is None
    assert power_law([32, 64], [at(5.0), at(np.nan)]) is None
    assert power_law([32, 64], [at(5.0), at(6.0, True)]) is None
    assert power_law([], []) is None
    # Some replicates that do not reach it count at the end of those that do.
    some = Reached(20.0, np.array([18.0, np.nan, 22.0]), False)
    law = power_law([10, 20], [Reached(10.0, np.full(3, 10.0), False), some])
    assert law.exponent.value == pytest.approx(1)
    assert law.exponent.high < np.log2(2.2) + 1e-9
