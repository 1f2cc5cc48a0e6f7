"""Features of images: sums over patches, projections, and what neither sees."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.judging import features
from diffusion_jax.judging.features import (
    component_map,
    feature_maps,
    leading_components,
    random_convolution_features,
)
from diffusion_jax.judging.frechet import frechet, frechet_of_one_law

# Written down once: a NumPy that drew others would make older numbers incomparable.
FIRST_WEIGHTS = [0.0773993, -0.06823006]
FIRST_BIASES = [-0.1600656, 0.1830754]


def images(count, shape=(9, 8, 2), seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, *shape)).astype(np.float32)


def by_hand(image, seed):
    """Patch by patch."""
    found = []
    for kernel, bias in features._filters(image.shape[2], seed):
        size = len(kernel)
        patches = [
            image[i : i + size, j : j + size].ravel().astype(float)
            for i in range(image.shape[0] - size + 1)
            for j in range(image.shape[1] - size + 1)
        ]
        found.append(np.maximum(patches @ kernel.reshape(-1, 32) + bias, 0).mean(axis=0))
    return np.concatenate(found)


def test_random_convolutions_are_sums_over_patches():
    x = images(130)  # two blocks, the second padded
    found = random_convolution_features(x, seed=3)
    assert found.dtype == np.float32
    for place in (0, 127, 129):
        # 98 products of order 0.1 in float32.
        np.testing.assert_allclose(found[place], by_hand(x[place], 3), atol=2e-6)
    np.testing.assert_array_equal(found, random_convolution_features(x, seed=3))
    assert np.abs(found - random_convolution_features(x, seed=4)).max() > 0.1
    assert random_convolution_features(x[:0]).shape == (0, 96)


def test_filters_are_of_length_one_and_come_from_the_seed():
    for kernel, bias in features._filters(3, 0):
        np.testing.assert_allclose(np.sum(kernel**2, axis=(0, 1, 2)), 1, rtol=1e-6)
        assert 0.1 < bias.std() < 0.4
    kernel, bias = features._filters(1, 0)[0]
    np.testing.assert_allclose(kernel[0, 0, 0, :2], FIRST_WEIGHTS, rtol=1e-6)
    np.testing.assert_allclose(bias[:2], FIRST_BIASES, rtol=1e-6)


def test_grey_levels_are_scaled():
    grey = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8)
    floats = grey / np.float32(255)
    for each in (random_convolution_features, component_map(grey)):
        np.testing.assert_allclose(each(grey), each(floats), atol=2e-6)


def test_they_see_patches_and_not_their_place():
    """A periodic pattern moved by its period has the same patches; a moved edge other ones."""
    wave = np.sin(2 * np.pi * np.arange(16) / 4)[:, None] * np.ones((1, 16))
    pair = np.stack([wave, np.roll(wave, 4, axis=0)])[..., None].astype(np.float32)
    first, moved = random_convolution_features(pair)
    np.testing.assert_allclose(first, moved, atol=1e-6)
    turned = random_convolution_features(np.swapaxes(pair, 1, 2))[0]
    assert np.abs(first - turned).max() > 0.05


def gaussian_images(count, variances, modes, seed):
    rng = np.random.default_rng(seed)
    return (
        (rng.standard_normal((count, len(variances))) * np.sqrt(variances) @ modes + 0.3)
        .reshape(count, 8, 8, 1)
        .astype(np.float32)
    )


def test_leading_components_hold_nine_tenths_of_the_variance():
    modes = np.linalg.qr(np.random.default_rng(2).standard_normal((64, 64)))[0][:8]
    variances = np.array([4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1])  # 0.875 in three, 0.94 in four
    training = gaussian_images(1500, variances, modes, 3)
    found = leading_components(training, training)
    assert found.shape == (1500, 4)
    covariance = np.cov(found, rowvar=False)
    exact = np.linalg.eigvalsh(np.cov(training.reshape(1500, 64), rowvar=False))[::-1][:4]
    np.testing.assert_allclose(covariance, np.diag(exact), atol=1e-5 * exact[0])
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    # Distances within the subspace are those of the images.
    inside = gaussian_images(2, variances[:1], modes[:1], 4)
    apart = np.linalg.norm(np.diff(leading_components(inside, training), axis=0))
    assert apart == pytest.approx(np.linalg.norm(inside[0] - inside[1]), rel=0.01)


def test_few_training_images_and_many():
    modes = np.linalg.qr(np.random.default_rng(5).standard_normal((64, 64)))[0]
    three = gaussian_images(3, np.ones(64), modes, 6)
    assert leading_components(three, three).shape == (3, 2)  # all there is of three points
    many = gaussian_images(3000, np.r_[5.0, np.full(63, 1e-3)], modes, 7)
    found = leading_components(many[:5], many)
    assert found.shape == (5, 1)
    expected = (many[:5].reshape(5, 64) - many.reshape(3000, 64).mean(0)) @ modes[0]
    # The mean of 2 048 of the 3 000 is off by sqrt(5 (1/2048 - 1/3000)) = 0.03: five of that.
    np.testing.assert_allclose(np.abs(found[:, 0]), np.abs(expected), atol=0.15)


def test_maps_tell_blurred_images_from_sharp_ones():
    """Beside real images of the same numbers: noise that is blurred is another law of patches."""
    rng = np.random.default_rng(8)
    sharp = rng.normal(0, 0.3, (700, 8, 8, 1)).astype(np.float32)
    blurred = (sharp[-64:] + np.roll(sharp[-64:], 1, axis=1)) / np.float32(np.sqrt(2))
    maps = feature_maps(sharp, seed=0)
    assert list(maps) == ["random_convolutions", "leading_components"]
    told = {}
    for name, each in maps.items():
        real = each(sharp)
        level = frechet_of_one_law(real, (600, 64), seed=0)
        told[name] = frechet(real[:600], each(blurred)) > level.high
    assert told == {"random_convolutions": True, "leading_components": True}


def test_the_classifier_is_among_them():
    class Known:
        def features(self, x):
            return x.reshape(len(x), -1)[:, :3]

    x = images(12)
    maps = feature_maps(x, classifier=Known())
    np.testing.assert_array_equal(maps["classifier"](x), x.reshape(12, -1)[:, :3])


def test_bad_images_are_refused():
    with pytest.raises(UserError, match="8 x 8 pixels or more"):
        random_convolution_features(images(2, (8, 7, 1)))
    with pytest.raises(UserError, match="8 x 8 pixels or more"):
        feature_maps(np.zeros((4, 64)))
    with pytest.raises(UserError, match="one shape"):
        leading_components(images(2, (8, 8, 1)), images(5))
    with pytest.raises(UserError, match="all equal"):
        component_map(np.ones((4, 8, 8, 1)))
    with pytest.raises(UserError, match="at least two"):
        component_map(images(1))
