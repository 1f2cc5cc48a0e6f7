"""Denoising losses and memorisation of exact denoisers, against closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianMixtureDenoiser
from diffusion_jax.regimes.loss_information import Strata
from diffusion_jax.sampling import backward
from diffusion_jax.schedule import constant_schedule, cosine_schedule, linear_schedule
from diffusion_jax.training import evaluation

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SIGMA = 0.3


def gaussian(schedule, shape, sigma=SIGMA):
    """The exact denoiser of N(0, sigma^2 I)."""
    return GaussianMixtureDenoiser(schedule, jnp.zeros(shape), jnp.float32(sigma))


def image_sets(n=60, held_out=50):
    """Grey levels of N(1/2, SIGMA^2 / 4) in d = 50, half to train on and half held out."""
    rng = np.random.default_rng(4)
    pixels = 127.5 * (1 + SIGMA * rng.standard_normal((n + held_out, 5, 5, 2)))
    pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return ImageSet(pixels[:n], None, ()), ImageSet(pixels[n:], None, ())


@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule])
def test_losses_of_a_gaussian_are_its_closed_form(make):
    """E = sigma^2 alpha_bar/(sigma^2 alpha_bar + 1 - alpha_bar) averaged over the band's steps."""
    schedule = make(1000)
    n, d = 2500, 40
    x_0 = SIGMA * np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    bands = evaluation.time_bands(schedule)
    assert len(bands) == 6
    losses = evaluation.denoising_losses(
        gaussian(schedule, (d,)), schedule, x_0, jax.random.key(1), bands, batch_size=1000
    )
    signal = SIGMA**2 * np.asarray(schedule.alpha_bar, np.float64)
    error = signal / (signal + np.asarray(schedule.noise_variance, np.float64))
    for loss, band in zip(losses, bands, strict=True):
        steps = error[band.first : band.stop]
        # Each squared error has variance 2 E^2, and the steps are stratified.
        deviation = np.sqrt(2 * np.mean(steps**2) / (n * d))
        assert abs(loss - steps.mean()) < 4.5 * deviation, band


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize(
    "schedule", [linear_schedule(), linear_schedule(25), cosine_schedule(), constant_schedule(12)]
)
def test_bands_hold_every_step_once_and_tell_its_time(schedule, faithful):
    bands = evaluation.time_bands(schedule, faithful)
    steps = [step for band in bands for step in range(band.first, band.stop)]
    assert steps == list(range(int(faithful), schedule.num_steps))
    for band in bands:
        lower, upper = map(float, re.fullmatch(r"t_(.*)_(.*)", band.name).groups())
        times = np.asarray(schedule.time)[band.first : band.stop]
        assert np.all((lower <= times) & (times < upper))


def test_a_band_of_one_step():
    schedule = linear_schedule(50)
    for step in (0, 20, 49):
        band = evaluation.band_of_step(schedule, step)
        assert (band.first, band.stop) == (step, step + 1)
        lower, upper = map(float, re.fullmatch(r"t_(.*)_(.*)", band.name).groups())
        assert lower == pytest.approx(float(schedule.time[step]), rel=1e-3)
        assert upper > lower


def test_losses_follow_from_the_key_alone():
    schedule = linear_schedule(100)
    bands = evaluation.time_bands(schedule)[:2]
    x_0 = np.random.default_rng(0).standard_normal((37, 6)).astype(np.float32)

    def losses(seed, batch_size):
        key, denoiser = jax.random.key(seed), gaussian(schedule, (6,))
        return evaluation.denoising_losses(denoiser, schedule, x_0, key, bands, batch_size)

    np.testing.assert_array_equal(losses(0, 64), losses(0, 64))
    np.testing.assert_allclose(losses(0, 8), losses(0, 64), rtol=1e-5)
    assert np.all(losses(1, 64) != losses(0, 64))


def evaluate(denoiser, schedule, training, held_out):
    process, strata = backward(schedule, denoiser, calls=50), Strata(schedule)
    metrics, drawn = evaluation.evaluate(
        *(denoiser, schedule, training, held_out, jax.random.key(2), 40, process, strata),
        evaluation.time_bands(schedule),
    )
    assert drawn.samples.shape == (40, *training.images.shape[1:])
    return metrics


def test_the_exact_score_of_the_training_set_memorises_it():
    """Its samples are training images; its loss on them is below that on others until late."""
    training, held_out = image_sets()
    schedule = linear_schedule()
    points = jnp.asarray(training.images / np.float32(255) - training.mean)
    denoiser = EmpiricalDenoiser(schedule, points)
    metrics = evaluate(denoiser, schedule, training, held_out)
    assert metrics["memorised_fraction"] == 1
    assert metrics["neighbour_ratio"] < 0.01
    # Where it knows its point it predicts the noise, and of other points it knows nothing.
    assert metrics["training_loss/t_0_0.05"] < 0.1 < 1 < metrics["held_out_loss/t_0_0.05"]
    assert metrics["training_loss/t_0.05_0.2"] < 0.9 * metrics["held_out_loss/t_0.05_0.2"]
    late = (metrics["training_loss/t_2_inf"], metrics["held_out_loss/t_2_inf"])
    np.testing.assert_allclose(*late, rtol=0.15)


def test_the_score_of_the_law_behind_the_training_set_generalises():
    """Fresh draws in d = 50 are as near to one training image as to the next."""
    training, held_out = image_sets()
    schedule = linear_schedule()
    denoiser = gaussian(schedule, (5, 5, 2), SIGMA / 2)
    metrics = evaluate(denoiser, schedule, training, held_out)
    assert metrics["memorised_fraction"] == 0
    assert 0.9 < metrics["neighbour_ratio"] < 1
    for band in evaluation.time_bands(schedule):
        pair = (metrics[f"training_loss/{band.name}"], metrics[f"held_out_loss/{band.name}"])
        np.testing.assert_allclose(*pair, rtol=0.12)
    without = evaluate(denoiser, schedule, training, None)
    assert without.keys() == {name for name in metrics if not name.startswith("held_out")}
    assert without["neighbour_ratio"] == metrics["neighbour_ratio"]


def test_copies_in_the_training_set():
    points = np.array([[0.0, 0], [0, 0], [3, 4]])
    assert evaluation.memorisation(points[2:], points) == {
        "memorised_fraction": 1.0,
        "neighbour_ratio": 0.0,
    }
    assert evaluation.memorisation(points[:1], points) == {
        "memorised_fraction": 0.0,
        "neighbour_ratio": 1.0,
    }
