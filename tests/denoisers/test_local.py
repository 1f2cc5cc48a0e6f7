"""The local denoiser against loops over its definition, its limits, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import patch_loops
import pytest
from patch_loops import TIMES, draws, images, largest_error, noised, score, squares

from diffusion_jax.denoisers import EmpiricalDenoiser, LocalDenoiser, covariance_patches, local
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_x_0
from diffusion_jax.regimes.cloning import fork, u_turns
from diffusion_jax.runtime.devices import replicate, shard
from diffusion_jax.sampling import AncestralSampler, sample
from diffusion_jax.sampling.likelihood import image_bits
from diffusion_jax.schedule import from_time, linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SCHEDULE = from_time(TIMES)
THRESHOLD = 0.11


def loops(points, x, signal, variance, half):
    points, x = points.astype(float), x.astype(float)
    each = zip(x, signal, variance, strict=True)
    return np.stack([patch_loops.local(points, *one, half) for one in each])


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((4, 6, 2), 3), ((4, 6, 2), 7), ((5, 3, 2), 1), ((5, 3, 2), 5), ((5, 3, 2), 9)],
    ids=str,
)
def test_it_is_its_definition(shape, patch):
    points = images(shape)
    x, steps, signal, variance = noised(points)
    wanted = loops(points, x, signal, variance, patch // 2)
    with jax.enable_x64():
        denoiser = LocalDenoiser(from_time(TIMES), points.astype(float), patch)
        assert largest_error(denoiser.predict_x_0(x.astype(float), steps), wanted) < 1e-12


@pytest.mark.parametrize("patch", [3, None])
def test_it_is_its_definition_in_float32(patch):
    points = images((4, 6, 2))
    x, steps, signal, variance = noised(points)
    wanted = loops(points, x, signal, variance, 6 if patch is None else patch // 2)
    denoiser = LocalDenoiser(SCHEDULE, points, patch)
    assert largest_error(denoiser.predict_x_0(x, steps), wanted) < 1e-5
    # The noise is that of the same D.
    D = noise_to_x_0(SCHEDULE, denoiser(jnp.asarray(x), steps), jnp.asarray(x), steps)
    assert largest_error(D[2:5], wanted[2:5]) < 1e-5


@pytest.mark.parametrize(("shape", "n"), [((4, 6, 2), 7), ((5, 3, 2), 60)], ids=str)
def test_the_covariances_patches_are_their_definition(shape, n):
    """Fewer images than components, and more; W by solving, not by eigenvectors."""
    points = np.random.default_rng(2).normal(size=(n, *shape)).astype(np.float32)
    points = 0.3 * (points + np.roll(points, 1, axis=1) + np.roll(points, 1, axis=2))
    x, steps, signal, variance = noised(points)
    each = list(zip(x.astype(float), signal, variance, strict=True))
    wanted, ties, sizes = zip(
        *(patch_loops.by_covariance(points.astype(float), *one, THRESHOLD) for one in each),
        strict=True,
    )
    assert min(ties) > 1e-5  # no component so near the threshold that rounding decides
    assert any(len(set(some)) > 1 for some in sizes)
    assert len({some.sum() for some in sizes}) > 1  # patches depend on t
    denoiser = LocalDenoiser(SCHEDULE, points, "covariance", threshold=THRESHOLD)
    assert largest_error(denoiser.predict_x_0(x, steps), np.stack(wanted)) < 1e-5
    with jax.enable_x64():
        schedule, double = from_time(TIMES), points.astype(float)
        denoiser = LocalDenoiser(schedule, double, "covariance", threshold=THRESHOLD)
        found = denoiser.predict_x_0(x.astype(float), steps)
        assert largest_error(found, np.stack(wanted)) < 1e-11


def test_a_component_that_never_varies_is_in_no_patch():
    """0/0 in W_ij/W_ii, which rounding must not decide: the others are as without it."""
    points = images((4, 3, 2), n=9)
    points[:, 1, 2, 0] = 0.1
    x, steps, *_ = noised(points)
    found = LocalDenoiser(SCHEDULE, points, "covariance", 0.05).predict_x_0(x, steps)
    np.testing.assert_allclose(found[:, 1, 2, 0], 0.1, rtol=1e-6)
    moved = x.copy()
    moved[:, 1, 2, 0] += 0.5
    again = LocalDenoiser(SCHEDULE, points, "covariance", 0.05).predict_x_0(moved, steps)
    np.testing.assert_array_equal(found, again)


def test_of_threshold_0_every_component_sees_all():
    points = images((4, 3, 2), n=9)
    x, steps, *_ = noised(points)
    whole = LocalDenoiser(SCHEDULE, points, None).predict_x_0(x, steps)
    found = LocalDenoiser(SCHEDULE, points, "covariance", 0.0).predict_x_0(x, steps)
    np.testing.assert_allclose(found, whole, atol=2e-6)


@pytest.mark.parametrize("patch", [2 * 6 - 1, None])
def test_with_all_pixels_it_is_the_exact_score(patch):
    points = images((4, 6, 2))
    x, steps, *_ = noised(points)
    exact = EmpiricalDenoiser(SCHEDULE, jnp.asarray(points))(jnp.asarray(x), steps)
    found = LocalDenoiser(SCHEDULE, points, patch)(jnp.asarray(x), steps)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("patch", [3, None, "covariance"])
def test_one_image_comes_back_and_at_large_times_the_mean(patch):
    threshold = 0.1 if patch == "covariance" else None
    points = images((4, 6, 2))
    x, steps, *_ = noised(points)
    found = LocalDenoiser(SCHEDULE, points[:1], patch, threshold).predict_x_0(x, steps)
    np.testing.assert_allclose(found, np.broadcast_to(points[:1], x.shape), rtol=1e-6)
    late = LocalDenoiser(from_time(np.array([16.0])), points, patch, threshold)
    found = late.predict_x_0(x, np.zeros(len(x), int))
    np.testing.assert_allclose(found, np.broadcast_to(points.mean(0), x.shape), atol=2e-6)


@pytest.mark.parametrize("patch", [3, None, "covariance"])
def test_neither_blocks_nor_the_batch_change_anything(patch, monkeypatch):
    points = images((4, 6, 2))
    x, steps, *_ = noised(points)
    denoiser = LocalDenoiser(SCHEDULE, points, patch, 0.1 if patch == "covariance" else None)
    whole = denoiser.predict_x_0(x, steps)
    alone = [denoiser.predict_x_0(x[i : i + 1], steps[i : i + 1])[0] for i in range(len(x))]
    np.testing.assert_allclose(np.stack(alone), whole, atol=1e-6)
    # On eight devices, of two images each.
    twice = jax.tree.map(lambda leaf: np.resize(leaf, (16, *leaf.shape[1:])), (x, steps))
    divided = jax.jit(type(denoiser).predict_x_0)(replicate(denoiser), *shard(twice))
    np.testing.assert_allclose(divided[:6], whole, atol=1e-6)
    numbers = 48 if patch == "covariance" else 24
    for size in (1, 5 * len(x) * numbers):  # 5 divides neither 7 images nor 48 outputs
        monkeypatch.setattr(local, "_BLOCK", size)
        monkeypatch.setattr(covariance_patches, "_BLOCK", size)
        split = jax.jit(local._predict.__wrapped__)(denoiser, x, steps)
        np.testing.assert_allclose(split, whole, atol=1e-6)


def test_losses_are_in_order_and_exceed_the_exact_one_by_the_distance():
    """Each sees more than the next, which makes its expectation the better one."""
    points = np.random.default_rng(4).normal(size=(30, 4, 5, 2)).astype(np.float32)
    schedule, steps = from_time(np.array([1.0])), np.zeros(4000, int)
    a, x = draws(points, 1.0, len(steps))
    D = [LocalDenoiser(schedule, points, patch).predict_x_0(x, steps) for patch in (None, 3, 1)]
    exact, larger, smaller = (np.asarray(each) for each in D)
    assert score(squares(larger - a) - squares(exact - a)) > 4
    assert score(squares(smaller - a) - squares(larger - a)) > 4
    for worse in (larger, smaller):
        excess = squares(worse - a) - squares(exact - a) - squares(worse - exact)
        assert abs(score(excess)) < 3.3  # one seed in a thousand


@pytest.mark.parametrize("patch", [3, "covariance"])
def test_derivatives_backwards_and_forwards_are_differences(patch):
    with jax.enable_x64():
        points = np.random.default_rng(5).normal(size=(6, 2, 3, 1))
        threshold = 0.3 if patch == "covariance" else None
        denoiser = LocalDenoiser(from_time(np.array([0.4])), points, patch, threshold)
        patch_loops.check_derivatives(denoiser, 0.5 * points[0] + 0.3)


def test_every_pixel_of_a_sample_is_a_training_images():
    """Pixels of patch 1 know nothing of each other: mixtures of images, of 2^6 for two."""
    points = np.random.default_rng(6).choice([-0.4, 0.4], (4, 3, 2, 1)).astype(np.float32)
    points[1], points[3] = -points[0], -points[2]
    schedule, shape, key = linear_schedule(100), (3, 2, 1), jax.random.key(0)
    sampler, denoiser = AncestralSampler(schedule), LocalDenoiser(schedule, points, 1)
    samples = np.asarray(sample(sampler, denoiser, key, 64, shape))
    assert np.abs(np.abs(samples) - 0.4).max() < 1e-2
    assert len({tuple(np.sign(each).ravel()) for each in samples}) > 16
    forked = fork(sampler, denoiser, key, [30, 1], shape, 0, 16)
    np.testing.assert_allclose(forked.trunk, samples[:16], atol=1e-5)
    np.testing.assert_allclose(forked.clones[:, 1, 0], forked.trunk, atol=0.1)
    turned = u_turns(sampler, denoiser, key, [100, 1], points)
    np.testing.assert_allclose(turned[:, 1], points, atol=1e-2)
    assert np.abs(turned[:, 0] - points).max() > 0.5


def test_the_likelihood_of_all_pixels_is_the_exact_scores():
    points = images((3, 4, 1))
    schedule, key = linear_schedule(22), jax.random.key(0)
    data, mean = np.uint8(255 * (points[:3] + 0.3)), np.full(1, 0.3)
    exact = EmpiricalDenoiser(schedule, jnp.asarray(points))
    bits = image_bits(exact, schedule, data, mean, key)
    found = image_bits(LocalDenoiser(schedule, points, None), schedule, data, mean, key)
    np.testing.assert_allclose(found, bits, rtol=1e-4)
    other = image_bits(exact.replace(points=2 * exact.points), schedule, data, mean, key)
    assert np.abs(other - bits).max() > 1e-2


def test_jax_may_put_anything_in_place_of_its_arrays():
    denoiser = LocalDenoiser(SCHEDULE, images((4, 6, 2)), "covariance", 0.1)
    for leaf in (None, object(), np.zeros(3)):
        other = jax.tree.map(lambda _, leaf=leaf: leaf, denoiser)
        assert (other.patch, other.threshold) == ("covariance", 0.1)
    assert denoiser.num_steps == len(TIMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2,), "patch = 2 must be an odd number of pixels from 1 to 11 .from Python also None"),
        ((13,), "patch = 13 must be an odd number of pixels from 1 to 11"),
        ((-1,), "patch = -1 must be"),
        ((True,), "patch = True must be"),
        ((3.0,), "patch = 3.0 must be"),
        (("wiener",), "patch = 'wiener' must be"),
        (("covariance",), "give both, or neither"),
        ((3, 0.1), "give both, or neither"),
        (("covariance", 1.5), "threshold = 1.5 must lie between 0 and 1"),
        (("covariance", float("nan")), "threshold = nan must lie"),
    ],
)
def test_bad_patches_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        LocalDenoiser(SCHEDULE, images((4, 6, 2)), *arguments)


def test_points_and_images_of_other_shapes_are_refused():
    for shape in ((7, 24), (0, 4, 6, 2), (4, 6, 2)):
        with pytest.raises(UserError, match=r"points \(n, height, width, channels\)"):
            LocalDenoiser(SCHEDULE, np.zeros(shape, np.float32), 3)
    denoiser = LocalDenoiser(SCHEDULE, images((4, 6, 2)), 3)
    with pytest.raises(UserError, match=r"images of shape \(6, 4, 2\) have no patches in common"):
        denoiser.predict_x_0(np.zeros((1, 6, 4, 2), np.float32), np.zeros(1, int))
    with pytest.raises(UserError, match="take images like those"):
        sample(AncestralSampler(SCHEDULE), denoiser, jax.random.key(0), 2, (4, 6, 1))


def test_points_that_are_no_finite_floats_are_refused():
    points = np.zeros((3, 4, 4, 1))
    for value in (np.nan, np.inf, 1e300):
        points[1, 2, 2, 0] = value
        with pytest.raises(UserError, match="training point 1 holds values that are not finite"):
            LocalDenoiser(linear_schedule(30), points, 3)
    with pytest.raises(UserError, match="training points of type uint8: give floats"):
        LocalDenoiser(linear_schedule(30), np.zeros((3, 4, 4, 1), np.uint8), 3)
