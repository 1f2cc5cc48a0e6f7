"""R^2, cosine and losses of a network and a theory: identities, intervals, and what is kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.comparing.cells import denoised
from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianDenoiser, ShiftedDenoiser
from diffusion_jax.process import diffuse
from diffusion_jax.regimes import resemblance
from diffusion_jax.regimes.resemblance import Sums
from diffusion_jax.schedule import linear_schedule

SHAPE = (4, 5, 2)


def images(n, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal((n, *shape))


def compared(network, theory, draws=None, mean=None):
    """The sums of all images; the mean is their own by default."""
    mean = network.mean(axis=0) if mean is None else mean
    return resemblance.sums(network, theory, mean, draws or len(network))


def test_a_network_that_is_the_theory_is_explained_wholly():
    network = images(20)
    found = resemblance.summarize(compared(network, network))
    for each in (found.r_squared, found.cosine, found.image_r_squared):
        np.testing.assert_allclose([each.value, each.low, each.high], 1, rtol=1e-12)
    assert np.isnan(found.network_loss.value)


def test_against_loops_of_the_definitions():
    network, noise = images(7), images(7, 3)
    theory = 0.6 * network + 0.3 * images(7, 1) + 0.2
    own = (resemblance.noise_losses(network, noise), resemblance.noise_losses(theory, noise))
    mean = network.mean(axis=0)
    found = resemblance.summarize(resemblance.sums(network, theory, mean, 7, own))
    error = variance = other = inner = 0.0
    each_r_squared, losses = [], []
    for a, b, z in zip(network, theory, noise, strict=True):
        error += ((a - b) ** 2).sum()
        variance += ((a - mean) ** 2).sum()
        other += ((b - mean) ** 2).sum()
        inner += ((a - mean) * (b - mean)).sum()
        each_r_squared.append(1 - ((a - b) ** 2).sum() / ((a - a.mean()) ** 2).sum())
        losses.append((((a - z) ** 2).mean(), ((b - z) ** 2).mean()))
    # The variance with n - 1: without it the mean of so few images would seem to explain 1/n.
    assert found.r_squared.value == pytest.approx(1 - error / (variance * 7 / 6))
    assert found.cosine.value == pytest.approx(inner / np.sqrt(variance * other))
    assert found.image_r_squared.value == pytest.approx(np.median(each_r_squared))
    mean_losses = np.mean(losses, axis=0)
    assert found.network_loss.value == pytest.approx(mean_losses[0])
    assert found.theory_loss.value == pytest.approx(mean_losses[1])
    assert found.excess.value == pytest.approx(mean_losses[0] - mean_losses[1])
    assert found.images == 7


def test_the_mean_alone_explains_nothing():
    """Of many networks: R^2 of their common mean is 0 in the mean, for few images too."""
    values = [
        resemblance.summarize(compared(x, np.zeros_like(x))).r_squared.value
        for x in (images(5, seed, (3, 2, 1)) for seed in range(200))
    ]
    # 5 images of 6 components: the standard deviation of one is about 0.2.
    assert abs(np.mean(values)) < 5 * np.std(values) / np.sqrt(200)
    assert abs(np.mean(values)) < 0.1


def test_the_first_images_are_held_against_the_mean_of_all():
    network, theory = images(40), images(40) + 0.5 * images(40, 1)
    every = compared(network, theory)
    few = compared(network[:8], theory[:8], draws=40, mean=network.mean(axis=0))
    for name in ("error", "network", "theory", "contrast"):
        np.testing.assert_allclose(getattr(every.first(8), name), getattr(few, name))
    both = resemblance.join(every.first(8), compared(network[8:], theory[8:], 40, network.mean(0)))
    np.testing.assert_allclose(both.network, every.network)
    assert len(both) == both.draws == 40


def test_constant_images_have_no_variance_to_explain():
    found = resemblance.summarize(compared(np.ones((6, *SHAPE)), images(6)))
    for each in (found.r_squared, found.cosine, found.image_r_squared):
        assert np.isnan(each.value)
        assert np.isnan(each.low)


@pytest.mark.parametrize("n", [16, 64])
def test_intervals_cover(n):
    """What a theory leaves of a network is a noise of a size that differs from image to image."""
    covered, widths = 0, []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        network = rng.standard_normal((n, 12))
        size = rng.uniform(0.2, 1, (n, 1))  # E size^2 = 0.4133
        theory = network + size * rng.standard_normal((n, 12))
        found = resemblance.summarize(compared(network, theory), seed).r_squared
        covered += found.low <= 1 - 0.4133 <= found.high
        widths.append(found.high - found.low)
    # Of 1 000 seeds 0.93 of 16 images, and 0.95 of 64; 200 seeds are off by 0.05 once in a 1 000.
    assert 0.88 <= covered / 200 <= 0.99
    assert np.mean(widths) < 2.5 / np.sqrt(n)


@pytest.mark.parametrize(("t", "size"), [(0.1, 0.2), (0.6, 0.5), (1.5, 1.5)])
def test_the_loss_above_the_exact_scores_is_the_distance_to_it(t, size):
    """loss(D) - loss(exact) = g E|D - D_exact|^2/d, of x_t from the points of the exact score."""
    schedule = linear_schedule(100)
    points = (size * images(12, shape=(3, 4, 2))).astype(np.float32)
    step = int(np.abs(np.asarray(schedule.time) - t).argmin())
    n = 6000
    noise = images(n, 5, (3, 4, 2)).astype(np.float32)
    x_0, steps = points[np.arange(n) % 12], np.full(n, step)
    x = np.asarray(diffuse(schedule, x_0, steps, noise))
    exact, gaussian = EmpiricalDenoiser(schedule, points), GaussianDenoiser.fit(schedule, points)
    predicted = [np.asarray(each(x, steps)) for each in (gaussian, exact)]
    losses = [resemblance.noise_losses(each, noise) for each in predicted]
    D, D_exact = (denoised(schedule, each, x, step) for each in predicted)
    found = resemblance.sums(D, D_exact, D.mean(axis=0), n, tuple(losses))
    g = 1 / np.expm1(2 * float(schedule.time[step]))
    difference = found.network_loss - found.theory_loss - g * found.error / 24
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(n)
    excess = resemblance.summarize(found).excess
    assert excess.low < g * found.error.mean() / 24 < excess.high
    assert excess.value > 1e-3


def test_the_closest_and_its_rivals():
    network = images(30)
    near, nearly, far = (network + size * images(30, 1) for size in (0.30, 0.301, 1.0))
    found = {"far": compared(network, far), "near": compared(network, near)}
    best = resemblance.closest(found)
    assert (best.name, best.rivals, best.images) == ("near", (), 30)
    alone = resemblance.summarize(found["near"]).r_squared
    assert best.r_squared == alone
    # Another theory that is as far off, in other directions, cannot be ruled out.
    level = network + 0.3 * images(30, 2)
    best = resemblance.closest(found | {"level": compared(network, level)})
    assert {best.name, *best.rivals} == {"near", "level"}
    # Of one that is worse on every image the images rule out more than of one that is on average.
    best = resemblance.closest(found | {"nearly": compared(network, nearly)})
    assert (best.name, best.rivals) == ("near", ())
    # Fewer images decide between the best of all and those that have no more.
    few = compared(network, nearly).first(6)
    best = resemblance.closest(found | {"few": few})
    assert (best.name, best.rivals, best.images) == ("near", (), 30)
    assert best.r_squared == alone
    few = compared(network, network + 0.01).first(6)
    best = resemblance.closest(found | {"few": few})
    assert (best.name, best.rivals, best.images) == ("few", (), 6)
    few = compared(network, network + 0.3 * images(30, 5)).first(6)
    best = resemblance.closest(found | {"few": few})
    assert (best.name, best.rivals, best.images) == ("near", ("few",), 30)


def test_correlations_and_cosines():
    a, b = images(5), images(5, 1) + 0.3
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(resemblance.correlations(a, b), expected)
    np.testing.assert_allclose(resemblance.correlations(a, 3 * a - 2), 1)
    inner = [
        (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()) for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(resemblance.cosines(a, b), inner)
    assert np.isnan(resemblance.correlations(a, np.ones_like(a))).all()


def test_sums_are_kept_and_damage_is_seen(tmp_path):
    found = compared(images(9), images(9, 1))
    found.save(tmp_path / "cell.npz")
    kept = resemblance.load(tmp_path / "cell.npz")
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(kept, name), value)
    content = (tmp_path / "cell.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"."):
        resemblance.load(tmp_path / "torn.npz")
    Sums(**{**vars(found), "error": found.error[:3]}).save(tmp_path / "uneven.npz")
    with pytest.raises(ValueError, match="of different images"):
        resemblance.load(tmp_path / "uneven.npz")


def test_a_denoiser_of_data_with_another_mean():
    """The exact score of points less one mean, asked about points less another."""
    schedule, points = linear_schedule(100), images(6).astype(np.float32)
    shift = np.array([0.3, -0.2], np.float32)
    x, steps = images(4, 2).astype(np.float32), np.array([3, 30, 60, 95])
    moved = EmpiricalDenoiser(schedule, points + shift)
    found = ShiftedDenoiser(moved, schedule, jnp.asarray(shift))(x, steps)
    expected = EmpiricalDenoiser(schedule, points)(x, steps)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.shape == x.shape
    assert ShiftedDenoiser(moved, schedule, jnp.asarray(shift)).num_steps == 100
