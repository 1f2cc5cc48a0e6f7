"""What `benchmark` times on JAX's side: compiled programs with their arguments."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.config import TrainingConfig
from diffusion_jax.data.batches import device_batches
from diffusion_jax.denoisers import TrainedDenoiser
from diffusion_jax.nn.unet import UNet
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.devices import replicated
from diffusion_jax.sampling import AncestralSampler, sampling_loop
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import (
    argument_shapes,
    init_state,
    make_optimizer,
    make_parallel_train_step,
    state_of,
)
from experiments.tools.speed import timing

MEAN = np.full(3, 0.5, np.float32)


@dataclass(frozen=True)
class Program:
    """A compiled program with its arguments.

    Attributes:
      launch: runs it once, and returns the result without waiting for it.
      compile_seconds: what tracing and compiling took, or reading it from the cache, perhaps beside
        other programs.
      memory: bytes of `temporary` buffers, of `arguments` (weights, optimizer state, images) and
        of the `peak`, by the compiler's own analysis; empty where the device has none.
      lowered: the program before compilation.
    """

    launch: Callable[[], Any]
    compile_seconds: float
    memory: dict[str, int]
    lowered: Any

    def call(self) -> Any:
        """Runs it once and waits for the result, which it returns."""
        return jax.block_until_ready(self.launch())

    def in_a_row(self, count: int) -> Callable[[], Any]:
        """A function that runs it a number of times and waits once."""
        return timing.in_a_row(self.launch, jax.block_until_ready, count)


def _compile(lowered: Any, start: float) -> tuple[Any, float, dict[str, int], Any]:
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    memory = {}
    if analysis is not None:
        memory = {
            "temporary": analysis.temp_size_in_bytes,
            "arguments": analysis.argument_size_in_bytes,
            "peak": analysis.peak_memory_in_bytes,
        }
    return compiled, seconds, memory, lowered


def forward(model: UNet, params: Any, x: np.ndarray, step: np.ndarray) -> Program:
    """A prediction without dropout.

    Args:
      model: the noise predictor.
      params: its parameters.
      x: noisy images (batch, height, width, channels).
      step: integer steps (batch,).
    """
    arguments = jax.tree.map(jnp.asarray, (params, x, step))
    apply = jax.jit(lambda params, x, step: model.apply({"params": params}, x, step))
    start = time.perf_counter()
    compiled, *rest = _compile(apply.lower(*arguments), start)
    return Program(lambda: compiled(*arguments), *rest)


def drawn_params(model: UNet) -> Any:
    """Parameters as large as fresh ones, drawn on the host.

    Compiling a UNet's own draws takes minutes on a GPU, and to time it any will do.
    """
    side = 2 ** (len(model.multiples) - 1)
    image = jax.ShapeDtypeStruct((1, side, side, model.channels), jnp.float32)
    step = jax.ShapeDtypeStruct((1,), jnp.int32)
    return drawn_like(jax.eval_shape(model.init, jax.random.key(0), image, step)["params"])


def drawn_like(shapes: Any) -> Any:
    """Parameters of these shapes, float32, drawn on the host."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        values = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return values / np.float32(np.sqrt(3 * np.prod(leaf.shape[:-1])))
        return np.float32(path[-1].key == "scale") + np.float32(0.1) * values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def fresh_params(model: UNet) -> Callable[[], Any]:
    """Makes parameters as a run starts from."""

    def fresh() -> Any:
        # The parameters' shapes do not depend on the images' size.
        side = 2 ** (len(model.multiples) - 1)
        shape = (side, side, model.channels)
        return init_state(model, optax.identity(), jax.random.key(0), shape).params

    make = jax.jit(fresh, compiler_options=backend.RUN_ONCE)

    def params() -> Any:
        with backend.random_kernels():
            return make()

    return params


def train_step(
    model: UNet,
    params: Callable[[], Any],
    images: np.ndarray,
    config: TrainingConfig,
    updates: int = 1,
) -> Program:
    """One whole update as a run makes it, compiled while the state is made, which is donated.

    Counted: images to floats, noise, steps and dropout masks drawn, diffusion, forward and backward
    pass, clipping, Adam, moving average of the parameters, metrics (left on the device).

    Args:
      model: the noise predictor.
      params: makes its parameters to start from.
      images: uint8 (batch, height, width, channels).
      config: training configuration.
      updates: that a call makes (`steps_per_dispatch`), all of these images.
    """
    optimizer = make_optimizer(config)
    fresh = partial(state_of, optimizer=optimizer, key=jax.random.key(0))
    step = make_parallel_train_step(
        model, linear_schedule(), optimizer, jnp.asarray(MEAN[: model.channels]), config
    )
    like = jax.eval_shape(fresh, jax.eval_shape(params))
    batch = next(device_batches(images, 0, 0, len(images), updates=[updates]))
    start = time.perf_counter()
    lowered = step.lower(*argument_shapes(like, batch.shape))
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(_compile, lowered, start)
        state = jax.jit(fresh, compiler_options=backend.RUN_ONCE)(params())
        state = jax.device_put(state, replicated())
    compiled, *rest = compiling.result()

    def launch() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return Program(launch, *rest)


def sampling(model: UNet, params: Any, x: np.ndarray, num_steps: int) -> Program:
    """The first steps of ancestral sampling from pure noise, in the one compiled loop.

    Args:
      model: the noise predictor.
      params: its parameters.
      x: pure noise (batch, height, width, channels).
      num_steps: steps that are run, out of 1000.
    """
    sampler = AncestralSampler(linear_schedule())
    denoiser = TrainedDenoiser(model.cast(params), model)
    keys = jax.random.split(jax.random.key(0), len(x))
    loop = jax.jit(partial(sampling_loop, start=1000, stop=1000 - num_steps))
    arguments = (sampler, denoiser, jnp.asarray(x), keys)
    start = time.perf_counter()
    compiled, *rest = _compile(loop.lower(*arguments), start)
    return Program(lambda: compiled(*arguments), *rest)


def pixels(batch: int, size: int, channels: int = 3) -> np.ndarray:
    """Random uint8 images (batch, size, size, channels)."""
    shape = (batch, size, size, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
