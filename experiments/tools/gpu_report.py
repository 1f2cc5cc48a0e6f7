"""Compiles what trains and samples for a GPU that need not be there.

python -m experiments.tools.gpu_report

The programs are the train step, of one update and of several in a dispatch, the sampler, and the
initial weights. What is read from each: what it starts on the GPU and the bytes that moves
(`gpu/launches.py` has the rules), what breaks CUDA's graphs, the memory at every batch size, and
whether it is what it ought to be: library calls, layouts, precision of sums, collectives, donated
memory. The bounds are in `gpu/bounds.py`. It takes about a minute per program, and needs the extra
`gpu-report`, with the compiler of CUDA 12 or 13: jax-cuda12-plugin, jax-cuda12-pjrt,
nvidia-cuda-nvcc-cu12, or jax-cuda13-plugin, jax-cuda13-pjrt, nvidia-cuda-nvcc, nvidia-nvvm. The
default is the paper's model, in bfloat16.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from rich.console import Console

from diffusion_jax.config import ModelConfig, TrainingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import HEADS
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from diffusion_jax.schedule import linear_schedule
from experiments.command import exit_if_broken, parse, reports_errors
from experiments.tools.gpu.bounds import GIB, broken_bounds
from experiments.tools.gpu.compiled import compile_program, describe
from experiments.tools.gpu.flops import model_flops
from experiments.tools.gpu.program import (
    lower_sampler,
    lower_step,
    lower_weights,
    parameter_shapes,
)
from experiments.tools.gpu.table import SHARE, table
from experiments.tools.gpu.target import (
    Target,
    as_if_on,
    cuda_version,
    gpu_mesh,
    load_target,
)

Name = Literal["train", "scan", "sample", "weights"]
LIMITS = (
    "No autotuning: a real GPU may choose other kernels, and cuDNN's workspaces are not counted.",
    "No out-of-memory error: short of the target's memory, XLA rematerializes and only warns.",
    "Not counted: the CUDA context, the libraries' and NCCL's own buffers, fragmentation, and "
    "batches on their way to the device.",
    "Bytes are those of each launch by itself: what a cache keeps from one to the next counts.",
    "Nothing is run: no time, no speed, and no proof that the results are right.",
)


@dataclass(frozen=True)
class Options:
    """What to compile, and for what."""

    target: str = "h100"
    """h100, a100, or a file with another GPU's target specification (OpenXLA's text format)."""
    batch_sizes: tuple[int, ...] = (64,)
    """Images per update, or sampled at a time, over all devices; one program each."""
    devices: tuple[int, ...] = (1, 8)
    """Numbers of GPUs; one program each."""
    programs: tuple[Name, ...] = get_args(Name)
    """The train step, that of several updates in a dispatch (scan), the sampler, the initial
    weights; the last three for the first batch size and number of GPUs alone."""
    updates: int = 10
    """Updates per dispatch of the scan."""
    memory_gib: float | None = None
    """Memory of the GPU in GiB, which says whether a batch fits; by default the target's."""
    image_size: int = 64
    """Pixels per side."""
    channels: int = 3
    """Channels of an image."""
    accumulation: int = 1
    """Parts into which a device's batch is split to save memory."""
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig(dtype="bfloat16"))
    out: Path = Path("runs/gpu_report.json")
    """The file for the numbers."""


def attentions(config: ModelConfig, target: Target) -> int:
    """Attention layers that cuDNN should fuse: at the levels named, and in the bottleneck.

    It does on GPUs from Ampere on, for heads of a multiple of 8 channels, up to 128.
    """
    levels = [(level, 2 * config.num_res_blocks + 1) for level in config.attention_levels]
    levels.append((len(config.multiples), 1))
    heads = [
        (config.base_channels * config.multiples[level - 1] // HEADS, number)
        for level, number in levels
    ]
    fused = sum(number for size, number in heads if size % 8 == 0 and size <= 128)
    return fused if target.capability >= 8.0 else 0


def _is_papers(options: Options, batch: int, devices: int) -> bool:
    """Whether it is the paper's model, in whichever type, at batch 64 on one H100."""
    default = Options()
    model = dataclasses.replace(options.model, remat=default.model.remat, dtype=default.model.dtype)
    same = ("target", "image_size", "channels", "accumulation")
    return (batch, devices, model) == (64, 1, default.model) and all(
        getattr(options, name) == getattr(default, name) for name in same
    )


def report_row(
    options: Options, target: Target, batch: int, devices: int, program: Name = "train"
) -> dict[str, Any]:
    """Compiles one program and describes it."""
    config = TrainingConfig(batch_size=batch, accumulation=options.accumulation)
    size, mesh, rounds, flops = options.image_size, gpu_mesh(target, devices), 1, 0.0
    with as_if_on(target):
        model = options.model.build(options.channels)
        if program == "weights":
            lowered = lower_weights(model, config, size, mesh)
        elif program == "sample":
            lowered, rounds = lower_sampler(model, batch, size, mesh), linear_schedule().num_steps
        else:
            updates = options.updates if program == "scan" else 0
            lowered, rounds = lower_step(model, config, size, mesh, updates), updates or 1
            plain = lowered
            if model.remat or config.accumulation > 1:  # computed again, or counted once for all
                once = dataclasses.replace(config, accumulation=1)
                plain = lower_step(dataclasses.replace(model, remat=False), once, size, mesh)
            flops = devices * model_flops(plain)
        compiled = compile_program(lowered)
        parameters = parameter_shapes(model, size)
    part = batch // devices // (1 if program == "sample" else config.accumulation)
    return {
        "program": program,
        "batch": batch,
        "devices": devices,
        "dtype": str(jnp.dtype(model.dtype)),
        "remat": options.model.remat,
        "paper": _is_papers(options, batch, devices),
        "attentions": attentions(options.model, target),
        "model_flops": flops,
        **describe(compiled, parameters, (part, size, len(options.model.multiples)), rounds),
    }


def programs(options: Options) -> Iterator[tuple[Name, int, int]]:
    """What is to be compiled: name, batch size and number of GPUs of each."""
    for name in options.programs:
        if name == "train":
            for batch in options.batch_sizes:
                yield from ((name, batch, devices) for devices in options.devices)
        else:
            yield name, options.batch_sizes[0], options.devices[0]


def check(options: Options) -> None:
    """Raises a UserError naming what cannot be compiled."""
    for batch in options.batch_sizes:
        for devices in options.devices:
            parts = devices * options.accumulation
            if min(batch, devices, options.accumulation) < 1 or batch % parts:
                raise UserError(
                    f"a batch of {batch} can't be shared evenly by {devices} device(s) x "
                    f"{options.accumulation} accumulated part(s)"
                )
    if not (options.batch_sizes and options.devices and options.programs):
        raise UserError("give at least one of --batch-sizes, of --devices and of --programs")
    if options.updates < 1:
        raise UserError(f"updates = {options.updates} must be at least 1")
    if options.memory_gib is not None and not options.memory_gib > 0:
        raise UserError(f"memory_gib = {options.memory_gib} must be positive")
    model = options.model.build(options.channels)
    model.check(options.image_size, options.image_size, options.channels)


@reports_errors
def main() -> None:
    """Compiles, prints, writes, and exits with status 1 where a bound is broken."""
    options = parse(Options, "tools.gpu_report", __doc__)
    # The compiler's own check for a GPU would fail where there is none.
    jax.config.update("jax_platforms", "cpu")
    backend.configure()
    check(options)
    target = load_target(options.target)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    console, rows, broken = Console(), [], []
    for name, batch, devices in programs(options):
        with console.status(f"Compiling {name}, batch {batch}, for {devices} GPU(s): a minute"):
            rows.append(report_row(options, target, batch, devices, name))
        broken += broken_bounds(rows[-1])
    report = {
        "target": target.name,
        "jax": jax.__version__,
        "cuda": cuda_version(),
        "options": options,
        "programs": rows,
        "not_known": LIMITS,
        "broken_bounds": broken,
    }
    write_json(options.out, report)
    title = f"Compiled for {target.name}, CUDA {cuda_version()}, {options.model.dtype}"
    title += ", rematerialized" if options.model.remat else ""
    columns = table(title, options.memory_gib or target.memory / GIB, rows)
    Console(width=max(console.width, 40 + 21 * len(rows))).print(columns)
    share = f"a GPU's memory counts for {100 * SHARE:.0f} %, what JAX takes of it by default"
    console.print(f"fits: {share} (XLA_PYTHON_CLIENT_MEM_FRACTION)")
    console.print("What such a compilation cannot know:")
    for limit in LIMITS:
        console.print(f"- {limit}")
    print(f"Wrote {options.out}")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
