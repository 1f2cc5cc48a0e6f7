import math

import numpy as np
import pytest

from diffusion_jax.data import mnist
from diffusion_jax.regimes.spectrum import largest_eigenvalue, speciation_time


@pytest.mark.parametrize("all_channels", [False, True])
@pytest.mark.parametrize("n", [5, 200])
def test_largest_eigenvalue_against_the_full_covariance(n, all_channels):
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
    rows = (images if all_channels else images[..., :1]).reshape(n, -1) / 255
    exact = np.linalg.eigvalsh(np.cov(rows, rowvar=False))[-1]
    assert largest_eigenvalue(images, all_channels) == pytest.approx(exact, rel=1e-5)


def test_ones_and_eights_have_the_known_eigenvalue():
    images = mnist.load(("1", "8"), 500, 32).images
    eigenvalue = largest_eigenvalue(images)
    assert round(eigenvalue, 2) == 7.56
    assert speciation_time(eigenvalue) == pytest.approx(1.01, abs=0.005)


def test_constant_images_have_no_variance():
    images = np.full((4, 3, 3, 1), 200, np.uint8)
    assert largest_eigenvalue(images) == pytest.approx(0, abs=1e-9)
    assert speciation_time(0.0) == -math.inf


def test_one_pixel():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    assert largest_eigenvalue(images) == pytest.approx(0.5)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least two images"):
        largest_eigenvalue(np.zeros((1, 2, 2, 1), np.uint8))
