"""Figures of what x_t says of its class and of its training point."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_jax.plots import style
from diffusion_jax.plots.classes import draw_pairs
from diffusion_jax.plots.regimes import band, log_time_axis, mark_time, window
from diffusion_jax.regimes.class_information import Partition
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.measures import level_of


def draw_information(
    curves: dict[str, Curve],
    times: dict[str, Estimate],
    num_points: float,
    partition: Partition | None = None,
) -> Figure:
    """Draws I(c; x_t) and its rate, with the peak and t_S, beside I(a; x_t) and the largest weight.

    Without classes what is of the training points is drawn alone.

    Args:
      curves: `Regimes.curves`.
      times: the named times, "t_S_rate", "t_S_phi", "t_S_spectrum", "t_C_phi" used where known.
      num_points: number n of training points, see `TrainingSet.num_points`.
      partition: groups of classes, drawn beside all of them.
    """
    columns = 2 if "class_rate" in curves else 1
    figure, grid = style.new(2, columns, width=1 + 4.5 * columns, height=6)
    grid = np.reshape(grid, (2, columns))
    limits = window(curves)
    if columns == 2:
        _classes(grid[0, 0], grid[1, 0], limits, curves, times, partition)
    above, below = grid[:, -1]
    band(above, curves["point_information"], "C2", "I(a; x$_t$)")
    above.axhline(math.log(num_points), color="0.5", linewidth=0.6, linestyle=":")
    above.set(ylabel="of the training point: I(a; x$_t$) in nats", ylim=(0, None))
    band(below, curves["largest_weight"], "C1", "largest weight")
    below.set(ylabel="largest weight of a training point", ylim=(0, 1.05))
    for axes in (above, below):
        symbol = level_of("t_C_phi")[1].symbol
        mark_time(axes, limits, times.get("t_C_phi"), "C1", symbol, "-.")
    for axes in grid.flat:
        log_time_axis(axes, limits)
        axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    for axes in grid[0]:
        axes.set_xlabel("")
    return style.trimmed(figure)


def _classes(
    above: Axes,
    below: Axes,
    limits: tuple[float, float],
    curves: dict[str, Curve],
    times: dict[str, Estimate],
    partition: Partition | None,
) -> None:
    band(above, curves["class_information"], "C0", "I(c; x$_t$)")
    most = curves["class_information"].mean[-1] + curves["class_entropy"].mean[-1]
    above.axhline(most, color="0.5", linewidth=0.6, linestyle=":")
    above.set(ylabel="of the class: I(c; x$_t$) in nats", ylim=(0, None))
    band(below, curves["class_rate"], "C4", "-dI(c; x$_t$)/dt")
    below.set(ylabel="its rate -dI/dt in nats per unit of t")
    if partition is not None:
        for axes, name, color in ((above, "class_information", "C5"), (below, "class_rate", "C5")):
            band(axes, partition.regimes.curves[name], color, "the partition")
        peak = partition.regimes.times["t_S_rate"]
        mark_time(below, limits, peak, "C5", "its peak", ":")
    for axes in (above, below):
        mark_time(axes, limits, times.get("t_S_rate"), "C4", level_of("t_S_rate")[1].symbol, ":")
        mark_time(axes, limits, times.get("t_S_phi"), "C0", level_of("t_S_phi")[1].symbol, "--")
        mark_time(axes, limits, times.get("t_S_spectrum"), "C3", "t$_S$ (½ log Λ)", "-.")


def draw_pair_times(
    pairs: tuple[Partition, ...], names: tuple[str, ...], collapse: float
) -> Figure:
    """Draws the matrix of the pairs' times: t_S_phi above the diagonal, t_S_rate below.

    Args:
      pairs: each two classes, in the order of their names.
      names: of the classes.
      collapse: the data's t_C; earlier times are in brackets.
    """
    times = np.full((len(names), len(names)), np.nan)
    above, below = np.triu_indices(len(names), 1)
    times[above, below] = [pair.regimes.times["t_S_phi"].value for pair in pairs]
    times[below, above] = [pair.regimes.times["t_S_rate"].value for pair in pairs]
    words = ("$t_S$ of each pair of classes", "below: peak of -dI(c; x$_t$)/dt", "above: $t_S$ (φ)")
    return draw_pairs(times, names, collapse, words)
