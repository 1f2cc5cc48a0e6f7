"""Figures of the Gaussian mixture: speciation and collapse, theory against measurement."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diffusion_jax.plots import style

_OURS: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": "none"}
_PUBLISHED: dict[str, Any] = {
    "marker": "s",
    "markersize": 6,
    "markerfacecolor": "none",
    "linestyle": "none",
}


def _dimension_legend(axes: Axes, dimensions: list[str], **place: Any) -> None:
    """A legend of the colours, one a dimension, that stays when a second one is added."""
    handles = [Line2D([], [], color=f"C{i}", label=f"$d$ = {d}") for i, d in enumerate(dimensions)]
    axes.add_artist(axes.legend(handles=handles, frameon=False, **place))


def draw_speciation(results: dict[str, Any]) -> Figure:
    """Draws phi(t) of the clones, against time and against time minus the speciation time.

    Args:
      results: for each dimension (as text), `theory` with `t` and `phi`; `ours` with `t`, `phi` and
        `interval` (T, 2); `published` with `t` and `phi`, or None; and `t_S`.
    """
    figure, (left, right) = style.new(1, 2, width=9, height=4)
    for i, result in enumerate(results.values()):
        color = f"C{i}"
        for axes, shift in ((left, 0.0), (right, result["t_S"])):
            theory, ours, published = result["theory"], result["ours"], result["published"]
            phi, interval = np.array(ours["phi"]), np.array(ours["interval"])
            bars = np.maximum(np.abs(interval - phi[:, None]).T, 0)
            axes.plot(np.array(theory["t"]) - shift, theory["phi"], color=color, linewidth=1)
            axes.errorbar(np.array(ours["t"]) - shift, phi, bars, color=color, **_OURS)
            if published:
                t = np.array(published["t"]) - shift
                axes.plot(t, published["phi"], color=color, **_PUBLISHED)
    left.set(xlabel="branch time $t$", ylabel="probability $\\phi$ of the same class")
    right.set(xlabel="$t - t_S$,   $t_S = \\frac{1}{2} \\log d$", xlim=(-3, 5))
    right.axhline(0.7752, color="0.6", linewidth=0.8, linestyle=":")
    right.text(5, 0.78, "$\\phi(t_S)$ = 0.7752", ha="right", va="bottom", color="0.4")
    _dimension_legend(left, list(results), loc="upper right")
    right.legend(
        handles=[
            Line2D([], [], color="0.3", linewidth=1, label="theory"),
            Line2D([], [], color="0.3", label="ours (95 % intervals)", **_OURS),
            Line2D([], [], color="0.3", label="Biroli et al. (2024)", **_PUBLISHED),
        ],
        frameon=False,
        loc="upper right",
        bbox_to_anchor=(1, 1.02),
    )
    return style.trimmed(figure)


def draw_collapse(results: dict[str, Any]) -> Figure:
    """Draws f^e/alpha(t) with the laws, and below how far each law is from the measurement.

    Args:
      results: for each dimension (as text), lists `t`, `f`, `stderr`, `finite_size`, `one_class`
        and `phi_C_finite_size`; `laws` with lists `t`, `finite_size`, `exact` and `one_class`; and
        `published` with `t` and `f`, or None. All f's are over alpha.
    """
    figure, (top, bottom) = style.new(2, 1, height=7)
    bottom.sharex(top)
    lines: tuple[tuple[str, Any, str], ...] = (
        ("finite_size", "-", "finite-size law"),
        ("exact", "--", "exact $f$ for many dimensions"),
        ("one_class", ":", "$f$ of Biroli et al.: no class information"),
    )
    for i, result in enumerate(results.values()):
        color, f = f"C{i}", np.array(result["f"])
        t, bars = np.array(result["t"]), 2 * np.array(result["stderr"])
        top.errorbar(t, f, bars, color=color, **_OURS)
        for name, line, _ in lines:
            law = np.array(result["laws"][name])
            shown = np.where(law > -0.03, law, np.nan)
            top.plot(result["laws"]["t"], shown, color=color, linestyle=line, linewidth=1)
        bottom.errorbar(t, f - result["finite_size"], bars, color=color, **_OURS)
        # Nearer to the collapse the two differ by the rounding at finite size instead.
        early = np.array(result["phi_C_finite_size"]) < 0.1
        difference = f[early] - np.array(result["one_class"])[early]
        bottom.plot(t[early], difference, color=color, linestyle=":", linewidth=1)
        if published := result["published"]:
            top.plot(published["t"], published["f"], color=color, **_PUBLISHED)
    for bound in (-0.04, 0.04):
        bottom.axhline(bound, color="0.6", linewidth=0.8, linestyle="--")
    bottom.axhline(0, color="0.6", linewidth=0.8)
    top.set(ylabel="excess entropy $f^e/\\alpha$", ylim=(-0.06, 1.04), xlim=(0.3, 8.2))
    bottom.set(xlabel="time $t$", ylabel="measured minus law, over $\\alpha$", ylim=(-0.075, 0.055))
    note: dict[str, Any] = {"color": "0.3", "ha": "right", "fontsize": "small"}
    bottom.text(8.2, 0.041, "points: finite-size law, and its stated bound", va="bottom", **note)
    text = "dotted: $f$ of Biroli et al.,\nwhere $\\phi_C < 0.1$"
    bottom.text(8.2, -0.072, text, va="bottom", **note)
    _dimension_legend(top, list(results), loc="center right", bbox_to_anchor=(1, 0.6))
    top.legend(
        handles=[
            Line2D([], [], color="0.3", label="ours (2 standard errors)", **_OURS),
            Line2D([], [], color="0.3", label="published by Biroli et al. (2024)", **_PUBLISHED),
            *(Line2D([], [], color="0.3", linestyle=s, linewidth=1, label=n) for _, s, n in lines),
        ],
        frameon=False,
        loc="lower right",
    )
    return style.trimmed(figure)
