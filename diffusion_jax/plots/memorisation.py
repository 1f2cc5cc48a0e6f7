"""Figures of a study of memorisation: many trainings, by training set and width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from diffusion_jax.plots import style
from diffusion_jax.plots.regimes import log_time_axis
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.training_times import PowerLaw


@dataclass(frozen=True)
class Line:
    """One training's curve against the update.

    Attributes:
      size: n, number of training images.
      width: base channels.
      updates: of the evaluations (T,).
      value: (T,).
      low: lower ends of the 95 % intervals (T,), or None.
      high: upper ends.
    """

    size: int
    width: int
    updates: np.ndarray
    value: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def _shade(size: int, sizes: Sequence[int]) -> Any:
    """A colour for each size, darker for larger ones."""
    place = sorted(set(sizes)).index(size) / max(1, len(set(sizes)) - 1)
    return matplotlib.colormaps["viridis_r"](0.1 + 0.9 * place)


def _log_updates(axes: Axes, label: str = "update τ") -> None:
    axes.set(xscale="log", xlabel=label)
    _plain_numbers(axes.xaxis)
    axes.tick_params(axis="x", labelsize=8)


def _plain_numbers(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _draw(axes: Axes, lines: Sequence[Line], divide: bool, dashes: str = "-") -> None:
    sizes = [line.size for line in lines]
    named: set[int] = set()
    for line in lines:
        x = line.updates / line.size if divide else line.updates
        color = _shade(line.size, sizes)
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=color, alpha=0.15, linewidth=0)
        label = f"n = {line.size}" if line.size not in named and dashes == "-" else None
        named.add(line.size)
        axes.plot(x, line.value, dashes, color=color, marker=".", lw=1.3, ms=5, label=label)


def _columns(lines: Sequence[Line], rows: int, height: float) -> tuple[Figure, Any, list[int]]:
    """A figure with a column for each width, named above where there are several."""
    widths = sorted({line.width for line in lines})
    figure, grid = style.new(rows, len(widths), width=max(6.0, 4.4 * len(widths)), height=height)
    grid = np.asarray(grid).reshape(rows, len(widths))
    for axes, width in zip(grid[0], widths, strict=True):
        axes.set_title(f"base channels {width}", fontsize=10)
    return figure, grid, widths


def draw_collapse(lines: Sequence[Line], label: str, level: float | None = None) -> Figure:
    """Draws a quantity against the update tau, and against tau/n, one column per width.

    Args:
      lines: a training each.
      label: what the quantity is.
      level: one to be marked, of a fraction.
    """
    figure, grid, widths = _columns(lines, 2, 6.6)
    for column, width in enumerate(widths):
        own = [line for line in lines if line.width == width]
        for row, divide in enumerate((False, True)):
            axes = grid[row, column]
            _draw(axes, own, divide)
            _log_updates(axes, "update per training image τ/n" if divide else "update τ")
            axes.set_ylabel(label if column == 0 else "")
            if level is not None:
                axes.axhline(level, color="0.5", linestyle=":", linewidth=1)
                axes.set_ylim(-0.03, 1.03)
        axes = grid[0, column]
        axes.legend(frameon=False, fontsize=8)
    return style.trimmed(figure)


def draw_losses(training: Sequence[Line], held_out: Sequence[Line], time: float) -> Figure:
    """Draws the information of training (dashed) and held-out images, one column per width.

    Args:
      training: U of the training images.
      held_out: U of the held-out images.
      time: down to which.
    """
    figure, grid, widths = _columns(held_out, 1, 4.2)
    for axes, width in zip(grid[0], widths, strict=True):
        _draw(axes, [line for line in held_out if line.width == width], False)
        _draw(axes, [line for line in training if line.width == width], False, "--")
        _log_updates(axes)
        axes.set(yscale="log", ylabel=f"U down to t = {time:.3g} (nats per image)")
        _plain_numbers(axes.yaxis)
        axes.plot([], [], "--", color="0.4", label="training images")
        axes.plot([], [], "-", color="0.4", label="held-out images")
        axes.legend(frameon=False, fontsize=8)
    return style.trimmed(figure)


def draw_distances(
    lines: Mapping[str, Sequence[Line]], own: Mapping[str, Mapping[int, float]], width: int
) -> Figure:
    """Draws Frechet distances of samples to held-out images, a panel for each kind of features.

    Args:
      lines: of trainings of one width, by the features.
      own: distance of the training images themselves, by the features and n.
      width: base channels.
    """
    figure, grid = style.new(1, len(lines), width=max(6.0, 4.2 * len(lines)), height=4.2)
    for axes, (name, each) in zip(np.atleast_1d(grid), lines.items(), strict=True):
        _draw(axes, each, False)
        for size, value in own[name].items():
            color = _shade(size, [line.size for line in each])
            axes.axhline(value, color=color, linestyle=":", linewidth=1)
        _log_updates(axes)
        axes.set(yscale="log", title=name.replace("_", " "))
        _plain_numbers(axes.yaxis)
        axes.title.set_fontsize(10)
    first = np.atleast_1d(grid)[0]
    first.set_ylabel(f"Frechet distance, base channels {width}")
    first.plot([], [], ":", color="0.4", label="training images")
    first.legend(frameon=False, fontsize=8)
    return style.trimmed(figure)


@dataclass(frozen=True)
class Times:
    """A time of all trainings of one width, against n.

    Attributes:
      label: what it is.
      sizes: n of those that reach it.
      times: when they do.
      beyond: n and last update of those that do not.
      before: n and first update of those that were there at once.
      law: the power of n, if there is one.
    """

    label: str
    sizes: list[int]
    times: list[Estimate]
    beyond: list[tuple[int, float]]
    before: list[tuple[int, float]]
    law: PowerLaw | None


def draw_times(by_width: Mapping[int, Sequence[Times]]) -> Figure:
    """Draws when samples are good and when they are copies against n, a panel for each width.

    A triangle upwards is a training that ended before, downwards one that was there at its first
    evaluation; a line the power law that fits.
    """
    figure, grid = style.new(1, len(by_width), width=max(6.0, 4.6 * len(by_width)), height=4.6)
    for axes, (width, each) in zip(np.atleast_1d(grid), by_width.items(), strict=True):
        for i, found in enumerate(each):
            color = f"C{i}"
            label = found.label
            if found.law is not None:
                b = found.law.exponent
                label += f" ~ n^{b.value:.2f} ({b.low:.2f} to {b.high:.2f})"
                n = np.array([min(found.law.sizes), max(found.law.sizes)], float)
                axes.plot(n, found.law.prefactor * n**b.value, color=color, lw=1, alpha=0.6)
            value = np.array([time.value for time in found.times])
            ends = np.array([[time.low, time.high] for time in found.times]).reshape(-1, 2)
            error = np.abs(np.where(np.isnan(ends), value[:, None], ends) - value[:, None]).T
            look = {"fmt": "o", "color": color, "markersize": 5, "capsize": 3}
            beside = 1.03**i  # so that none hides another
            axes.errorbar(beside * np.array(found.sizes), value, yerr=error, label=label, **look)
            for marker, bounds in (("^", found.beyond), ("v", found.before)):
                for size, update in bounds:
                    look = {"color": color, "markerfacecolor": "white", "markersize": 7}
                    axes.plot(beside * size, update, marker, **look)
        axes.plot([], [], "^", color="0.4", markerfacecolor="white", label="later, or never")
        axes.plot([], [], "v", color="0.4", markerfacecolor="white", label="earlier")
        axes.set(xscale="log", yscale="log", xlabel="training images n", ylabel="update τ")
        _plain_numbers(axes.yaxis)
        axes.set_title(f"base channels {width}", fontsize=10)
        sizes = sorted({n for e in each for n in [*e.sizes, *dict(e.beyond), *dict(e.before)]})
        axes.set_xticks(sizes, [f"{n}" for n in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.12)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return style.trimmed(figure)


def draw_phases(lines: Sequence[Line], times: Mapping[int, Sequence[Times]]) -> Figure:
    """Draws the memorised fraction in the plane of n and tau, with the times as lines.

    Args:
      lines: memorised fraction of each training.
      times: by width.
    """
    figure, grid, widths = _columns(lines, 1, 4.6)
    norm = Normalize(0, 1)
    for axes, width in zip(grid[0], widths, strict=True):
        for line in (line for line in lines if line.width == width):
            image = axes.scatter(
                np.full(len(line.updates), line.size),
                line.updates,
                c=line.value,
                norm=norm,
                cmap="magma_r",
                marker="s",
                s=70,
                edgecolors="0.7",
                linewidths=0.4,
            )
        for i, found in enumerate(times[width]):
            value = [time.value for time in found.times]
            axes.plot(found.sizes, value, "-o", color=f"C{i}", lw=1.4, ms=4, label=found.label)
        axes.set(xscale="log", yscale="log", xlabel="training images n", ylabel="update τ")
        _plain_numbers(axes.yaxis)
        sizes = sorted({line.size for line in lines if line.width == width})
        axes.set_xticks(sizes, [f"{n}" for n in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    figure.colorbar(image, ax=list(grid[0]), label="memorised fraction")
    return style.trimmed(figure)


def draw_bands(
    edges: np.ndarray, gaps: Mapping[tuple[int, int], tuple[np.ndarray, np.ndarray]], time: float
) -> Figure:
    """Draws at which t the models know their training images: G of each part of the log-SNR.

    Args:
      edges: lower time of each part (S,).
      gaps: G (S,) with the ends of its interval (2, S), by n and width.
      time: down to which G is given elsewhere.
    """
    widths = sorted({width for _, width in gaps})
    figure, grid = style.new(1, len(widths), width=max(6.0, 4.6 * len(widths)), height=4)
    for axes, width in zip(np.atleast_1d(grid), widths, strict=True):
        own = {size: each for (size, w), each in gaps.items() if w == width}
        for size, (value, ends) in own.items():
            color = _shade(size, list(own))
            axes.fill_between(edges, *ends, color=color, alpha=0.15, linewidth=0, step="post")
            axes.step(edges, value, where="post", color=color, lw=1.3, label=f"n = {size}")
        axes.axvline(time, color="0.5", linestyle=":", linewidth=1)
        seen = edges >= time / 3
        tops = [np.nanmax(ends[1][seen]) for _, ends in own.values()]
        lows = [np.nanmin(ends[0][seen]) for _, ends in own.values()]
        axes.set(ylabel="G of each part of the log-SNR (nats)", title=f"base channels {width}")
        axes.set_ylim(min(-0.5, 1.1 * min(lows)), 1.1 * max(1.0, max(tops)))
        axes.title.set_fontsize(10)
        log_time_axis(axes, (time / 3, float(edges[-1])))
        axes.legend(frameon=False, fontsize=8)
    return style.trimmed(figure)


def draw_kinds(
    kinds: Mapping[tuple[int, int], tuple[np.ndarray, Mapping[str, Sequence[Estimate]]]],
) -> Figure:
    """Draws fractions of memorised, spurious and novel samples against the update.

    Args:
      kinds: updates (T,) and the fractions by their names, by n and width: a panel each.
    """
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    figure, grid = style.new(rows, columns, width=max(6.0, 3.1 * columns), height=2.8 * rows + 0.4)
    panels = np.atleast_1d(grid).ravel()
    colors = {"memorised": "C3", "spurious": "C1", "novel": "C0"}
    for axes, ((size, width), (updates, found)) in zip(panels, kinds.items(), strict=False):
        for name, each in found.items():
            low, high = ([getattr(one, end) for one in each] for end in ("low", "high"))
            axes.fill_between(updates, low, high, color=colors[name], alpha=0.15, linewidth=0)
            value = [one.value for one in each]
            axes.plot(updates, value, ".-", color=colors[name], lw=1.2, label=name)
        _log_updates(axes)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,)))
        axes.set(ylim=(-0.03, 1.03))
        axes.set_title(f"n = {size}, base channels {width}", fontsize=9)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("fraction of the samples")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return style.trimmed(figure)
