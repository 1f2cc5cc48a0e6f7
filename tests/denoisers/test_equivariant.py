"""The equivariant local denoiser against loops over its definition, its limits, its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import patch_loops
import pytest
from patch_loops import TIMES, draws, images, largest_error, noised, score, squares

from diffusion_jax.denoisers import (
    EmpiricalDenoiser,
    EquivariantLocalDenoiser,
    LocalDenoiser,
    equivariant,
    local,
)
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_x_0
from diffusion_jax.runtime.devices import replicate, shard
from diffusion_jax.sampling import AncestralSampler, sample
from diffusion_jax.sampling.likelihood import image_bits
from diffusion_jax.schedule import from_time, linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SCHEDULE = from_time(TIMES)


def defined(shape, patch, boundary):
    """Training images, x, steps and D pixel by pixel."""
    points = images(shape, n=5)
    x, steps, signal, variance = noised(points)
    each, half = zip(x.astype(float), signal, variance, strict=True), patch // 2
    double = points.astype(float)
    wanted = [patch_loops.equivariant(double, *one, half, boundary) for one in each]
    return points, x, steps, np.stack(wanted)


@pytest.mark.parametrize(
    ("shape", "patch", "boundary"),
    [
        *(((4, 6, 2), patch, "zero") for patch in (3, 7)),
        *(((5, 3, 2), patch, "zero") for patch in (1, 5, 9)),
        ((4, 6, 2), 1, "circular"),
        ((5, 3, 2), 3, "circular"),
        ((5, 6, 2), 5, "circular"),
    ],
    ids=str,
)
def test_it_is_its_definition(shape, patch, boundary):
    points, x, steps, wanted = defined(shape, patch, boundary)
    with jax.enable_x64():
        double = points.astype(float)
        denoiser = EquivariantLocalDenoiser(from_time(TIMES), double, patch, boundary)
        assert largest_error(denoiser.predict_x_0(x.astype(float), steps), wanted) < 1e-11


@pytest.mark.parametrize(
    ("shape", "patch", "boundary"), [((5, 5, 1), 3, "zero"), ((5, 6, 2), 5, "circular")], ids=str
)
def test_it_is_its_definition_in_float32(shape, patch, boundary):
    points, x, steps, wanted = defined(shape, patch, boundary)
    denoiser = EquivariantLocalDenoiser(SCHEDULE, points, patch, boundary)
    assert largest_error(denoiser.predict_x_0(x, steps), wanted) < 1e-5
    # The noise is that of the same D.
    D = noise_to_x_0(SCHEDULE, denoiser(jnp.asarray(x), steps), jnp.asarray(x), steps)
    assert largest_error(D[2:5], wanted[2:5]) < 1e-5


def orbit(points):
    """All translations of all points on the torus."""
    height, width = points.shape[1:3]
    shifts = np.ndindex(height, width)
    return np.concatenate([np.roll(points, shift, axis=(1, 2)) for shift in shifts])


@pytest.mark.parametrize(("shape", "patch"), [((5, 5, 2), 5), ((4, 6, 2), None), ((5, 3, 1), None)])
def test_on_a_torus_all_pixels_are_the_exact_score_of_all_translations(shape, patch):
    points = images(shape)
    x, steps, signal, variance = noised(points)
    denoiser = EquivariantLocalDenoiser(SCHEDULE, points, patch, "circular")
    # All pixels at once are the local denoiser's softmax over the orbit.
    every = orbit(points).astype(float)
    wanted = [
        patch_loops.softmax_mean(squares(one - s * every), every, v)
        for one, s, v in zip(x.astype(float), signal, variance, strict=True)
    ]
    assert largest_error(denoiser.predict_x_0(x, steps), np.stack(wanted)) < 1e-5
    exact = EmpiricalDenoiser(SCHEDULE, jnp.asarray(orbit(points)))
    x = jnp.asarray(x)
    np.testing.assert_allclose(denoiser(x, steps), exact(x, steps), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((4, 6, 2), 7), ((4, 6, 2), None), ((5, 3, 2), 5), ((5, 3, 2), 9)],
)
def test_where_no_two_places_are_cut_alike_it_is_the_local_one(shape, patch):
    points = images(shape)
    x, steps, *_ = noised(points)
    found = EquivariantLocalDenoiser(SCHEDULE, points, patch, "zero").predict_x_0(x, steps)
    wanted = LocalDenoiser(SCHEDULE, points, patch).predict_x_0(x, steps)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_patches_of_one_pixel_have_no_border():
    points = images((4, 6, 2))
    x, steps, *_ = noised(points)
    D = [
        EquivariantLocalDenoiser(SCHEDULE, points, 1, boundary).predict_x_0(x, steps)
        for boundary in ("zero", "circular")
    ]
    np.testing.assert_array_equal(*D)


@pytest.mark.parametrize("boundary", ["zero", "circular"])
def test_at_large_times_it_is_the_mean_over_the_places(boundary):
    shape = (4, 3, 2)
    points = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    late = EquivariantLocalDenoiser(from_time(np.array([16.0])), points, 3, boundary)
    found = late.predict_x_0(noised(points)[0], np.zeros(len(TIMES), int))
    wanted = np.zeros(shape)
    cuts = {p: patch_loops.cut(*p, shape, 1) for p in np.ndindex(4, 3)}
    for p in cuts:
        alike = [q for q in cuts if boundary == "circular" or cuts[q] == cuts[p]]
        wanted[p] = np.mean([points[(slice(None), *q)] for q in alike], axis=(0, 1))
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=3e-6)


@pytest.mark.parametrize("patch", [1, 3, None])
def test_one_image_of_one_pixel_on_a_torus(patch):
    """B_p/(sum of B over the patch + N - k^2), B = exp((2 e^-t x - e^-2t)/(2 Delta))."""
    points = np.zeros((1, 4, 5, 1), np.float32)
    points[0, 1, 2] = 1
    x, steps, signal, variance = noised(points)
    denoiser = EquivariantLocalDenoiser(SCHEDULE, points, patch, "circular")
    found = np.asarray(denoiser.predict_x_0(x, steps))[..., 0]
    for D, y, s, v in zip(found, x[..., 0].astype(float), signal, variance, strict=True):
        if patch is None:
            wanted = np.exp(s * y / v - (s * y / v).max())
            wanted /= wanted.sum()
        else:
            half = patch // 2
            B = np.exp((2 * s * y - s**2) / (2 * v))
            shifts = [(i, j) for i in range(-half, half + 1) for j in range(-half, half + 1)]
            around = sum(np.roll(B, shift, axis=(0, 1)) for shift in shifts)
            wanted = B / (around + B.size - patch**2)
        np.testing.assert_allclose(D, wanted, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("patch", [3, None])
def test_on_a_torus_it_moves_with_the_image(patch):
    points = images((5, 6, 2))
    x, steps, *_ = noised(points)
    denoiser = EquivariantLocalDenoiser(SCHEDULE, points, patch, "circular")
    for shift in ((1, 0), (3, 4)):
        moved = denoiser.predict_x_0(np.roll(x, shift, axis=(1, 2)), steps)
        wanted = np.roll(denoiser.predict_x_0(x, steps), shift, axis=(1, 2))
        np.testing.assert_allclose(moved, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("patch", "boundary", "sizes"),
    [
        (3, "zero", [(1, 1, 1), (42, 11, 13 * 18)]),
        (3, "circular", [(2**20, 2**20, 13 * 18)]),
        (None, "circular", [(42, 11, 2**20)]),
    ],
)
def test_neither_blocks_nor_the_batch_change_anything(patch, boundary, sizes, monkeypatch):
    points = images((5, 5, 2) if boundary == "zero" else (5, 6, 2))
    x, steps, *_ = noised(points)
    denoiser = EquivariantLocalDenoiser(SCHEDULE, points, patch, boundary)
    whole = denoiser.predict_x_0(x, steps)
    alone = [denoiser.predict_x_0(x[i : i + 1], steps[i : i + 1])[0] for i in range(len(x))]
    np.testing.assert_allclose(np.stack(alone), whole, atol=2e-6)
    # On eight devices, of two images each.
    twice = jax.tree.map(lambda leaf: np.resize(leaf, (16, *leaf.shape[1:])), (x, steps))
    divided = jax.jit(type(denoiser).predict_x_0)(replicate(denoiser), *shard(twice))
    np.testing.assert_allclose(divided[:6], whole, atol=2e-6)
    for queries, keys, numbers in sizes:
        monkeypatch.setattr(equivariant, "_QUERIES", queries)
        monkeypatch.setattr(equivariant, "_KEYS", keys)
        monkeypatch.setattr(equivariant, "_NUMBERS", numbers)
        monkeypatch.setattr(local, "_BLOCK", keys)
        split = jax.jit(equivariant._predict.__wrapped__)(denoiser, x, steps)
        np.testing.assert_allclose(split, whole, atol=2e-6)


def test_equal_patches_are_compared_once():
    """Of two grey values there are four patches of two channels, whatever the number of images."""
    points = np.random.default_rng(0).choice([0.0, 1.0], (9, 5, 6, 2)).astype(np.float32)
    ((first, number),) = EquivariantLocalDenoiser(SCHEDULE, points, 1, "zero")._patches
    assert first.shape == (1, 4)
    counts = np.unique(points.reshape(-1, 2), axis=0, return_counts=True)[1]
    assert sorted(np.ravel(number)) == sorted(counts)
    # An image twice has no patches that are new.
    one = EquivariantLocalDenoiser(SCHEDULE, points, 3, "zero")
    two = EquivariantLocalDenoiser(SCHEDULE, np.concatenate([points, points]), 3, "zero")
    for (first, number), (again, twice) in zip(one._patches, two._patches, strict=True):
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(2 * number, twice)


def test_a_batch_of_many_patches_is_its_definition():
    """Sizes at which blocks are full, where XLA may fuse and split what it does not in small ones;
    a few pixels of it.
    """
    points = np.random.default_rng(1).normal(size=(120, 16, 12, 2)).astype(np.float32)
    _, x = draws(points, 0.6, 16)
    denoiser = EquivariantLocalDenoiser(SCHEDULE, points, 3, "zero")
    found = np.asarray(denoiser.predict_x_0(x, np.full(16, 3)))
    near = np.asarray(LocalDenoiser(SCHEDULE, points, None).predict_x_0(x, np.full(16, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(points, (3, 3), axis=(1, 2))
    keys, values = windows.reshape(-1, 18).astype(float), points[:, 1:-1, 1:-1].reshape(-1, 2)
    signal, variance = np.exp(-0.6), -np.expm1(-1.2)
    for image, row, column in ((0, 1, 1), (7, 8, 10), (15, 14, 5)):
        own = x[image, row - 1 : row + 2, column - 1 : column + 2].transpose(2, 0, 1).ravel()
        apart = ((own - signal * keys) ** 2).sum(axis=1)
        wanted = patch_loops.softmax_mean(apart, values, variance)
        np.testing.assert_allclose(found[image, row, column], wanted, atol=3e-5)
        apart = squares(x[image] - signal * points)
        wanted = patch_loops.softmax_mean(apart, points[:, row, column], variance)
        np.testing.assert_allclose(near[image, row, column], wanted, atol=3e-5)


def test_losses_are_in_order():
    """Who knows where a patch lies does better; the exact score of the orbit best of the torus."""
    points = np.random.default_rng(4).normal(size=(6, 4, 5, 1)).astype(np.float32)
    schedule, steps = from_time(np.array([0.6])), np.zeros(4000, int)

    def loss(a, x, denoiser):
        D = np.asarray(denoiser.predict_x_0(x, steps))
        return squares(D - a), D

    a, x = draws(points, 0.6, len(steps))
    near, _ = loss(a, x, LocalDenoiser(schedule, points, 3))
    far, _ = loss(a, x, EquivariantLocalDenoiser(schedule, points, 3, "zero"))
    assert score(far - near) > 4
    a, x = draws(orbit(points), 0.6, len(steps))
    torus = [EquivariantLocalDenoiser(schedule, points, k, "circular") for k in (None, 3, 1)]
    (exact, D_exact), (larger, D_larger), (smaller, _) = (loss(a, x, each) for each in torus)
    assert score(larger - exact) > 4
    assert score(smaller - larger) > 4
    excess = larger - exact - squares(D_larger - D_exact)
    assert abs(score(excess)) < 3.3  # one seed in a thousand


@pytest.mark.parametrize(("patch", "boundary"), [(3, "zero"), (None, "circular")])
def test_derivatives_backwards_and_forwards_are_differences(patch, boundary):
    with jax.enable_x64():
        points = np.random.default_rng(5).normal(size=(3, 4, 2, 1))
        denoiser = EquivariantLocalDenoiser(from_time(np.array([0.4])), points, patch, boundary)
        patch_loops.check_derivatives(denoiser, 0.5 * points[0] + 0.3)


def test_every_pixel_of_a_sample_is_some_pixel_of_the_images():
    """Single pixels of two values on a torus: no image need be one of the training images."""
    points = np.full((2, 3, 2, 1), 0.4, np.float32)
    points[0, 1:], points[1] = -0.4, -0.4  # of each value, three pixels in twelve and nine
    schedule, shape, key = linear_schedule(100), (3, 2, 1), jax.random.key(0)
    sampler = AncestralSampler(schedule)
    denoiser = EquivariantLocalDenoiser(schedule, points, 1, "circular")
    samples = np.asarray(sample(sampler, denoiser, key, 64, shape))
    assert np.abs(np.abs(samples) - 0.4).max() < 1e-2
    bright, share = (samples > 0).mean(), (points > 0).mean()
    assert abs(bright - share) < 3.3 * np.sqrt(share * (1 - share) / samples.size)


def test_the_likelihood_on_a_torus_is_that_of_all_translations():
    points = images((3, 4, 1), n=3)
    schedule, key = linear_schedule(22), jax.random.key(0)
    data, mean = np.uint8(255 * (points + 0.3)), np.full(1, 0.3)
    exact = EmpiricalDenoiser(schedule, jnp.asarray(orbit(points)))
    bits = image_bits(exact, schedule, data, mean, key)
    torus = EquivariantLocalDenoiser(schedule, points, None, "circular")
    np.testing.assert_allclose(image_bits(torus, schedule, data, mean, key), bits, rtol=1e-4)
    other = exact.replace(points=2 * exact.points)
    assert np.abs(image_bits(other, schedule, data, mean, key) - bits).max() > 1e-2


def test_jax_may_put_anything_in_place_of_its_arrays():
    denoiser = EquivariantLocalDenoiser(SCHEDULE, images((4, 6, 2)), 3, "zero")
    for leaf in (None, object(), np.zeros(3)):
        other = jax.tree.map(lambda _, leaf=leaf: leaf, denoiser)
        assert (other.patch, other.boundary) == (3, "zero")
    assert denoiser.num_steps == len(TIMES)


@pytest.mark.parametrize(
    ("patch", "boundary", "message"),
    [
        (
            4,
            "zero",
            "patch = 4 must be an odd number of pixels from 1 to 11 .from Python also None",
        ),
        (
            13,
            "zero",
            "patch = 13 must be an odd number of pixels from 1 to 11 .from Python also None",
        ),
        (
            5,
            "circular",
            "patch = 5 must be an odd number of pixels from 1 to 3 .from Python also None",
        ),
        ("covariance", "zero", "patch = 'covariance' must be an odd number"),
        (3, "reflect", 'boundary = \'reflect\' must be "zero" or "circular"'),
    ],
)
def test_bad_patches_and_boundaries_are_refused(patch, boundary, message):
    with pytest.raises(UserError, match=message):
        EquivariantLocalDenoiser(SCHEDULE, images((4, 6, 2)), patch, boundary)


def test_points_and_images_of_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"points \(n, height, width, channels\)"):
        EquivariantLocalDenoiser(SCHEDULE, np.zeros((7, 24), np.float32), 3, "zero")
    denoiser = EquivariantLocalDenoiser(SCHEDULE, images((4, 6, 2)), 3, "zero")
    with pytest.raises(UserError, match=r"images of shape \(6, 4, 2\) have no patches in common"):
        denoiser(jnp.zeros((1, 6, 4, 2)), jnp.zeros(1, int))
