"""Batches in an order that is a function of (seed, step) alone, sent ahead of the train step."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import jax
import numpy as np
from jax import Array

from diffusion_jax.devices import sharded


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """The images of one update: a stretch of the concatenated permutations of all epochs.

    Epoch e visits the images in a permutation that follows from (seed, e); update k takes the
    places k batch_size .. (k + 1) batch_size - 1 of the epochs laid end to end. So no image is left
    out where the batch does not divide the data, and a batch may be larger than the data.

    Args:
      seed: the run's seed.
      step: number k of the update, from 0.
      batch_size: images a batch.
      num_images: size of the data set.

    Returns:
      Integer indices (batch_size,).
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_images, (last - 1) // num_images + 1)
    order = np.concatenate([_permutation(seed, epoch, num_images) for epoch in epochs])
    offset = epochs[0] * num_images
    return order[first - offset : last - offset]


def device_batches(
    images: np.ndarray, seed: int, start: int, batch_size: int, ahead: int = 2
) -> Iterator[Array]:
    """Yields the batches of the updates start, start + 1, ..., each already on its way.

    Args:
      images: uint8 (n, height, width, channels).
      seed: the run's seed.
      start: first update.
      batch_size: images a batch over all devices, a multiple of their number.
      ahead: batches gathered and sent before they are asked for.

    Yields:
      uint8 (devices, batch_size/devices, height, width, channels), one row on each device.
    """

    def batch(step: int) -> Array:
        chosen = images[batch_indices(seed, step, batch_size, len(images))]
        shape = (jax.device_count(), -1, *images.shape[1:])
        return jax.device_put(chosen.reshape(shape), sharded())

    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[Array]] = deque()
        step = start
        while True:
            while len(pending) <= ahead:
                pending.append(pool.submit(batch, step))
                step += 1
            yield pending.popleft().result()
