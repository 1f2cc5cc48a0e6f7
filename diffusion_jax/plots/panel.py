"""Panels side by side with a line for each denoiser: what their figures share."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_jax.plots import style
from diffusion_jax.regimes.curves import Estimate

COLORS = {"network": "C3", "exact": "0.1", "gaussian": "C0", "classes": "C9", "cosine": "C1"}
# A shade for each patch.
MAPS = {"local": "YlGn", "equivariant": "RdPu", "circular": "YlOrBr"}
DASHES = {"local": "-", "equivariant": "--", "circular": "-."}


def look(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Colour and dashes of a theory: of those of one family, darker ones for larger patches."""
    family, _, patch = name.partition("_")
    if not patch or family not in MAPS:
        return {"color": COLORS.get(family, "C5"), "linestyle": "-"}
    own = [each for each in names if each.startswith(f"{family}_")]
    depth = 0.35 + 0.6 * own.index(name) / max(1, len(own) - 1)
    return {"color": matplotlib.colormaps[MAPS[family]](depth), "linestyle": DASHES[family]}


def label(name: str) -> str:
    """What a theory is called: `local_5` is local 5, of patches of 5 x 5 pixels."""
    return re.sub(r"_(\d+)$", r" \1", name)


def marks(axes: Axes, marks: Mapping[str, float], named: bool) -> None:
    """Times as upright lines."""
    left, right = axes.get_xlim()
    for i, (name, time) in enumerate(marks.items()):
        if left < time < right:
            text = f"{name} = {time:.3g}" if named else None
            axes.axvline(time, color="0.55", linestyle=(":", "-.", "--")[i % 3], label=text, lw=1)


def band(
    axes: Axes, times: np.ndarray, estimates: Sequence[Estimate], name: str, names: Sequence[str]
) -> None:
    """A theory's line with its 95 % intervals; NaN is left out."""
    own = look(name, names)
    low, high = (np.array([getattr(each, end) for each in estimates]) for end in ("low", "high"))
    axes.fill_between(times, low, high, color=own["color"], alpha=0.15, linewidth=0)
    value = [each.value for each in estimates]
    axes.plot(times, value, marker="o", markersize=3, linewidth=1.2, label=label(name), **own)


def panels(sources: Sequence[str], height: float, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a column for each source, named above: its axes, row by row."""
    columns = len(sources)
    width = max(6.0, 4.2 * columns)
    figure, axes = style.new(rows, columns, width=width, height=height)
    grid = [list(row) for row in np.asarray(axes).reshape(rows, columns)]
    for each, source in zip(grid[0], sources, strict=True):
        each.set_title(source, fontsize=10)
    return figure, grid


def limits(times: np.ndarray) -> tuple[float, float]:
    """Limits of a logarithmic axis with a little room at both ends."""
    return float(times[0]) / 1.1, 1.1 * float(times[-1])


def legend(figure: Figure, axes: Axes) -> Figure:
    """The figure, trimmed, with one panel's legend beneath all."""
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return style.trimmed(figure)
