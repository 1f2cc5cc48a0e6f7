"""Times JAX against PyTorch: python -m experiments.tools.benchmark [--quick] [--out PATH.json].

The paper's model on images of 32 x 32 and 64 x 64: forward pass, whole train step, ancestral
sampling, data pipeline, time to the first step and memory. JAX and the reference (`torch_ref`)
take turns in one process, call by call, on equal threads; the ratio of each pair of calls is formed
and the median of the ratios counts, with a distribution-free interval. The two are compared first:
models that disagree are not timed.

On a GPU a call is 20 updates (or forward passes, or samplings) that are waited for once.

Before each call both rest for a moment: torch's workers spin after a call (5 to 7 ms of processor
time on two cores; JAX's do not), on cores that the other then wants. Neither loses by the rest.

Prints Markdown tables, writes PATH.json and a figure PATH.png, and exits with status 1 where a
bound is broken. The full run also times `torch.compile` where there is a compiler.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jaxlib

from diffusion_jax.errors import UserError
from diffusion_jax.plots.benchmark import draw_ratios
from diffusion_jax.plots.style import save
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_json
from experiments.command import exit_if_broken, parse, reports_errors
from experiments.tools.speed import agreement, data_pipeline, fresh_start, rows, timing
from experiments.tools.speed.effort import FULL, QUICK, SIZES, TOGETHER, Effort
from experiments.tools.speed.notes import note, stopwatch
from experiments.tools.speed.programs import Program, pixels
from experiments.tools.speed.ratios import BOUNDS, against_quickest_adam, bounded, broken_bounds
from experiments.tools.speed.sides import Sides, make_sides, on_gpu
from experiments.tools.speed.tables import tables
from experiments.tools.speed.throughput import throughput

# Images that the data pipeline draws batches from.
NUM_IMAGES = 10_000


@dataclass(frozen=True)
class Options:
    """Times JAX against PyTorch on the paper's model."""

    out: Path = Path("runs/benchmark.json")
    """The results; the figure goes beside it, named .png."""
    quick: bool = False
    """32 px alone, fewer pairs, gradients of a smaller model, no torch.compile, no fresh starts."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where both run; auto: where JAX does."""
    batch_size: int | None = None
    """Images per batch; by default 8 on a CPU, 64 on a GPU."""
    peak_tflops: float | None = None
    """The GPU's peak in bfloat16, dense, for the utilisation; by default from its name. For float32
    half of it counts, the peak in TF32."""


def measure_case(
    report: dict[str, Any],
    sides: Sides,
    effort: Effort,
    made: Mapping[str, Program],
    case: rows.Case,
    peak_tflops: float | None,
    say: Callable[[str], None],
) -> None:
    """Measures the programs of one size and type, and adds to the report; outputs come first.

    Raises:
      UserError: the outputs of the two models disagree.
    """
    (size, bfloat16), suffix, reference = case, rows.suffix(*case), sides.reference
    if reference is not None:
        name, forward = f"forward_{suffix}", reference.forward(*sides.inputs(size))
        errors = agreement.outputs(
            name, made["forward"], reference.call(forward, reference.setting(bfloat16=bfloat16))(1)
        )
        report.setdefault("agreement", {})[name] = errors
    rows.measure(report, sides, effort, made, case, say)
    name, update = f"train_{suffix}", made["train"]
    seconds = report["seconds"][name]["JAX"]
    if case == (SIZES[0], False):
        images, waits = pixels(NUM_IMAGES, size, sides.model.channels), effort.pairs["train_32"]
        found = data_pipeline.measure(images, sides.batch, update, waits, seconds)
        report["data_pipeline"] = found
    if reference is not None:
        if "optimizer_seconds" not in report:
            report["optimizer_seconds"] = reference.optimizer_seconds()
        row = report["ratios"][name]
        row["against_quickest_adam"] = against_quickest_adam(row, report["optimizer_seconds"])
    if on_gpu():
        found = throughput(sides.batch, update, seconds, bfloat16, peak_tflops)
        report.setdefault("throughput", {})[name] = found


def measure(sides: Sides, effort: Effort, peak_tflops: float | None = None) -> dict[str, Any]:
    """Everything that is measured, as JSON; see `tables`.

    Args:
      sides: the two models.
      effort: how much is measured.
      peak_tflops: the GPU's, see `throughput`.

    Raises:
      UserError: the two models disagree.
    """
    report: dict[str, Any] = {"ratios": {}, "seconds": {}, "compile_seconds": {}}
    say = stopwatch()
    if sides.reference is not None:
        for size, fields in effort.compared.items():
            say(f"Comparing gradients at {size} px")
            compared = {**sides.fields, **fields}
            errors = agreement.gradients(size, sides.model.channels, compared)
            report.setdefault("agreement", {})[f"{size} px"] = errors
    types: tuple[bool, ...] = (False,)
    if on_gpu() and backend.has_bfloat16():
        types = (False, True)
    elif on_gpu():
        note("this GPU has no bfloat16, so float32 alone is measured")
    cases = [(size, bfloat16) for bfloat16 in types for size in effort.sizes]
    if effort.full:  # leaves the train step compiled
        say("Measuring the start of a fresh process")
        found = fresh_start.measure(sides.batch, SIZES[0], sides.reference is not None)
        if found is not None:
            report["start"] = found
    say("Compiling")
    made = rows.compile_programs(sides, effort, cases)
    for case in cases:  # a case's memory goes when it is done
        measure_case(report, sides, effort, made.pop(case), case, peak_tflops, say)
    return report


def _choose_device(device: str) -> jax.Device:
    """Configures JAX for a device, and gives the only one that there is.

    Raises:
      UserError: there is none, or more than one.
    """
    # JAX would take three quarters of a GPU's memory, which the reference needs too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    backend.configure()
    for name, value in fresh_start.XLA_CACHES_OFF.items():
        jax.config.update(name.lower(), value)
    if device != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[device])
    backend.keep_freed_memory()
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise UserError(
            f"JAX finds no {device} here ({str(error).splitlines()[0]}); leave --device out"
        ) from error
    if len(devices) > 1:
        raise UserError(
            f"JAX sees {len(devices)} devices, the reference uses one: unset JAX_NUM_CPU_DEVICES, "
            f"or set CUDA_VISIBLE_DEVICES=0"
        )
    return devices[0]


def _write(out: Path, report: Mapping[str, Any]) -> list[Path]:
    """Writes the report, and a figure where there are ratios."""
    write_json(out, report)
    if not report["ratios"]:
        return [out]
    figure = out.with_suffix(".png")
    title = f"{report['device']}, {report['threads']} threads, batch {report['batch']}"
    save(draw_ratios(report["ratios"], BOUNDS, title), figure)
    return [out, figure]


@reports_errors
def main() -> None:
    """Measures, prints, writes, and exits with status 1 where a bound is broken."""
    options = parse(Options, "tools.benchmark", __doc__)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"batch_size = {options.batch_size} must be at least 1")
    device = _choose_device(options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    started, threads = time.perf_counter(), backend.cores()
    batch = options.batch_size or (64 if on_gpu() else 8)
    load = timing.warn_if_busy(threads)
    effort, sides = QUICK if options.quick else FULL, make_sides(batch, threads)
    if on_gpu():
        effort = replace(effort, together=TOGETHER)
    report = measure(sides, effort, options.peak_tflops) | {
        "device": device.device_kind,
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "load": load,
        "batch": batch,
        "quick": options.quick,
        "pause": effort.pause,
        "together": effort.together,
        "bounds": BOUNDS,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "torch": sides.reference.version if sides.reference is not None else None,
        },
    }
    report["seconds_in_all"] = time.perf_counter() - started
    written = _write(options.out, report)
    print("\n" + tables(report, BOUNDS) + "\n")
    names = " and ".join(str(path) for path in written)
    print(f"Wrote {names} in {report['seconds_in_all']:.0f} s")
    exit_if_broken(broken_bounds(bounded(report)))


if __name__ == "__main__":
    main()
