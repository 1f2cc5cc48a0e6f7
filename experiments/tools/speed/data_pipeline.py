"""The data pipeline's share of a train step, alone and beside it."""

import time
from typing import Any

import jax
import numpy as np

from diffusion_jax.data.batches import device_batches
from experiments.tools.speed.programs import Program


def pipeline_seconds(images: np.ndarray, batch: int, num_batches: int = 50) -> float:
    """Seconds that `device_batches` takes to gather and send one batch, nothing else running."""
    batches = device_batches(images, 0, 0, batch)
    jax.block_until_ready(next(batches))
    start = time.perf_counter()
    for _ in range(num_batches):
        jax.block_until_ready(next(batches))
    seconds = (time.perf_counter() - start) / num_batches
    batches.close()  # type: ignore[attr-defined]
    return seconds


def waiting_seconds(images: np.ndarray, batch: int, update: Program, num_updates: int) -> float:
    """Median seconds that an update waits for its batch, while the ones before it run."""
    batches = device_batches(images, 0, 0, batch)
    next(batches)
    waits = []
    for _ in range(num_updates):
        update.call()
        start = time.perf_counter()
        jax.block_until_ready(next(batches))
        waits.append(time.perf_counter() - start)
    batches.close()  # type: ignore[attr-defined]
    return float(np.median(waits))


def measure(
    images: np.ndarray, batch: int, update: Program, num_updates: int, step_seconds: float
) -> dict[str, Any]:
    """What the benchmark's report says of the data pipeline.

    Args:
      images: uint8 (n, size, size, channels), from which batches are drawn.
      batch: images per batch.
      update: the train step.
      num_updates: updates that wait for a batch.
      step_seconds: what one takes.
    """
    alone = pipeline_seconds(images, batch)
    waiting = waiting_seconds(images, batch, update, num_updates)
    return {
        "images": len(images),
        "size": images.shape[1],
        "seconds_a_batch_alone": alone,
        "seconds_waited_beside_the_step": waiting,
        "share_alone": alone / step_seconds,
        "share_beside_the_step": waiting / step_seconds,
    }
