"""The table that `gpu_report` prints."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Column, Table

from experiments.tools.gpu.bounds import GIB

# What JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
SHARE = 0.75


def _column(row: dict[str, Any], memory: float, kinds: Iterable[str]) -> dict[str, str]:
    """What the table says of one program, line by line."""
    needed, fused = row["memory"], row["fused_attentions"]
    collectives = [
        f"{n} {name}\n{size / 1e6:.0f} MB" for name, (n, size) in row["collectives"].items()
    ]
    wide, wide_bytes = row["float32_activations"]
    outside = "\n".join(f"{n} {kind}" for kind, n in row["outside_graphs"].items())
    training, flops = row["program"] in ("train", "scan"), row["model_flops"]
    state = f"{row['donated']} of {row['arguments'] - 1}" if training else "-"
    return {
        "launches": f"{row['launches']:.0f}",
        "moved, GB": f"{row['traffic'] / 1e9:.1f}",
        "launches writing float32 features": f"{wide:.0f} ({wide_bytes / 1e9:.1f} GB)",
        "CUDA graphs": str(row["graphs"]),
        "launched outside of them": outside or "-",
        "temporary memory per GPU, GiB": f"{needed['temporary'] / GIB:.2f}",
        "arguments per GPU, GiB": f"{needed['arguments'] / GIB:.2f}",
        "peak memory per GPU, GiB": f"{needed['peak'] / GIB:.2f}",
        f"fits {memory:.3g} GiB": "yes" if needed["peak"] <= SHARE * memory * GIB else "no",
        "model TFLOP per update, all GPUs": f"{flops / 1e12:.2f}" if flops else "-",
        **{f"{kind} convolutions": str(row["convolutions"].get(kind, 0)) for kind in kinds},
        "of these not NHWC": str(sum(row["convolutions_not_nhwc"].values())),
        "fused attentions, forward": str(fused["forward"]),
        "fused attentions, backward": str(fused["backward"]),
        "matrix products": "\n".join(f"{n} {t}" for t, n in row["matrix_products"].items()) or "-",
        "transposes of activations": str(sum(entry[-1] for entry in row["transposes"])),
        "sums in less than float32": str(sum(entry[-1] for entry in row["narrow_sums"])),
        "collectives": "\n".join(collectives) or "-",
        "calls to the host": str(sum(row["host_calls"].values())),
        "arrays of the state donated": state,
        "seconds to compile": f"{row['compile_seconds']:.0f}",
        "the same, of processors": f"{row['compile_processor_seconds']:.0f}",
    }


def table(title: str, memory: float, rows: Sequence[dict[str, Any]]) -> Table:
    """The programs, side by side.

    Args:
      title: what was compiled for what.
      memory: of a GPU, in GiB.
      rows: one per program, from `gpu_report.report_row`.
    """
    result = Table(Column("", no_wrap=True), title=title)
    names = {
        "train": "an update",
        "scan": "of {rounds} updates",
        "sample": "a call, sampling",
        "weights": "initial weights",
    }
    for row in rows:
        name = names[row["program"]].format(**row)
        name += f"\nbatch {row['batch']}\n{row['devices']} GPU(s)"
        result.add_column(name, justify="right", no_wrap=True)
    kinds = sorted({kind for row in rows for kind in row["convolutions"]})
    columns = [_column(row, memory, kinds) for row in rows]
    for label in columns[0]:
        result.add_row(label, *(column[label] for column in columns))
    return result
