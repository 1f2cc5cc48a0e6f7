"""The covariance of a data set with all its maps, against float64 sums over the orbit."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.covariance import Rows
from diffusion_jax.regimes import symmetric_spectrum
from diffusion_jax.regimes.spectrum import eigenmodes, full_spectrum
from diffusion_jax.regimes.symmetric_spectrum import orbit_eigenvalues, orbit_spectrum
from diffusion_jax.symmetry import Group


def swapped(x):
    return x[..., ::-1]


GROUPS = {
    "flip": (Group.flip(), (3, 5, 2)),
    "dihedral": (Group.dihedral(), (4, 4, 2)),
    "odd shifts": (Group.translations(3, 4), (3, 4, 2)),
    "even shifts": (Group.translations(4, 2), (4, 2, 3)),
    "channels": (Group.of([lambda x: x, swapped], (3, 4, 2)), (3, 4, 2)),
}


def images_of(shape, n=6, seed=0):
    """With a mean image that no map leaves as it is."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(size=shape) + 0.3 * rng.standard_normal((n, *shape))).astype(np.float32)


def matrices(group, shape):
    """g as d x d matrices."""
    unit = jnp.eye(np.prod(shape)).reshape(-1, *shape)
    moved = [np.asarray(group(jnp.int32(g), unit), np.float64) for g in range(group.order)]
    return [each.reshape(len(unit), -1).T for each in moved]


def covariance(images, group, counts=None):
    """mean_g (g C g^T + (g m - m_G)(g m - m_G)^T) of images that count so often."""
    n, shape = len(images), images.shape[1:]
    rows = images.reshape(n, -1).astype(np.float64)
    counts = np.ones(n) if counts is None else counts
    mean = counts @ rows / n
    own = (rows - mean).T @ (counts[:, None] * (rows - mean)) / (n - 1)
    maps = matrices(group, shape)
    common = np.mean([g @ mean for g in maps], 0)
    shifts = [g @ mean - common for g in maps]
    parts = [g @ own @ g.T + np.outer(e, e) for g, e in zip(maps, shifts, strict=True)]
    return np.mean(parts, 0)


def first_channel(shape):
    return np.arange(np.prod(shape)).reshape(shape)[..., 0].ravel()


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("n", [3, 40])
def test_all_eigenvalues(name, n):
    """By way of the d x d matrix, and where there are few images of the points themselves."""
    group, shape = GROUPS[name]
    images = images_of(shape, n)
    found = orbit_eigenvalues(images, group, 4)
    expected = np.linalg.eigvalsh(covariance(images, group))[::-1]
    count = min(len(found), len(expected))
    np.testing.assert_allclose(found[:count], expected[:count], rtol=1e-4, atol=1e-5)
    assert np.abs(found[count:]).max(initial=0) + np.abs(expected[count:]).max(initial=0) < 1e-5


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("all_channels", [True, False])
def test_modes_and_resampled_eigenvalues(name, all_channels):
    group, shape = GROUPS[name]
    images, replicates = images_of(shape, 12), 20
    taken = slice(None) if all_channels else first_channel(shape)

    def part(matrix):
        return matrix[taken][:, taken]

    exact = part(covariance(images, group))
    found = orbit_spectrum(images, group, all_channels, 5, replicates)
    np.testing.assert_allclose(found.eigenvalues[:5], np.linalg.eigvalsh(exact)[:-6:-1], rtol=1e-4)
    assert found.modes.shape == (5, len(exact))
    np.testing.assert_allclose(found.modes @ found.modes.T, np.eye(5), atol=1e-4)
    products = found.modes @ exact @ found.modes.T
    np.testing.assert_allclose(products, np.diag(found.eigenvalues[:5]), atol=1e-4)
    counts = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), replicates)
    largest = [np.linalg.eigvalsh(part(covariance(images, group, each)))[-1] for each in counts]
    np.testing.assert_allclose(found.replicates, largest, rtol=2e-3)


def test_images_that_every_map_fixes_are_what_they_were():
    images = images_of((4, 4, 2), 9)
    group = Group.dihedral()
    images = np.mean([np.asarray(group(jnp.int32(g), images)) for g in range(8)], 0)
    values, _ = eigenmodes(Rows(images, True), 3)
    found = orbit_spectrum(images, group, True, 3, 10)
    np.testing.assert_allclose(found.eigenvalues[:3], values, rtol=1e-4)
    every = full_spectrum(Rows(images, True))
    np.testing.assert_allclose(orbit_eigenvalues(images, group, 3)[:9], every[:9], atol=1e-5)


def test_too_many_eigenvalues_are_not_all_given(monkeypatch):
    monkeypatch.setattr(symmetric_spectrum, "MOST_EIGENVALUES", 9)
    images = images_of((3, 5, 1), 6)
    exact = np.linalg.eigvalsh(covariance(images, Group.flip()))[::-1]
    np.testing.assert_allclose(orbit_eigenvalues(images, Group.flip(), 4), exact[:4], rtol=1e-4)
    monkeypatch.setattr(symmetric_spectrum, "_BLOCK_BYTES", 1)  # a vector at a time
    found = orbit_spectrum(images, Group.flip(), True, 4, 10)
    np.testing.assert_allclose(found.eigenvalues, exact[:4], rtol=1e-4)


def test_a_channel_without_variance_has_no_lambda():
    images = images_of((3, 4, 2), 8)
    images[..., 0] = 0.7
    for group in (Group.flip(), Group.translations(3, 4)):
        assert orbit_spectrum(images, group, False, 3, 10).eigenvalues[0] == 0
