"""What the card does with nothing of ours on it: copies and large products."""

import os
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from experiments.tools.check import device
from experiments.tools.check.task import Task
from experiments.tools.speed import timing
from experiments.tools.speed.cards import peak_tflops


def measure(task: Task) -> None:
    """The item `machine`."""
    sizes, chip = task.sizes, device.start()
    task.add({"device": chip.device_kind, "cores": len(os.sched_getaffinity(0))})

    def seconds(call: Callable[[], Any]) -> float:
        in_a_row = partial(timing.in_a_row, call, jax.block_until_ready)
        return median(device.taking_turns(sizes, sizes.together)(in_a_row)[0])

    source = jnp.ones(sizes.copied * 2**18, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    task.add({"copy, GB/s": 2 * source.nbytes / seconds(lambda: copy(source)) / 1e9})
    product = jax.jit(jnp.matmul)
    for name, dtype, bfloat16 in (
        ("bfloat16", jnp.bfloat16, True),
        ("float32 (TF32)", jnp.float32, False),
    ):
        square = jnp.ones((sizes.side, sizes.side), dtype)
        reached = 2 * sizes.side**3 / seconds(partial(product, square, square)) / 1e12
        peak = peak_tflops(chip.device_kind, bfloat16)
        share = {} if peak is None else {"share of the peak": reached / peak}
        task.add({f"product in {name}": {"TFLOP/s": reached} | share})
