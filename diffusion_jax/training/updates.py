"""Training without a run's folder: a network of one's own, on an array of one's own."""

from collections.abc import Iterator
from itertools import repeat

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.config import TrainingConfig
from diffusion_jax.data.arrays import image_set
from diffusion_jax.data.batches import device_batches
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.nn.network import Network
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.training.step import (
    Metrics,
    TrainState,
    fresh_state,
    make_optimizer,
    make_parallel_train_step,
)


def updates(
    network: Network,
    images: np.ndarray | ImageSet,
    schedule: NoiseSchedule,
    num_updates: int,
    config: TrainingConfig | None = None,
    seed: int = 0,
) -> Iterator[tuple[TrainState, Metrics]]:
    """Trains a network to predict the noise, an update at a time, on all devices.

    Its parameters, the order of the images, the noise and the steps are those of a run with the
    same seed and configuration.

    Args:
      network: see `Network`; a Flax module will do.
      images: (n, height, width, channels), (n, height, width) or (n, d); integers from 0 to 255, or
        floats in [0, 1]. Their mean is removed.
      schedule: noise schedule.
      num_updates: how many updates.
      config: batch size, learning rate and so on; `TrainingConfig()` by default.
      seed: of everything random.

    Returns:
      An iterator of the train state after each update, and the update's `loss`, `grad_norm` and
      `learning_rate`. The next update takes the state's memory: copy what is to be kept beyond it.
      The parameters to sample with are `state.ema_params`.

    Raises:
      UserError: images that cannot be used, or that a symmetry does not map, a configuration out of
        range, a batch that the devices cannot share evenly, a schedule of more steps than the
        network knows, or, at the first update, a network that gives another shape.
    """
    config = config or TrainingConfig()
    config.check()
    if num_updates < 1:
        raise UserError(f"num_updates = {num_updates} must be at least 1")
    chosen = images if isinstance(images, ImageSet) else image_set(images)
    shape, optimizer = chosen.images.shape[1:], make_optimizer(config)
    config.group(shape)  # refuses images that it does not map
    mean = jnp.asarray(chosen.mean)
    step = make_parallel_train_step(network, schedule, optimizer, mean, config)
    state = fresh_state(network, optimizer, jax.random.key(seed), shape)
    batches = device_batches(
        chosen.images, seed, 0, config.batch_size, updates=repeat(1, num_updates)
    )
    return _updates(step, state, batches)


def _updates(
    step: jax.stages.Wrapped, state: TrainState, batches: Iterator[Array]
) -> Iterator[tuple[TrainState, Metrics]]:
    for batch in batches:
        state, metrics = step(state, batch)
        yield state, metrics
