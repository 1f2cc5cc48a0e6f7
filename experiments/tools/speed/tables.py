"""The tables that `experiments.tools.benchmark` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

MIB = 2**20
LABELS = {"forward": "forward pass", "train": "train step", "sampling": "sampling"}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns as wide as their longest entry."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _timed(report: Mapping[str, Any], bounds: Mapping[str, float]) -> list[list[str]]:
    """What both sides took, and their ratio, row by row."""
    cells = []
    for name, seconds in report["seconds"].items():
        result, bound = report["ratios"].get(name), bounds.get(name)
        what, size = name.split("_", 1)
        torch_cells = ["-", "-", "-"]
        if result is not None:
            low, high = result["interval"]
            interval = f"{low:.3f} to {high:.3f}, {100 * result['coverage']:.0f} %"
            torch_cells = [
                f"{seconds[result['reference']]:.3g} s ({result['reference']})",
                f"{result['median']:.3f} ({interval})",
                "-" if bound is None else f"{bound:g}",
            ]
        size = size.replace("_", " px, ") if "_" in size else f"{size} px"
        cells.append([f"{LABELS[what]}, {size}", f"{seconds['JAX']:.3g} s", *torch_cells])
    return cells


def _start(start: Mapping[str, Any]) -> list[list[str]]:
    """Time and memory of the start of a process."""
    cells = []
    for name, seconds in start["seconds"].items():
        label = name if name == "torch eager" else f"JAX, {name} start"
        growth = start["memory_growth"][name] / MIB
        cells.append([f"start to first update, {label}", f"{seconds:.1f} s"])
        cells.append([f"peak growth of memory, {label}", f"{growth:.0f} MiB"])
    return [*cells, ["second start / first start", f"{start['second_to_first']:.2f}"]]


def _others(report: Mapping[str, Any]) -> list[list[str]]:
    """Everything that is not a ratio of times."""
    cells = []
    for name, result in report["ratios"].items():
        if "against_quickest_adam" in result:
            extra = result["against_quickest_adam"]["median"]
            cells.append(
                [f"ratio, {name}, if PyTorch's Adam had its quickest form", f"{extra:.3f}"]
            )
    for name, result in report.items():
        if name.startswith("sampling"):
            size = name.split("_")[1]
            for side, whole in result["seconds_of_1000_steps"].items():
                label = f"1000 sampling steps, {size} px, {side}, extrapolated"
                cells.append([label, f"{whole:.4g} s from {result['steps_timed']} steps"])
    if "data_pipeline" in report:
        pipeline = report["data_pipeline"]
        cells += [
            ["data pipeline, share of a train step", f"{100 * pipeline['share_alone']:.2g} %"],
            ["the same, waited for", f"{100 * pipeline['share_beside_the_step']:.2g} %"],
        ]
    if "start" in report:
        cells += _start(report["start"])
    for name, memory in report.get("compiler_memory", {}).items():
        if memory:
            sizes = ", ".join(f"{k} {v / MIB:.0f} MiB" for k, v in memory.items())
            cells.append([f"{name}, JAX, by the compiler", sizes])
    for name, result in report.get("throughput", {}).items():
        cells.append([f"{name}, JAX", ", ".join(f"{k} {v:.3g}" for k, v in result.items())])
    return cells


def tables(report: Mapping[str, Any], bounds: Mapping[str, float]) -> str:
    """The benchmark's report as two tables: the ratios, and everything else.

    Args:
      report: see `experiments.tools.benchmark.measure`.
      bounds: for some rows, the largest ratio allowed.
    """
    header = ["what", "JAX", "PyTorch", "ratio (interval, coverage)", "bound"]
    timed, others = _timed(report, bounds), _others(report)
    return "\n\n".join([markdown(header, timed), markdown(["what", "measured"], others)])
