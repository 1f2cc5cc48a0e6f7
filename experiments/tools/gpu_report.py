"""Compiles the train step for a GPU that need not be there: python -m experiments.tools.gpu_report.

Reads from the compiled program what it needs of a GPU's memory at every batch size, and whether it
is what it ought to be: library calls, layouts, precision of sums, collectives, donated memory. It
takes about a minute a program, and these wheels (the extra `gpu-report`, or a part of `cuda12`):
jax-cuda12-plugin, jax-cuda12-pjrt, nvidia-cuda-nvcc-cu12. The default is the paper's model,
in bfloat16.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from diffusion_jax.config import ModelConfig, TrainingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from experiments.command import exit_if_broken, reports_errors
from experiments.tools.gpu.flops import model_flops
from experiments.tools.gpu.program import describe, lower_step
from experiments.tools.gpu.table import GIB, SHARE, table
from experiments.tools.gpu.target import Target, cudnn_answers, gpu_mesh, load_target

PROGRAM = "python -m experiments.tools.gpu_report"
LIMITS = (
    "No autotuning: a real GPU may choose other kernels, and cuDNN's workspaces are not counted.",
    "No out-of-memory error: short of the target's memory, XLA rematerializes and only warns.",
    "Not counted: the CUDA context, the libraries' and NCCL's own buffers, fragmentation, and "
    "batches on their way to the device.",
    "Nothing is run: no time, no speed, and no proof that the results are right.",
)
# The paper's model, batch 64, 64 pixels, bfloat16, on an H100: temporary memory in GiB.
TEMPORARY_BOUND = {False: 2.6, True: 1.2}


@dataclass(frozen=True)
class Options:
    """What to compile, and for what."""

    target: str = "h100"
    """h100, a100, or a file with another GPU's target specification (OpenXLA's text format)."""
    batch_sizes: tuple[int, ...] = (64,)
    """Images an update, over all devices; one program each."""
    devices: tuple[int, ...] = (1, 8)
    """Numbers of GPUs; one program each."""
    memory: float | None = None
    """Memory of the GPU in GiB, for whether a batch fits; by default the target's."""
    image_size: int = 64
    """Pixels a side."""
    channels: int = 3
    """Channels of an image."""
    accumulation: int = 1
    """Parts into which a device's batch is split to save memory."""
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig(dtype="bfloat16"))
    out: Path = Path("runs/gpu_report.json")
    """Where the numbers go."""


def attentions(config: ModelConfig) -> int:
    """Attention layers of the model: those of the levels named, and the bottleneck's."""
    per_level = 2 * config.num_res_blocks + 1
    return len(config.attention_levels) * per_level + 1


def broken_bounds(options: Options, row: dict[str, Any]) -> list[str]:
    """What a program ought to have and has not, one line each.

    The bounds on memory are for the paper's model at batch 64 on one H100, the others for all.
    """
    paper = dataclasses.replace(options, model=dataclasses.replace(options.model, remat=False))
    same = ("target", "image_size", "channels", "accumulation", "model")
    is_paper = all(getattr(paper, name) == getattr(Options(), name) for name in same)
    remat, memory = options.model.remat, row["memory"]["temporary"] / GIB
    where = f"{row['devices']} device(s), batch {row['batch']}"
    broken = []
    if is_paper and row["devices"] == 1 and row["batch"] == 64 and memory > TEMPORARY_BOUND[remat]:
        broken.append(f"{memory:.2f} GiB of temporary memory, over {TEMPORARY_BOUND[remat]}")
    if row["fused"]:
        want, found = attentions(options.model), row["fused_attentions"]
        if found["backward"] != want or found["forward"] < want:
            broken.append(f"fused attentions {found}, not {want} forward and backward")
    if row["convolutions_not_nhwc"] or "XLA" in row["convolutions"]:
        broken.append("convolutions that are not cuDNN's on NHWC")
    if row["transposes"]:
        broken.append(f"{len(row['transposes'])} transposes of activations")
    if row["narrow_sums"]:
        broken.append(f"{len(row['narrow_sums'])} sums in less than float32")
    if row["host_calls"]:
        broken.append(f"calls to the host: {row['host_calls']}")
    if row["donated"] != row["state_arrays"]:
        broken.append(f"{row['donated']} of {row['state_arrays']} arrays of the state donated")
    if (
        row["collectives"].keys() - {"all-reduce"}
        or row["collectives"].get("all-reduce", (0,))[0] > 1
    ):
        broken.append(f"more than one all-reduce: {row['collectives']}")
    return [f"{where}: {line}" for line in broken]


def report_row(options: Options, target: Target, batch: int, devices: int) -> dict[str, Any]:
    """Compiles one program and describes it."""
    config = TrainingConfig(batch_size=batch, accumulation=options.accumulation)
    model = options.model.build(options.channels)
    fused = jnp.dtype(model.dtype).itemsize == 2 and target.capability >= 8.0
    model = dataclasses.replace(model, fused_attention=fused)
    mesh = gpu_mesh(target, devices)
    with cudnn_answers(target.cudnn):
        lowered = lower_step(model, config, options.image_size, mesh)
        plain = lowered
        if model.remat or config.accumulation > 1:  # computed again, or in a loop that counts once
            once = dataclasses.replace(config, accumulation=1)
            plain_model = dataclasses.replace(model, remat=False)
            plain = lower_step(plain_model, once, options.image_size, mesh)
    found = describe(lowered, lowered.compile())
    flops = devices * model_flops(plain)
    return {"batch": batch, "devices": devices, "fused": fused, "model_flops": flops, **found}


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
    if not options.batch_sizes or not options.devices:
        raise UserError("give at least one of --batch-sizes and of --devices")
    if options.memory is not None and not options.memory > 0:
        raise UserError(f"memory = {options.memory} must be positive")
    model = options.model.build(options.channels)
    model.check(options.image_size, options.image_size, options.channels)


@reports_errors
def main() -> None:
    """Compiles, prints, writes, and exits with status 1 where a bound is broken."""
    options = tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)(Options),
        description=__doc__,
        prog=PROGRAM,
    )
    # The compiler's own check for a GPU would fail where there is none.
    jax.config.update("jax_platforms", "cpu")
    backend.configure()
    check(options)
    target = load_target(options.target)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    console, rows, broken = Console(), [], []
    for batch in options.batch_sizes:
        for devices in options.devices:
            with console.status(f"Compiling batch {batch} for {devices} GPU(s), about a minute"):
                rows.append(report_row(options, target, batch, devices))
            broken += broken_bounds(options, rows[-1])
    report = {
        "target": target.name,
        "jax": jax.__version__,
        "options": options,
        "programs": rows,
        "not_known": LIMITS,
        "broken_bounds": broken,
    }
    write_json(options.out, report)
    title = f"The train step compiled for {target.name}, {options.model.dtype}"
    title += ", rematerialized" if options.model.remat else ""
    console.print(table(title, options.memory or target.memory / GIB, rows))
    share = f"a GPU's memory counts for {100 * SHARE:.0f} %, what JAX takes of it by default"
    console.print(f"fits: {share} (XLA_PYTHON_CLIENT_MEM_FRACTION)")
    console.print("What such a compilation cannot know:")
    for limit in LIMITS:
        console.print(f"- {limit}")
    print(f"Wrote {options.out}")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
