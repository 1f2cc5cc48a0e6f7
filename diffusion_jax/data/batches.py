"""Batches in an order that is a function of (seed, step) alone, sent ahead of the train step."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import repeat
from typing import Any

import jax
import numpy as np
from jax import Array

from diffusion_jax.runtime.devices import sharded


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
      batch_size: images per batch.
      num_images: size of the data set.

    Returns:
      Integer indices (batch_size,).
    """
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // num_images, (last - 1) // num_images + 1)
    order = np.concatenate([_permutation(seed, epoch, num_images) for epoch in epochs])
    offset = epochs[0] * num_images
    return order[first - offset : last - offset]


def batch_shape(image: tuple[int, ...], batch_size: int, updates: int = 1) -> tuple[int, ...]:
    """Shape of what `device_batches` yields for some updates together, given that of an image."""
    devices = jax.device_count()
    together = (updates,) if updates > 1 else ()
    return (devices, *together, batch_size // devices, *image)


def device_batches(
    images: np.ndarray,
    seed: int,
    start: int,
    batch_size: int,
    ahead: int = 2,
    updates: Iterable[int] = repeat(1),
) -> Iterator[Array]:
    """Yields the batches of the updates start, start + 1, ..., each already on its way.

    They are gathered and sent in a thread of their own; a process gathers what its devices need.

    Args:
      images: uint8 (n, height, width, channels), in memory or mapped from a file.
      seed: the run's seed.
      start: first update.
      batch_size: images per batch over all devices, a multiple of their number.
      ahead: what is gathered and sent before it is asked for, in items of `updates`.
      updates: for how many updates the batches are yielded together, each time.

    Yields:
      uint8 (devices, batch_size/devices, height, width, channels), one row on each device, for one
      update; (devices, updates, batch_size/devices, height, width, channels) for several.
    """

    def batch(step: int, count: int) -> Array:
        first_to_last = range(step, step + count)
        places = [batch_indices(seed, k, batch_size, len(images)) for k in first_to_last]
        by_device = np.stack(places).reshape(count, jax.device_count(), -1).swapaxes(0, 1)
        chosen = by_device if count > 1 else by_device[:, 0]

        def rows(part: Any) -> np.ndarray:
            return images[chosen[part[0]]]

        shape = batch_shape(images.shape[1:], batch_size, count)
        return jax.make_array_from_callback(shape, sharded(), rows)

    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[Array]] = deque()
        step = start
        for count in updates:
            pending.append(pool.submit(batch, step, count))
            step += count
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
