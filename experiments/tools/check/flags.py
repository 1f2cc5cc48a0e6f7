"""Whether options of XLA, or more updates per dispatch, make training quicker."""

import json
import os
from statistics import median

import jax.numpy as jnp

from diffusion_jax.config import TrainingConfig
from diffusion_jax.nn import kernels
from diffusion_jax.nn.unet import UNet
from experiments.tools.check import device
from experiments.tools.check import task as tasks
from experiments.tools.check.sizes import FULL, TINY
from experiments.tools.check.task import Task
from experiments.tools.speed import programs

# XLA's options, and the updates of a dispatch; each is a process of its own. The plain one comes
# again at the end: what the two differ by, the others may differ by without meaning anything.
FORMS = {
    "plain": ("", 1),
    "10 updates per dispatch": ("", 10),
    "convolutions in CUDA graphs": ("--xla_gpu_enable_command_buffer=+CONVOLUTION", 1),
    "products by cuBLAS alone": ("--xla_gpu_enable_triton_gemm=false", 1),
    "plain again": ("", 1),
}


def measure(task: Task) -> None:
    """The item `flags`."""
    for name, (options, updates) in list(FORMS.items())[: task.sizes.options]:
        program = f"from {__name__} import short; short({task.tiny}, {updates})"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {options}".strip()
        try:
            log = tasks.run(task, "flags", ["-c", program], XLA_FLAGS=flags)
        except RuntimeError as error:  # such as an option that this version has not
            task.add({name: {"failed": str(error)}})
            continue
        found = {"ms per update": 1e3 * tasks.last_json(log)}
        if "ms per update" in (plain := task.found.get("plain", {})):
            found["ratio to plain"] = found["ms per update"] / plain["ms per update"]
        task.add({name: found})


def short(tiny: bool, updates: int) -> None:
    """Prints the median seconds of an update of JAX alone; what `measure` runs for each form."""
    device.start()
    sizes = TINY if tiny else FULL
    batch, size = sizes.batch[0], sizes.pixels[0]
    model = UNet(**sizes.fields, dtype=jnp.bfloat16, kernels=kernels.best())
    update = programs.train_step(
        model,
        lambda: programs.drawn_params(model),
        programs.pixels(batch, size),
        TrainingConfig(batch_size=batch),
        updates,
    )
    together = max(sizes.together // updates, 1)
    (seconds,) = device.taking_turns(sizes, together)(update.in_a_row)
    print(json.dumps(median(seconds) / updates))
