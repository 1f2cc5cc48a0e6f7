import numpy as np
import pytest

from diffusion_jax.regimes.newly_open import newly_open


def at(degrees, first, second):
    """A unit vector so far from the first axis, towards the second, of six."""
    angle = np.radians(degrees)
    return np.cos(angle) * np.eye(6)[first] + np.sin(angle) * np.eye(6)[second]


def test_turned_by_less_than_45_degrees_is_not_new():
    before = np.eye(6)[:2]
    now = np.stack([at(0, 0, 2), at(44, 1, 2), np.eye(6)[4]])
    values, found = newly_open(np.array([0.9, 0.8, 0.6]), now, before)
    np.testing.assert_allclose(values, [0.6])
    np.testing.assert_allclose(found, np.eye(6)[[4]], atol=1e-12)
    now[1] = at(46, 1, 2)
    values, found = newly_open(np.array([0.9, 0.8, 0.6]), now, before)
    np.testing.assert_allclose(values, [0.8, 0.6])
    np.testing.assert_allclose(found, [at(46, 1, 2), np.eye(6)[4]], atol=1e-12)


def test_new_directions_have_modes_of_their_own():
    """The modes now mix what was open and what was not: e_0 was, e_1, e_2 and e_3 were not."""
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    matrix = turned @ np.diag([0.9, 0.8, 0.7, 0.6]) @ turned.T
    values, vectors = np.linalg.eigh(matrix)
    now = np.zeros((4, 2, 3))
    now.reshape(4, 6)[:, :4] = vectors.T[::-1]
    found, directions = newly_open(values[::-1], now, np.eye(6)[:1].reshape(1, 2, 3))
    expected, own = np.linalg.eigh(matrix[1:, 1:])  # M on what is new
    np.testing.assert_allclose(found, expected[::-1], atol=1e-12)
    flat = directions.reshape(3, 6)
    np.testing.assert_allclose(flat[:, [0, 4, 5]], 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(flat[:, 1:4] @ own[:, ::-1]), np.eye(3), atol=1e-9)
    assert all(row[np.abs(row).argmax()] > 0 for row in flat)


@pytest.mark.parametrize(("now", "before", "new"), [(3, 0, 3), (0, 2, 0), (2, 4, 0), (4, 2, 2)])
def test_as_many_are_new_as_the_space_gains(now, before, new):
    rng = np.random.default_rng(now)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    mixed = np.linalg.qr(rng.standard_normal((now, now)))[0] @ basis[:now]
    values = np.sort(rng.uniform(0.5, 1, now))[::-1]
    found, directions = newly_open(values, mixed, basis[:before])
    assert found.shape == (new,)
    assert directions.shape == (new, 6)
    np.testing.assert_allclose(directions @ basis[:before].T, 0, atol=1e-9)
