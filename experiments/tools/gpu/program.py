"""The project's programs, lowered for GPUs that need not be there."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffusion_jax.config import TrainingConfig
from diffusion_jax.denoisers.trained import TrainedDenoiser
from diffusion_jax.nn.unet import UNet
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.devices import replicated, sharded
from diffusion_jax.sampling.ancestral import AncestralSampler
from diffusion_jax.sampling.loop import _sample_batch
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import (
    argument_shapes,
    init_state,
    make_optimizer,
    make_parallel_train_step,
)


def parameter_shapes(model: UNet, image_size: int) -> Any:
    """The shapes of a model's parameters."""
    image, step = jnp.zeros((1, image_size, image_size, model.channels)), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), image, step)["params"]


def _whole(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays that every device holds."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), tree
    )


def lower_step(
    model: UNet, config: TrainingConfig, image_size: int, mesh: Mesh, updates: int = 0
) -> Any:
    """Lowers the train step.

    Args:
      model: the noise predictor.
      config: training configuration, with the batch over all devices.
      image_size: pixels per side.
      mesh: from `target.gpu_mesh`; other devices will do where nothing is to be compiled.
      updates: how many in one dispatch; 0 for the step of one update.

    Returns:
      The lowered program.
    """
    optimizer = make_optimizer(config)
    shape = (image_size, image_size, model.channels)
    step = make_parallel_train_step(
        model, linear_schedule(), optimizer, jnp.zeros(model.channels), config, mesh=mesh
    )
    state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), shape))
    each = (updates,) if updates else ()
    images = (mesh.size, *each, config.batch_size // mesh.size, *shape)
    traced = step.trace(*argument_shapes(state, images, mesh))
    return traced.lower(lowering_platforms=("cuda",))


def lower_sampler(model: UNet, batch: int, image_size: int, mesh: Mesh) -> Any:
    """Lowers ancestral sampling of some images over all devices, in all steps of a schedule.

    Arguments and results as in `lower_step`.
    """
    parameters = jax.eval_shape(model.cast, parameter_shapes(model, image_size))
    denoiser = TrainedDenoiser(parameters, model)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharded(mesh))
    sampler, denoiser = _whole((AncestralSampler(linear_schedule()), denoiser), mesh)
    shape = (image_size, image_size, model.channels)
    traced = _sample_batch.trace(sampler, denoiser, None, keys, shape)
    return traced.lower(lowering_platforms=("cuda",))


def lower_weights(model: UNet, config: TrainingConfig, image_size: int, mesh: Mesh) -> Any:
    """Lowers the program of `step.fresh_state`; arguments and results as in `lower_step`."""
    optimizer, shape = make_optimizer(config), (image_size, image_size, model.channels)
    key = _whole(jax.eval_shape(lambda: jax.random.key(0)), mesh)
    make = jax.jit(
        partial(init_state, model, optimizer, shape=shape), compiler_options=backend.RUN_ONCE
    )
    with backend.random_kernels():
        return make.trace(key=key).lower(lowering_platforms=("cuda",))
