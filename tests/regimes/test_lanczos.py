"""Lanczos' method against whole eigenproblems, with eigenvalues that occur often or are zero."""

import numpy as np
import pytest

from diffusion_jax.regimes.lanczos import Krylov


def rotated(values, seed=0):
    """A symmetric matrix of given eigenvalues."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return (axes * values) @ axes.T


def run(matrix, leading, tolerance=1e-6, most=10**6, rounding=1e-13, noise=0.0, seed=1):
    """The space once it is done, and the number of products."""
    rng = np.random.default_rng(seed)
    space = Krylov(len(matrix), leading, most, tolerance, rounding, np.random.default_rng(seed))
    steps = 0
    while not space.done:
        wrong = noise * rng.standard_normal(len(matrix)) / np.sqrt(len(matrix))
        space.add(matrix @ space.direction + wrong)
        steps += 1
    return space, steps


def sigmoid(d):
    """Smooth, as those of images: e^-2t l/(e^-2t l + Delta) with l falling as a power."""
    return 1 / (1 + 0.05 * np.arange(1, d + 1) ** 1.5)


MANY = np.concatenate([np.full(3, 0.9), np.full(2, 0.5), np.linspace(0.2, 0, 195)])


@pytest.mark.parametrize(
    ("values", "leading", "most"),
    [
        pytest.param(sigmoid(200), 12, 60, id="smooth"),
        pytest.param(MANY, 7, 90, id="several copies"),
        pytest.param(np.where(np.arange(200) < 2, 0.9, 0.1), 3, 8, id="two copies and a floor"),
        pytest.param(np.zeros(200), 5, 7, id="zero"),
        pytest.param(np.ones(200), 5, 7, id="one"),
        pytest.param(np.concatenate([[5.0, 0.7], np.full(198, -0.2)]), 6, 12, id="negative"),
        pytest.param(np.linspace(-1, 1, 9), 9, 9, id="whole"),
        pytest.param(np.repeat([2.0, 0.5, -1], 3), 9, 9, id="whole, several copies"),
        pytest.param(np.array([0.3]), 1, 1, id="one component"),
    ],
)
def test_leading_eigenvalues_come_as_often_as_they_are_there(values, leading, most):
    matrix, wanted = rotated(values), np.sort(values)[::-1][:leading]
    space, steps = run(matrix, leading)
    found, residuals, vectors = space.leaders()
    assert steps <= most
    assert np.isfinite(space.direction).all()  # others of a batch may go on
    assert found == pytest.approx(wanted, abs=1e-10)
    assert residuals.max() <= 1e-6
    assert vectors @ vectors.T == pytest.approx(np.eye(leading), abs=1e-10)
    # A residual is what is left of A y - theta y.
    left = vectors @ matrix - found[:, None] * vectors
    assert np.linalg.norm(left, axis=1) == pytest.approx(residuals, abs=1e-12)


def test_residuals_bound_the_errors_of_what_has_not_converged():
    values = sigmoid(300)
    space, steps = run(rotated(values), 20, most=25)
    found, residuals, _ = space.leaders()
    assert steps == 25
    assert residuals.max() > 1e-3
    distance = np.abs(found[:, None] - values).min(axis=1)
    assert (distance <= residuals + 1e-12).all()


def test_rounding_of_products_neither_hides_copies_nor_makes_ghosts():
    for seed in range(5):
        space, _ = run(rotated(MANY), 7, 1e-5, rounding=1e-6, noise=1e-6, seed=seed)
        found, residuals, _ = space.leaders()
        # Weyl: an eigenvalue moves by the noise's norm at most, of the order of 1e-6.
        assert found == pytest.approx(np.sort(MANY)[::-1][:7], abs=1e-4)
        assert residuals.max() <= 1e-5


def test_the_projected_matrix_is_that_of_the_space():
    matrix = rotated(MANY)
    space, _ = run(matrix, 7)
    basis = space.basis
    assert basis @ basis.T == pytest.approx(np.eye(len(basis)), abs=1e-12)
    assert space.projected == pytest.approx(basis @ matrix @ basis.T, abs=1e-12)
