"""What the samplers make of a network that knows nothing."""

import dataclasses
from pathlib import Path

import jax
import pytest
from two_convolutions import TwoConvolutions
from weights import random_params

from diffusion_jax.denoisers import TrainedDenoiser
from diffusion_jax.sampling import SAMPLERS
from diffusion_jax.training.run import load_model

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

RUN = Path(__file__).parents[1] / "reference/run/run"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_that_was_not_trained_stays_in_the_range(name):
    """Its predictions leave the range by far where they may."""
    model = load_model(RUN)
    network = TwoConvolutions(model.shape[-1])
    denoiser = TrainedDenoiser(random_params(network, model.shape), network)
    model = dataclasses.replace(model, denoiser=denoiser)
    ends = [
        model.mean + model.backward(name, 10, clip=clip).sample(jax.random.key(0), 8, model.shape)
        for clip in (True, False)
    ]
    assert ends[0].min() > -1e-6
    assert ends[0].max() < 1 + 1e-6
    assert ends[1].min() < -0.5 or ends[1].max() > 1.5
