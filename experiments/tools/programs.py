"""What `benchmark` times on JAX's side, and the start of a fresh process of either."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil

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

MEAN = np.full(3, 0.5, np.float32)
# XLA's own caches for GPUs put the folder's name into each program's key: a program could then not
# be taken from another folder.
XLA_CACHES_OFF = {"JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}
# What a first start measures: some updates, so that every buffer has been allocated.
FIRST_UPDATES = 3


@dataclass(frozen=True)
class Program:
    """A compiled program with its arguments.

    Attributes:
      call: runs it once and waits for the result, which it returns.
      compile_seconds: what tracing and compiling took, or reading it from the cache, perhaps beside
        other programs.
      memory: bytes of `temporary` buffers and of `arguments` (weights, optimizer state, images),
        by the compiler's own analysis; empty where the device has none.
      lowered: the program before compilation.
    """

    call: Callable[[], Any]
    compile_seconds: float
    memory: dict[str, int]
    lowered: Any


def _compile(lowered: Any, start: float) -> tuple[Any, float, dict[str, int], Any]:
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    memory = {}
    if analysis is not None:
        memory = {
            "temporary": analysis.temp_size_in_bytes,
            "arguments": analysis.argument_size_in_bytes,
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
    return Program(lambda: jax.block_until_ready(compiled(*arguments)), *rest)


def fresh_params(model: UNet) -> Callable[[], Any]:
    """Makes parameters as a run starts from."""

    def fresh() -> Any:
        # The parameters' shapes do not depend on the images' size.
        side = 2 ** (len(model.multiples) - 1)
        shape = (side, side, model.channels)
        return init_state(model, optax.identity(), jax.random.key(0), shape).params

    return jax.jit(fresh, compiler_options=backend.RUN_ONCE)


def train_step(
    model: UNet, params: Callable[[], Any], images: np.ndarray, config: TrainingConfig
) -> Program:
    """One whole update as a run makes it, compiled while the state is made, which is donated.

    Counted: images to floats, noise, steps and dropout masks drawn, diffusion, forward and backward
    pass, clipping, Adam, moving average of the parameters, metrics (left on the device).

    Args:
      model: the noise predictor.
      params: makes its parameters to start from.
      images: uint8 (batch, height, width, channels).
      config: training configuration.
    """
    optimizer = make_optimizer(config)
    fresh = partial(state_of, optimizer=optimizer, key=jax.random.key(0))
    step = make_parallel_train_step(
        model, linear_schedule(), optimizer, jnp.asarray(MEAN[: model.channels]), config
    )
    like = jax.eval_shape(fresh, jax.eval_shape(params))
    batch = next(device_batches(images, 0, 0, len(images)))
    start = time.perf_counter()
    lowered = step.lower(*argument_shapes(like, batch.shape))
    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(_compile, lowered, start)
        state = jax.jit(fresh, compiler_options=backend.RUN_ONCE)(params())
        state = jax.device_put(state, replicated())
    compiled, *rest = compiling.result()

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return jax.block_until_ready((state, metrics))[1]

    return Program(call, *rest)


def sampling(model: UNet, params: Any, x: np.ndarray, num_steps: int) -> Program:
    """The first steps of ancestral sampling from pure noise, in the one compiled loop.

    Args:
      model: the noise predictor.
      params: its parameters.
      x: pure noise (batch, height, width, channels).
      num_steps: steps that are run, out of 1000.
    """
    sampler = AncestralSampler(linear_schedule())
    denoiser = TrainedDenoiser(jax.tree.map(jnp.asarray, params), model)
    keys = jax.random.split(jax.random.key(0), len(x))
    loop = jax.jit(partial(sampling_loop, start=1000, stop=1000 - num_steps))
    arguments = (sampler, denoiser, jnp.asarray(x), keys)
    start = time.perf_counter()
    compiled, *rest = _compile(loop.lower(*arguments), start)
    return Program(lambda: jax.block_until_ready(compiled(*arguments)), *rest)


def pixels(batch: int, size: int, channels: int = 3) -> np.ndarray:
    """Random uint8 images (batch, size, size, channels)."""
    shape = (batch, size, size, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class PeakMemory:
    """Largest growth of this process's resident memory within a with block, in bytes."""

    def __enter__(self) -> "PeakMemory":
        process, self._stop = psutil.Process(), threading.Event()
        before = process.memory_info().rss
        self.growth = 0

        def watch() -> None:
            while not self._stop.wait(0.005):
                self.growth = max(self.growth, process.memory_info().rss - before)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _report(make_call: Callable[[], Callable[[], Any]]) -> None:
    """Makes some updates and prints when the first ended and the memory that they took."""
    with PeakMemory() as peak:
        call = make_call()
        call()
        first = time.time()
        for _ in range(FIRST_UPDATES - 1):
            call()
    print(json.dumps({"time": first, "peak": peak.growth}))


def report_jax(batch: int, size: int) -> None:
    """What the fresh process of `fresh_start` runs for JAX."""
    backend.configure()
    backend.keep_freed_memory()
    model, images, config = UNet(), pixels(batch, size), TrainingConfig(batch_size=batch)
    _report(lambda: train_step(model, fresh_params(model), images, config).call)


def report_torch(batch: int, size: int) -> None:
    """The same for the reference, as it is by default."""
    import torch

    from experiments.tools import torch_speed
    from torch_ref.unet import UNet as TorchUNet

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    images = torch.from_numpy(pixels(batch, size)).permute(0, 3, 1, 2)
    mean = torch.from_numpy(MEAN)
    _report(
        lambda: torch_speed.train_step(
            torch_speed.Setting(), TorchUNet(), images, mean, 1.0, 0.9999
        )
    )


def fresh_start(function: str, batch: int, size: int, cache: Path | None = None) -> dict[str, Any]:
    """Seconds from the start of a Python process to its first update, and its memory.

    Args:
      function: "report_jax" or "report_torch".
      batch: images an update.
      size: pixels a side.
      cache: folder in which compiled programs are kept; by default the user's.

    Returns:
      `seconds`, from before the interpreter starts, imports and compilation included; `peak`,
      bytes by which resident memory grew from after the imports to the highest point.

    Raises:
      RuntimeError: the process failed; its last line says why.
    """
    program = f"from experiments.tools.programs import {function}; {function}({batch}, {size})"
    environment = dict(os.environ)
    if cache is not None:
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        environment["XDG_CACHE_HOME"] = str(cache)
        environment |= XLA_CACHES_OFF
    if function == "report_torch":
        environment["JAX_PLATFORMS"] = "cpu"
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    result = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": result["time"] - start, "peak": result["peak"]}


def first_and_second_start(batch: int, size: int) -> dict[str, dict[str, Any]]:
    """`fresh_start` of JAX with an empty cache of compiled programs, then with what it left.

    The second is made three times, and the one that took the middle time is returned. What the
    first compiled goes to the user's cache too, for a process with `XLA_CACHES_OFF`.
    """
    with tempfile.TemporaryDirectory(prefix="diffusion-jax-benchmark-") as folder:
        first, *later = (fresh_start("report_jax", batch, size, Path(folder)) for _ in range(4))
        made, kept = backend.cache_folder(folder), jax.config.values["jax_compilation_cache_dir"]
        if kept and Path(kept).is_dir() and made.is_dir():
            shutil.copytree(made, kept, dirs_exist_ok=True)
    return {"first": first, "second": sorted(later, key=lambda start: start["seconds"])[1]}


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
