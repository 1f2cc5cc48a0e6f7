import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.learned_modes import learned_modes

UPDATES = [1, 2, 4, 8, 16, 32, 64]
VARIANCES = np.array([9.0, 2.0, 0.5, 0.1])
# The samples' variance over the training set's: learned in order, the last never; one at once, and
# one that is lost again.
RATIOS = np.array(
    [
        [0.1, 0.2, 0.8, 1.0, 1.0, 1.0, 1.0],
        [2.0, 0.1, 0.1, 0.3, 0.9, 1.0, 1.0],
        [0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0],
        [0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.2],
    ]
)


@pytest.fixture(scope="module")
def modes():
    return np.linalg.qr(np.random.default_rng(1).standard_normal((8, 8)))[0][:4]


def samples(modes, count):
    """Gaussian samples with these variances, and with others across the modes."""
    rng = np.random.default_rng(0)
    noise, across = rng.standard_normal((2, count, 8))
    across -= across @ modes.T @ modes
    scale = np.sqrt(RATIOS * VARIANCES[:, None])
    return [
        ((noise[:, :4] * scale[:, i]) @ modes + 3 * across + 5.0).reshape(count, 2, 4, 1)
        for i in range(len(UPDATES))
    ]


def test_samples_of_known_variances(modes):
    """A variance of 4 000 samples is within sqrt(2/4000) of its own: four of that here."""
    found = learned_modes(samples(modes, 4000), UPDATES, modes, VARIANCES)
    for ratio, curve in zip(RATIOS, found.curves, strict=True):
        np.testing.assert_allclose(curve.mean, ratio, rtol=4 * np.sqrt(2 / 4000))
        low, high = curve.interval
        assert np.mean((low < ratio) & (ratio < high)) > 0.5
    first, second, third, fourth = found.learned
    assert 2 < first.low < first.value < first.high < 4
    assert 8 < second.low < second.value < second.high < 16  # for good, not at the first update
    assert np.isnan(third.value)
    assert found.at_once.tolist() == [False, False, True, False]
    assert np.isnan(fourth.value)


def test_against_numpy_and_with_few_samples(modes):
    drawn = samples(modes, 5)
    found = learned_modes(drawn, UPDATES, modes, VARIANCES)
    for place, each in enumerate(drawn):
        expected = np.var(each.reshape(5, 8) @ modes.T, axis=0, ddof=1) / VARIANCES
        np.testing.assert_allclose([c.mean[place] for c in found.curves], expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "checkpoints"), [(1, 7), (5, 1), (5, 0)])
def test_too_few_are_refused(modes, count, checkpoints):
    drawn = samples(modes, count)[:checkpoints]
    with pytest.raises(UserError, match=f"{checkpoints} checkpoints of"):
        learned_modes(drawn, UPDATES[:checkpoints], modes, VARIANCES)
