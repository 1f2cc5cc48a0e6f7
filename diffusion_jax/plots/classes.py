"""Figures of the Bayes criterion: classes of one mean, and the classes of a data set."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.cluster.hierarchy import leaves_list

from diffusion_jax.plots import style
from diffusion_jax.regimes.curves import Estimate


def draw_scaling(scaling: dict[str, Any], curves: dict[str, Any]) -> Figure:
    """Draws t_rs of two classes of one mean against d, and D^2 and V of one d against time.

    Args:
      scaling: `d`, `exact` and `formula` (K,); `sampled_d` and `sampled`, its Estimates of the time
        at which phi = 0.7752.
      curves: `d`, `t_rs`, `t`, `D2` and `V` (T,); `sampled_t`, and `sampled_D2` and `sampled_V`,
        each with its standard error `sampled_D2_stderr`, `sampled_V_stderr`.
    """
    figure, (left, right) = style.new(1, 2, width=9, height=4)
    left.plot(scaling["d"], scaling["formula"], "--", color="0.5", label="formula")
    left.plot(scaling["d"], scaling["exact"], "o", color="C0", markersize=4, label="$D^2 = V$")
    sampled: list[Estimate] = scaling["sampled"]
    bars = np.array([[e.value - e.low, e.high - e.value] for e in sampled]).T
    left.errorbar(
        scaling["sampled_d"],
        [e.value for e in sampled],
        bars,
        fmt="s",
        markerfacecolor="none",
        markersize=8,
        color="C1",
        label="$\\phi$ = 0.7752, sampled",
    )
    left.set_xscale("log", base=4)
    left.xaxis.set_major_locator(FixedLocator(scaling["d"]))
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xticklabels([f"$4^{{{round(np.log2(d) / 2)}}}$" for d in scaling["d"]])
    left.set(xlabel="dimensions $d$", ylabel="speciation time $t_{rs}$")
    left.text(0.97, 0.08, "grows as $\\frac{1}{4}\\,\\log d$", transform=left.transAxes, ha="right")
    left.legend(frameon=False, loc="upper left")
    for name, color, label in (("D2", "C0", "$D^2$"), ("V", "C3", "$V$")):
        right.plot(curves["t"], curves[name], color=color, label=label)
        right.errorbar(
            curves["sampled_t"],
            curves[f"sampled_{name}"],
            1.96 * np.array(curves[f"sampled_{name}_stderr"]),
            fmt="o",
            markersize=3,
            color=color,
        )
    right.axvline(curves["t_rs"], color="0.6", linewidth=0.8, linestyle=":")
    right.text(
        curves["t_rs"],
        1.0,
        f" $t_{{rs}}$ = {curves['t_rs']:.4f}",
        transform=right.get_xaxis_transform(),
        va="top",
        color="0.4",
    )
    right.set(xlabel="time $t$", ylabel="$D^2$ and $V$ (nats$^2$)", yscale="log")
    right.set_title(f"$d$ = {curves['d']}; points: exact samples", fontsize=10)
    right.legend(frameon=False, loc="lower left")
    return style.trimmed(figure)


def draw_pairs(
    times: np.ndarray,
    names: tuple[str, ...],
    collapse: float,
    words: tuple[str, str, str] = ("speciation time $t_{rs}$", "against class", "class"),
) -> Figure:
    """Draws the matrix of a time of all pairs; what lies below the collapse is in brackets.

    Args:
      times: t_rs of the class of the row against that of the column (C, C); NaN where there is
        none.
      names: of the classes.
      collapse: the data's t_C.
      words: what the times, the columns and the rows are.
    """
    figure, axes = style.new(width=6, height=5)
    picture = axes.imshow(times, cmap="viridis")
    known = times[np.isfinite(times)]
    middle = (known.min() + known.max()) / 2 if len(known) else np.nan
    for (row, column), time in np.ndenumerate(times):
        if row != column:
            text = "-" if np.isnan(time) else f"({time:.2f})" if time < collapse else f"{time:.2f}"
            color = "white" if time <= middle else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    ticks, labels = range(len(names)), list(map(style.label, names))
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel=words[1], ylabel=words[2])
    figure.colorbar(picture, label=words[0])
    return style.trimmed(figure)


def _draw_links(axes: Axes, tree: np.ndarray, order: list[int]) -> None:
    """Draws a dendrogram, its splits numbered from the last merger to the first."""
    leaves = len(order)
    place = {leaf: (float(x), 0.0) for x, leaf in enumerate(order)}
    for i, (left, right, height, _) in enumerate(tree):
        (x0, y0), (x1, y1) = place[int(left)], place[int(right)]
        axes.plot([x0, x0, x1, x1], [y0, height, height, y1], color="0.5", linewidth=1.2)
        place[leaves + i] = ((x0 + x1) / 2, height)
        number = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "0.5"}
        axes.text(
            (x0 + x1) / 2,
            height,
            str(len(tree) - i),
            ha="center",
            va="center",
            fontsize=7,
            bbox=number,
            zorder=3 + i,
        )


def draw_tree(
    tree: np.ndarray,
    names: tuple[str, ...],
    sets: list[tuple[list[int], list[int]]],
    times: list[tuple[Estimate, Estimate]],
    collapse: float,
) -> Figure:
    """Draws the tree of class mergers, and the times of the sets that each split parts.

    Args:
      tree: scipy's linkage matrix (C - 1, 4).
      names: of the classes.
      sets: for each row of the tree, the two sets of classes that merge there.
      times: for each row of the tree, their t_rs.
      collapse: the data's t_C.
    """
    figure, (left, right) = style.new(1, 2, width=9, height=4.2)
    order, labels = [int(leaf) for leaf in leaves_list(tree)], list(map(style.label, names))
    _draw_links(left, tree, order)
    left.set_xticks(range(len(order)), [labels[leaf] for leaf in order])
    left.set(xlabel="class", ylabel="mean $t_{rs}$ of the pairs", ylim=(0, None))
    rows = np.arange(len(tree), 0, -1)
    for side, (offset, marker) in enumerate(((-0.13, "o"), (0.13, "s"))):
        found = [pair[side] for pair in times]
        value = np.array([e.value for e in found])
        bars = [value - [e.low for e in found], np.array([e.high for e in found]) - value]
        label = ("first set", "second set")[side]
        right.errorbar(
            value, rows + offset, xerr=bars, fmt=marker, markersize=4, color=f"C{side}", label=label
        )
    right.axvline(collapse, color="0.6", linewidth=0.8, linestyle=":")
    right.text(collapse, 0.45, " $t_C$", color="0.4", va="top")
    parted = [" | ".join(" ".join(labels[c] for c in side) for side in pair) for pair in sets]
    right.set_yticks(rows, [f"{text}   ({row})" for text, row in zip(parted, rows, strict=True)])
    right.set(xlabel="$t_{rs}$ of each set, 95 % intervals", ylim=(len(tree) + 0.6, 0.2))
    right.tick_params(axis="y", labelsize=8)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    return style.trimmed(figure)
