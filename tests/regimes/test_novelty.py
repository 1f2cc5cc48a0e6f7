"""Memorised, spurious and novel samples: sets made to be so, copies, and what chance gives."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.regimes.novelty import Novelty, novelty
from diffusion_jax.symmetry import Group

D = 48


def draws(count, seed):
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def near(points, size, seed):
    """At that distance from the points, each in a direction of its own."""
    step = draws(len(points), seed)
    return points + size * step / np.linalg.norm(step, axis=1, keepdims=True)


TRAINING, STATES = draws(300, 0), draws(5, 1)


def kinds(found):
    return ["memorised" if m else "spurious" if s else "novel" for m, s in zip(*found, strict=True)]


@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_sets_made_to_be_so(noise):
    """In 48 dimensions points are about 7 to 10 apart: copies with noise of 0.8 are copies."""
    samples = np.concatenate(
        [near(TRAINING[:20], noise, 2), near(STATES[[0, 1, 2, 0]], noise, 3), draws(40, 4)]
    )
    # Each state with one, two or many generated samples on it; and copies of training points.
    second = np.concatenate(
        [
            near(np.repeat(STATES[:3], [1, 2, 50], axis=0), noise, 5),
            near(TRAINING[:30], noise, 6),
            draws(200, 7),
        ]
    )
    found = novelty(samples, TRAINING, second)
    expected = ["memorised"] * 20 + ["spurious"] * 4 + ["novel"] * 40
    assert kinds((found.memorised, found.spurious)) == expected
    np.testing.assert_array_equal(found.novel, ~(found.memorised | found.spurious))
    fractions = found.fractions()
    for name, count in (("memorised", 20), ("spurious", 4), ("novel", 40)):
        wilson = binomtest(count, 64).proportion_ci(method="wilson")
        assert fractions[name].value == count / 64
        assert (fractions[name].low, fractions[name].high) == (wilson.low, wilson.high)


def test_the_distances_and_the_thirds_by_brute_force():
    """Noise of all sizes up to the distances themselves: the rules are close now and then."""
    rng = np.random.default_rng(8)
    size = rng.uniform(0, 5, (2, 400, 1))
    half = np.concatenate([TRAINING[:200], np.repeat(STATES, 40, axis=0)])
    samples, second = (
        near(half, each, seed).astype(np.float32) for each, seed in zip(size, (9, 10), strict=True)
    )
    found = novelty(samples, TRAINING, second)

    def distances(points):
        apart = samples[:, None].astype(float) - points
        return np.sort(np.linalg.norm(apart, axis=2), axis=1)

    to_training, to_second = distances(TRAINING), distances(second)
    np.testing.assert_allclose(found.distance, to_training[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.second, to_training[:, 1], rtol=1e-5)
    np.testing.assert_allclose(found.generated, to_second[:, 0], rtol=1e-5)
    memorised = 3 * to_training[:, 0] < to_training[:, 1]
    spurious = ~memorised & (3 * to_second[:, 0] < to_training[:, 0])
    np.testing.assert_array_equal(found.memorised, memorised)
    np.testing.assert_array_equal(found.spurious, spurious)
    assert 20 < spurious.sum() < 380
    assert 20 < memorised.sum() < 380


def test_copies_in_both_sets():
    """Equal training points count as one, equal generated ones are a state; near ones hide it."""
    doubled = np.concatenate([TRAINING, TRAINING[:10]])
    twice = np.repeat(STATES[:1], 3, axis=0)
    samples = np.concatenate([TRAINING[:12], near(TRAINING[:12], 0.5, 11), STATES[:1]])
    assert not nearest(samples, doubled).memorised[:10].any()
    found = novelty(samples, doubled, twice)
    once = novelty(samples, TRAINING, twice)
    for each in ("distance", "second", "generated"):
        np.testing.assert_array_equal(getattr(found, each), getattr(once, each))
    assert found.memorised[:24].all()
    assert found.spurious[24]
    np.testing.assert_array_equal(once.memorised, nearest(samples, TRAINING).memorised)
    # Copies that are not quite equal stay two points, and what is near both is not memorised.
    nearly = np.concatenate([TRAINING, near(TRAINING[:10], 0.1, 12)])
    assert not novelty(near(TRAINING[:10], 0.5, 13), nearly, twice).memorised.any()


def test_samples_against_each_other():
    """Each beside the others and not itself; a copy among them is another."""
    samples = np.concatenate([near(STATES[[0, 0, 1, 1, 1]], 0.5, 14), STATES[3:4], draws(30, 15)])
    found = novelty(samples, TRAINING)
    assert found.spurious.tolist() == [True] * 5 + [False] * 31
    apart = np.linalg.norm(samples[:, None] - samples, axis=2)
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_allclose(found.generated, apart.min(axis=1), rtol=1e-5)
    doubled = novelty(np.concatenate([samples, samples[-3:]]), TRAINING)
    assert doubled.spurious.tolist() == [True] * 5 + [False] * 28 + [True] * 6
    assert np.all(doubled.generated[-3:] == 0)


@pytest.mark.parametrize(("dimensions", "ratio"), [(1, 1), (1, 4), (2, 1), (3, 2)])
def test_what_chance_gives(dimensions, ratio):
    """Points evenly on [-1, 1]^D around the sample: 3^-D, and M/(M + 3^D n).

    Fresh sets for every sample, so that the samples are independent.
    """
    rng = np.random.default_rng(16)
    n, trials = 60, 4000

    def distances(count):
        apart = np.linalg.norm(rng.uniform(-1, 1, (trials, count, dimensions)), axis=2)
        return np.partition(apart, 1, axis=1)[:, :2].T

    found = Novelty(*distances(n), distances(ratio * n)[0])
    near_other = found.generated < found.distance / 3
    chances = (3.0**-dimensions, ratio / (ratio + 3.0**dimensions))
    for flags, chance in zip((found.memorised, near_other), chances, strict=True):
        # A Poisson process but for terms of relative size 1/n.
        low = binom.ppf(0.0005, trials, chance * (1 - 1 / n))
        high = binom.ppf(0.9995, trials, chance * (1 + 1 / n))
        assert low <= flags.sum() <= high


def test_maps_of_a_sample_are_that_sample():
    group = Group.flip()
    training, state = draws(20, 17).reshape(20, 4, 4, 3), draws(1, 18).reshape(1, 4, 4, 3)
    samples = np.concatenate([training[:1, :, ::-1], state])
    second = np.concatenate([state[:, :, ::-1], draws(5, 19).reshape(5, 4, 4, 3)])
    without = novelty(samples, training, second)
    assert without.novel.all()
    found = novelty(samples, training, second, group)
    assert found.memorised.tolist() == [True, False]
    assert found.spurious.tolist() == [False, True]


def test_too_few_are_refused():
    with pytest.raises(UserError, match="1 training points"):
        novelty(TRAINING[:3], np.repeat(TRAINING[:1], 4, axis=0), STATES)
    with pytest.raises(UserError, match="two points or more"):
        novelty(TRAINING[:1], TRAINING)
