import math

import numpy as np
import pytest
from scipy.stats import binomtest

from diffusion_jax import covariance
from diffusion_jax.covariance import Rows
from diffusion_jax.data import mnist
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import spectrum
from diffusion_jax.regimes.spectrum import largest_eigenvalue, speciation_time


def flat(images, all_channels):
    return (images if all_channels else images[..., :1]).reshape(len(images), -1) / 255


@pytest.fixture(params=[5, 200])
def images(request):
    rng = np.random.default_rng(request.param)
    return rng.integers(0, 256, (request.param, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("all_channels", [False, True])
def test_against_the_full_covariance(images, all_channels):
    values, modes = np.linalg.eigh(np.cov(flat(images, all_channels), rowvar=False))
    rows = Rows(images, all_channels)
    assert largest_eigenvalue(images, all_channels) == pytest.approx(values[-1], rel=1e-5)
    found, directions = spectrum.eigenmodes(rows, 3)
    np.testing.assert_allclose(found, values[:-4:-1], rtol=1e-5)
    overlaps = np.abs(np.sum(directions * modes.T[:-4:-1], axis=1))
    np.testing.assert_allclose(overlaps, 1, atol=1e-4)
    full = spectrum.full_spectrum(rows)
    assert len(full) == min(rows.n, rows.d)
    np.testing.assert_allclose(full, values[::-1][: len(full)], atol=1e-6)


def test_data_too_large_to_keep_are_converted_block_by_block(images, monkeypatch):
    whole = largest_eigenvalue(images, True)
    monkeypatch.setattr(covariance, "_KEPT_BYTES", 0)
    monkeypatch.setattr(covariance, "_BLOCK_BYTES", 4 * 90 * 3)
    assert sum(1 for _ in Rows(images, True).blocks()) > 1
    assert largest_eigenvalue(images, True) == pytest.approx(whole, rel=1e-5)
    weights = np.random.default_rng(0).multinomial(len(images), [1 / len(images)] * len(images), 2)
    v = np.random.default_rng(1).standard_normal((90, 2))
    product = Rows(images, True).covariance_product(v, weights.T.astype(np.float32))
    for i in range(2):
        exact = np.cov(np.repeat(flat(images, True), weights[i], 0), rowvar=False)
        np.testing.assert_allclose(product[:, i], exact @ v[:, i], atol=1e-5)


def test_floats_are_taken_as_they_are(images):
    scaled = images.astype(np.float32) / 255
    assert largest_eigenvalue(3 * scaled - 1) == pytest.approx(9 * largest_eigenvalue(images), 1e-5)


def test_ones_and_eights_have_the_known_eigenvalue():
    images = mnist.load(("1", "8"), 500, 32).images
    eigenvalue = largest_eigenvalue(images)
    assert round(eigenvalue, 2) == 7.56
    assert speciation_time(eigenvalue) == pytest.approx(1.01, abs=0.005)
    # The mode's own time is another: 1.07.
    assert round(float(spectrum.mode_times(np.array([eigenvalue]))[0]), 2) == 1.07
    # E|a|^2 counts the mean image: it is not the trace.
    assert spectrum.full_spectrum(Rows(images)).sum() == pytest.approx(39.39, abs=0.005)
    centred = images / 255 - images.mean() / 255
    norm = spectrum.SquaredNorm(1024, float(np.sum(centred**2) / 1000))
    assert norm.initial == pytest.approx(68.26, abs=0.005)
    assert norm.critical_point == "nowhere"


def test_resampled_eigenvalues_are_those_of_the_resampled_images():
    rng = np.random.default_rng(2)
    points = rng.standard_normal((80, 40)) * np.linspace(1.5, 0.5, 40)  # no gap to help
    rows = Rows(points.astype(np.float32))
    mode = spectrum.eigenmodes(rows, 1)[1][0]
    found = spectrum.bootstrap_largest_eigenvalue(rows, mode, 30, seed=3, num_steps=25)
    counts = np.random.default_rng(3).multinomial(80, np.full(80, 1 / 80), 30)
    exact = [
        np.linalg.eigvalsh(np.cov(np.repeat(points, count, 0), rowvar=False))[-1]
        for count in counts
    ]
    np.testing.assert_allclose(found, exact, rtol=1e-3)


def test_the_interval_of_lambda_covers():
    rng = np.random.default_rng(4)
    trials, covered = 100, 0
    for _ in range(trials):
        points = rng.standard_normal((300, 12)).astype(np.float32)
        points[:, 0] *= 3
        rows = Rows(points)
        values, modes = spectrum.eigenmodes(rows, 1)
        replicates = spectrum.bootstrap_largest_eigenvalue(rows, modes[0], 200)
        Lambda, t_S, shift = spectrum.speciation_estimate(float(values[0]), replicates)
        assert abs(shift) < 1
        covered += Lambda.low <= 9 <= Lambda.high
        assert (t_S.low <= math.log(3) <= t_S.high) == (Lambda.low <= 9 <= Lambda.high)
    # A bootstrap of 300 points is a little short of 95 %.
    assert binomtest(covered, trials, 0.93).pvalue > 1e-3


def test_the_forward_process_keeps_the_modes():
    rng = np.random.default_rng(5)
    points = rng.standard_normal((200_000, 2)) @ np.array([[2.0, 0.0], [0.5, 0.3]]) + 1
    values = np.linalg.eigvalsh(np.cov(points, rowvar=False))
    norm = spectrum.SquaredNorm(2, float(np.mean(np.sum(points**2, axis=1))))
    for t in (0.3, 1.0):
        x = np.exp(-t) * points + np.sqrt(-np.expm1(-2 * t)) * rng.standard_normal(points.shape)
        found = np.linalg.eigvalsh(np.cov(x, rowvar=False))
        np.testing.assert_allclose(
            spectrum.eigenvalues_at(values, np.array([t]))[0], found, rtol=0.02
        )
        assert norm.at(np.array([t]))[0] == pytest.approx(np.mean(np.sum(x**2, 1)), rel=0.02)
    assert spectrum.SquaredNorm(2, 2.0).critical_point == "everywhere"
    equal = spectrum.eigenvalues_at(values, spectrum.mode_times(values))
    np.testing.assert_allclose(
        values * np.exp(-2 * spectrum.mode_times(values)), np.diag(equal) / 2
    )


def test_constant_images_have_no_variance():
    images = np.full((4, 3, 3, 1), 200, np.uint8)
    assert largest_eigenvalue(images) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("eigenvalue", [0.0, 1e-30, 0.699, 1.0])
def test_lambda_up_to_1_has_no_time(eigenvalue):
    assert math.isnan(speciation_time(eigenvalue))
    assert speciation_time(1.0001) == pytest.approx(0.5e-4, rel=1e-3)
    if eigenvalue:
        replicates = eigenvalue * np.exp(0.3 * np.random.default_rng(0).standard_normal(200))
        Lambda, t_S, _ = spectrum.speciation_estimate(eigenvalue, replicates)
        assert Lambda.low < eigenvalue < Lambda.high
        assert np.isnan([t_S.value, t_S.low, t_S.high]).all()


def test_an_interval_that_reaches_down_to_1_begins_at_time_0():
    replicates = 1.1 * np.exp(0.3 * np.random.default_rng(0).standard_normal(200))
    Lambda, t_S, _ = spectrum.speciation_estimate(1.1, replicates)
    assert Lambda.low < 1
    assert t_S.low == 0 < t_S.value < t_S.high
    assert t_S.value == pytest.approx(0.5 * math.log(1.1))
    assert t_S.high == pytest.approx(0.5 * math.log(Lambda.high))


def test_one_pixel():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    assert largest_eigenvalue(images) == pytest.approx(0.5)


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="at least two images"):
        largest_eigenvalue(np.zeros((1, 2, 2, 1), np.uint8))


def test_a_spectrum_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(covariance, "_LARGEST_GRAM", 3)
    with pytest.raises(UserError, match="at most 3 images"):
        spectrum.full_spectrum(Rows(np.zeros((5, 4), np.float32)))


def test_two_images_have_no_interval():
    rows = Rows(np.random.default_rng(0).random((2, 30)).astype(np.float32))
    values, modes = spectrum.eigenmodes(rows, 1)
    replicates = spectrum.bootstrap_largest_eigenvalue(rows, modes[0])
    Lambda, t_S, _ = spectrum.speciation_estimate(float(values[0]), replicates)
    assert Lambda.value == pytest.approx(values[0])
    assert np.isnan([Lambda.low, Lambda.high, t_S.low, t_S.high]).all()


def test_a_flat_spectrum_tells_of_its_bias():
    # Marchenko-Pastur: the largest of a flat spectrum is about (1 + sqrt(d/n))^2, not 1.
    rows = Rows(np.random.default_rng(1).standard_normal((200, 100)).astype(np.float32))
    values, modes = spectrum.eigenmodes(rows, 1)
    assert values[0] == pytest.approx((1 + 0.5**0.5) ** 2, rel=0.1)
    replicates = spectrum.bootstrap_largest_eigenvalue(rows, modes[0])
    Lambda, _, shift = spectrum.speciation_estimate(float(values[0]), replicates)
    assert Lambda.low < values[0] < Lambda.high
    assert shift > 2
