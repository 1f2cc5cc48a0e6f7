"""The table that `gpu_report` prints."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

GIB = 2**30
# What JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
SHARE = 0.75


def _column(row: dict[str, Any], memory: float, kinds: Iterable[str]) -> dict[str, str]:
    """What the table says of one program, line by line."""
    needed, fused = row["memory"], row["fused_attentions"]
    collectives = [
        f"{n} {name}, {size / 1e6:.0f} MB" for name, (n, size) in row["collectives"].items()
    ]
    return {
        "temporary memory a GPU, GiB": f"{needed['temporary'] / GIB:.2f}",
        "state and images a GPU, GiB": f"{needed['arguments'] / GIB:.2f}",
        "peak memory a GPU, GiB": f"{needed['peak'] / GIB:.2f}",
        f"fits {memory:.3g} GiB": "yes" if needed["peak"] <= SHARE * memory * GIB else "no",
        "model TFLOP an update, all GPUs": f"{row['model_flops'] / 1e12:.2f}",
        **{f"{kind} convolutions": str(row["convolutions"].get(kind, 0)) for kind in kinds},
        "of these not NHWC": str(sum(row["convolutions_not_nhwc"].values())),
        "fused attentions, forward": str(fused["forward"]),
        "fused attentions, backward": str(fused["backward"]),
        "matrix products": ", ".join(f"{n} {t}" for t, n in row["matrix_products"].items()),
        "transposes of activations": str(sum(entry[-1] for entry in row["transposes"])),
        "sums in less than float32": str(sum(entry[-1] for entry in row["narrow_sums"])),
        "collectives": ", ".join(collectives) or "-",
        "calls to the host": str(sum(row["host_calls"].values())),
        "arrays of the state donated": f"{row['donated']} of {row['state_arrays']}",
    }


def table(title: str, memory: float, rows: Sequence[dict[str, Any]]) -> Table:
    """The programs, side by side.

    Args:
      title: what was compiled for what.
      memory: of a GPU, in GiB.
      rows: one a program, from `gpu_report.report_row`.
    """
    result = Table("", title=title)
    for row in rows:
        result.add_column(f"batch {row['batch']}, {row['devices']} GPU(s)", justify="right")
    kinds = sorted({kind for row in rows for kind in row["convolutions"]})
    columns = [_column(row, memory, kinds) for row in rows]
    for label in columns[0]:
        result.add_row(label, *(column[label] for column in columns))
    return result
