"""A schedule longer than what a network knows is refused wherever the two meet."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config import TrainingConfig
from diffusion_jax.denoisers import (
    ClippedDenoiser,
    EmpiricalDenoiser,
    GaussianMixtureDenoiser,
    TrainedDenoiser,
)
from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import UNet
from diffusion_jax.regimes.cloning import fork
from diffusion_jax.sampling import AncestralSampler, sample, sampling_loop
from diffusion_jax.sampling.likelihood import image_bits
from diffusion_jax.sampling.respacing import RespacedDenoiser, with_calls
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.updates import updates

LONG = linear_schedule(1001)
UNET = TrainedDenoiser({}, UNet(channels=1))
KEY = jax.random.key(0)
SHAPE = (2, 2, 1)


def one_update(network, schedule):
    images = np.random.default_rng(0).random((8, *SHAPE))
    return next(updates(network, images, schedule, 1, TrainingConfig(batch_size=8)))


def run_loop(sampler, denoiser):
    keys = jax.random.split(KEY, 1)
    return jax.jit(sampling_loop)(sampler, denoiser, jnp.zeros((1, *SHAPE)), keys, 2, 1)


@pytest.mark.parametrize(
    "use",
    [
        lambda: sample(AncestralSampler(LONG), UNET, KEY, 1, SHAPE),
        lambda: run_loop(AncestralSampler(LONG), UNET),
        lambda: fork(AncestralSampler(LONG), UNET, KEY, [5], SHAPE, 0, 1),
        lambda: with_calls(LONG, UNET, 10, "step"),
        lambda: image_bits(UNET, LONG, np.zeros((1, *SHAPE), np.uint8), np.zeros(1), KEY),
        lambda: one_update(UNET.model, LONG),
    ],
    ids=["sample", "loop", "fork", "respacing", "likelihood", "training"],
)
def test_more_steps_than_the_network_knows_are_refused(use):
    message = r"has 1001 steps, but the denoiser knows the steps 0\.\.999 alone: take a schedule of"
    with pytest.raises(UserError, match=message):
        use()


def test_closed_forms_know_the_steps_of_their_schedule():
    """Beyond these they would take the tables' last entries in silence."""
    schedule, points = linear_schedule(50), jnp.zeros((3, *SHAPE))
    exact = EmpiricalDenoiser(schedule, points)
    for denoiser in (
        exact,
        GaussianMixtureDenoiser(schedule, points[0], jnp.float32(1)),
        ClippedDenoiser(exact, schedule, jnp.float32(0), jnp.float32(1)),
        RespacedDenoiser(UNET, jnp.arange(0, 1000, 20)),
    ):
        with pytest.raises(UserError, match=r"has 60 steps, but the denoiser knows .* 0\.\.49"):
            sample(AncestralSampler(linear_schedule(60)), denoiser, KEY, 1, SHAPE)


class Linear(nn.Module):
    """It says of no step that it does not know it."""

    @nn.compact
    def __call__(self, x, step, dropout_keys=None):
        return nn.Dense(1)(x)


def test_a_network_that_names_no_number_takes_any_schedule():
    state, _ = one_update(Linear(), LONG)
    out = run_loop(AncestralSampler(LONG), TrainedDenoiser(state.ema_params, Linear()))
    assert np.isfinite(out).all()
