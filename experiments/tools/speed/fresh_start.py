"""The start of a fresh process: seconds to its first update, and the memory that it takes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import psutil

from diffusion_jax.config import TrainingConfig
from diffusion_jax.nn import kernels
from diffusion_jax.nn.unet import UNet
from diffusion_jax.runtime import backend
from experiments.tools.speed import timing
from experiments.tools.speed.notes import note
from experiments.tools.speed.programs import MEAN, fresh_params, pixels, train_step
from experiments.tools.speed.sides import on_gpu

# XLA's own caches for GPUs put the folder's name into each program's key: a program could then not
# be taken from another folder.
XLA_CACHES_OFF = {"JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}
# What a first start measures: some updates, so that every buffer has been allocated.
FIRST_UPDATES = 3


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
    model, config = UNet(kernels=kernels.best()), TrainingConfig(batch_size=batch)
    images = pixels(batch, size)
    _report(lambda: train_step(model, fresh_params(model), images, config).call)


def report_torch(batch: int, size: int) -> None:
    """The same for the reference, as it is by default, on a GPU where torch has one."""
    import torch

    from experiments.tools.speed import torch_speed
    from torch_ref.unet import UNet as TorchUNet

    torch.set_num_threads(backend.cores())
    setting = torch_speed.Setting("cuda" if torch.cuda.is_available() else "cpu")
    if setting.device == "cuda":
        torch_speed.prepare_gpu()
    images = torch.from_numpy(pixels(batch, size)).permute(0, 3, 1, 2)
    mean = torch.from_numpy(MEAN)

    def make_call() -> Callable[[], Any]:
        update = torch_speed.train_step(setting, TorchUNet(), images, mean, 1.0, 0.9999)
        return timing.in_a_row(update, lambda _: torch_speed.synchronize(setting))

    _report(make_call)


def fresh_start(function: str, batch: int, size: int, cache: Path | None = None) -> dict[str, Any]:
    """Seconds from the start of a Python process to its first update, and its memory.

    Args:
      function: "report_jax" or "report_torch".
      batch: images per update.
      size: pixels per side.
      cache: folder in which compiled programs are kept; by default the user's.

    Returns:
      `seconds`, from before the interpreter starts, imports and compilation included; `peak`,
      bytes by which the host's resident memory grew from after the imports to the highest point.

    Raises:
      RuntimeError: the process failed; its last line says why.
    """
    module = "experiments.tools.speed.fresh_start"
    program = f"from {module} import {function}; {function}({batch}, {size})"
    environment = dict(os.environ)
    if cache is not None:
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        environment["XDG_CACHE_HOME"] = str(cache)
        environment |= XLA_CACHES_OFF
    if function == "report_torch":
        environment["JAX_PLATFORMS"] = "cpu"
        if not on_gpu():
            environment["CUDA_VISIBLE_DEVICES"] = ""
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


def measure(batch: int, size: int, with_torch: bool) -> dict[str, Any] | None:
    """What the benchmark's report says of starts; None where no process can be started.

    Args:
      batch: images per update.
      size: pixels per side.
      with_torch: whether the reference is started too.
    """
    try:
        found = first_and_second_start(batch, size)
        if with_torch:
            found["torch eager"] = fresh_start("report_torch", batch, size)
    except (OSError, RuntimeError) as error:
        note(f"the start of a fresh process could not be measured: {error}")
        return None
    return {
        "size": size,
        "seconds": {name: result["seconds"] for name, result in found.items()},
        "memory_growth": {name: result["peak"] for name, result in found.items()},
        "second_to_first": found["second"]["seconds"] / found["first"]["seconds"],
    }
