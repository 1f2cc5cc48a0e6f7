"""The figure of the benchmark: ratios of times, with their intervals and bounds."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from diffusion_jax.plots import style


def draw_ratios(
    ratios: Mapping[str, Mapping[str, Any]], bounds: Mapping[str, float], title: str
) -> Figure:
    """Draws each ratio of JAX's time to the reference's as a point with its interval.

    Args:
      ratios: for each row, `median` and `interval`.
      bounds: for some rows, the largest ratio allowed.
      title: what was measured on what.
    """
    names = list(ratios)
    figure, axes = style.new(height=1.4 + 0.4 * len(names))
    for place, name in enumerate(names):
        middle, (low, high) = ratios[name]["median"], ratios[name]["interval"]
        axes.plot([low, high], [place, place], color="C0", linewidth=2, solid_capstyle="butt")
        axes.plot(
            middle, place, "o", color="C0", label="median and its interval" if place == 0 else None
        )
        if name in bounds:
            label = "bound" if name == next(iter(bounds)) else None
            ends = [place - 0.3, place + 0.3]
            axes.plot([bounds[name]] * 2, ends, color="C3", linewidth=1.5, label=label)
    axes.axvline(1, color="0.6", linestyle=":", linewidth=1)
    axes.set_yticks(
        range(len(names)), [f"{a}, {b} px" for a, b in (n.split("_")[:2] for n in names)]
    )
    axes.invert_yaxis()
    # A disturbed machine may widen an interval without limit; the medians are what is to be seen.
    medians = [ratio["median"] for ratio in ratios.values()]
    left, right = min(0.7, 0.9 * min(medians)), max(1.3, 1.1 * max(medians))
    axes.set_xlim(left, right)
    for place, name in enumerate(names):
        low, high = ratios[name]["interval"]
        for goes_on, edge, marker in ((low < left, left, "<"), (high > right, right, ">")):
            if goes_on:
                axes.plot(edge, place, marker, color="C0", clip_on=False)
    axes.set(xlabel="JAX's time / PyTorch's time (below 1: JAX is faster)", title=title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return style.trimmed(figure)
