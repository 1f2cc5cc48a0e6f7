"""What all figures share: drawn without a display, two spines, one resolution."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffusion_jax.runtime.files import writing


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG and frees it; the upper and right spines go.

    Raises:
      UserError: it cannot be written.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    with writing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)


def new(rows: int = 1, columns: int = 1, width: float = 6, height: float = 4) -> tuple[Figure, Any]:
    """A figure of the given size in inches and its axes (an array where there are several)."""
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained")


def blank(width: float, height: float) -> Figure:
    """A figure without axes, for grids of unequal parts."""
    return plt.figure(figsize=(width, height), layout="constrained")
