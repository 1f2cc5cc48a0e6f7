"""The train step's program for a GPU: lowered, and described once it is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusion_jax.config import TrainingConfig
from diffusion_jax.nn.unet import UNet
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import (
    argument_shapes,
    init_state,
    make_optimizer,
    make_parallel_train_step,
)
from experiments.tools.gpu import hlo, hlo_counts


def lower_step(model: UNet, config: TrainingConfig, image_size: int, mesh: Mesh) -> Any:
    """Lowers the train step for GPUs.

    Args:
      model: the noise predictor.
      config: training configuration, with the batch over all devices.
      image_size: pixels a side.
      mesh: from `target.gpu_mesh`; other devices will do where nothing is to be compiled.

    Returns:
      The lowered program.
    """
    optimizer = make_optimizer(config)
    shape = (image_size, image_size, model.channels)
    step = make_parallel_train_step(
        model, linear_schedule(), optimizer, jnp.zeros(model.channels), config, mesh=mesh
    )
    state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), shape))
    images = (mesh.size, config.batch_size // mesh.size, *shape)
    traced = step.trace(*argument_shapes(state, images, mesh))
    return traced.lower(lowering_platforms=("cuda",))


def memory(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled program needs on each device, by the compiler's own analysis.

    `arguments` (parameters, optimizer state, images), `results` that take no argument's memory,
    `temporary` (activations, gradients), and `peak`, the most that is in use at a time.
    """
    analysis = compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "peak": analysis.peak_memory_in_bytes,
    }


def describe(lowered: Any, program: Any) -> dict[str, Any]:
    """What a compiled train step consists of, as JSON can hold it."""
    text = program.as_text()
    instructions = hlo.instructions(text)
    arguments = jax.tree.leaves(lowered.in_avals)
    kernels = {a.shape for a in arguments if jnp.issubdtype(a.dtype, jnp.floating)}

    def named(counts: dict[Any, int]) -> list[list[Any]]:
        return [[*name, number] for name, number in counts.items()]

    return {
        "memory": memory(program),
        "convolutions": hlo_counts.convolutions(instructions),
        "convolutions_not_nhwc": hlo_counts.other_layouts(instructions),
        "fused_attentions": hlo_counts.fused_attentions(instructions),
        "matrix_products": hlo_counts.products(instructions),
        "transposes": named(hlo_counts.transposes(instructions, kernels)),
        "narrow_sums": named(hlo_counts.narrow_sums(instructions)),
        "collectives": hlo_counts.collectives(instructions),
        "host_calls": hlo_counts.host_calls(instructions),
        "donated": hlo.donated(text),
        "state_arrays": len(arguments) - 1,
    }
