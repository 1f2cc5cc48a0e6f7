"""Figures of the adaptive schedule: where its steps lie, and what they gain."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from diffusion_jax.plots import style
from diffusion_jax.schedule import linear_schedule


@dataclass(frozen=True)
class ErrorCurves:
    """Errors of one kind on one data set, against the number of steps.

    Attributes:
      title: of the panel.
      label: what the error is, for the axes.
      num_steps: numbers of steps (k,).
      errors: for each schedule, its errors (k,); NaN where it does not exist.
    """

    title: str
    label: str
    num_steps: np.ndarray
    errors: Mapping[str, np.ndarray]


def draw_error_curves(
    panels: Sequence[Sequence[ErrorCurves]], styles: Mapping[str, Mapping[str, object]]
) -> Figure:
    """Draws errors against the number of steps, one panel per error and data set.

    Args:
      panels: rows of panels, all of the same error.
      styles: for each schedule, what matplotlib is to draw it with.
    """
    rows, columns = len(panels), len(panels[0])
    figure, grid = style.new(rows, columns, width=3.6 * columns, height=2.7 * rows + 0.5)
    grid = np.atleast_2d(grid)
    for axes_row, row in zip(grid, panels, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            for name, errors in panel.errors.items():
                axes.plot(panel.num_steps, errors, label=name, linewidth=1.3, **styles[name])
            axes.set(xscale="log", yscale="log", title=panel.title)
            ticks = [n for n in (5, 10, 25, 50, 100, 250, 1000) if n >= panel.num_steps[0]]
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.grid(color="0.92")
    for axes in grid[-1]:
        axes.set_xlabel("number of steps, one denoiser call each")
    figure.supylabel(panels[0][0].label, fontsize="medium")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return style.trimmed(figure)


def draw_step_densities(
    times: np.ndarray,
    densities: Mapping[str, np.ndarray],
    schedules: Mapping[str, np.ndarray],
    marks: Mapping[str, float],
) -> Figure:
    """Draws a density of steps with what it is made of, and where the steps of schedules lie.

    Args:
      times: Ornstein-Uhlenbeck times (T,).
      densities: densities along log t, per e-fold of t, (T,), by name.
      schedules: times of the steps of each schedule, by name.
      marks: times to be marked, by name.
    """
    figure, (top, bottom) = style.new(2, 1, height=4.8)
    for name, density in densities.items():
        top.plot(times, density, label=name)
    top.set(xscale="log", ylabel=r"$t\,\rho(t)$, steps per e-fold of $t$", ylim=(0, None))
    top.tick_params(labelbottom=False)
    for axes in (top, bottom):
        axes.set_xlim(times[0], times[-1])
        for (name, time), line in zip(
            marks.items(), itertools.cycle((":", "--", "-.")), strict=False
        ):
            axes.axvline(time, color="0.5", linewidth=1, linestyle=line, label=name)
    top.legend(frameon=False)
    for row, steps in enumerate(schedules.values()):
        bottom.plot(steps, np.full(len(steps), -row), "|", markersize=14, color=f"C{row}")
    bottom.set(xscale="log", xlabel=style.TIME, ylim=(0.6 - len(schedules), 0.6))
    bottom.set_yticks([-row for row in range(len(schedules))], list(schedules))
    return style.trimmed(figure)


def draw_schedule(steps: np.ndarray, marks: Mapping[str, float]) -> Figure:
    """Draws where the steps of a schedule lie, beside those of the linear one.

    Args:
      steps: increasing Ornstein-Uhlenbeck times of the steps (L,), L > 20.
      marks: times to be marked, by name.
    """
    schedules = {"adaptive": steps, "linear": np.asarray(linear_schedule(len(steps)).time)}
    times = np.geomspace(steps[1], steps[-1], 400)
    densities = {}
    for name, each in schedules.items():
        density = np.gradient(np.arange(len(each)), np.log(each))
        densities[name] = np.interp(np.log(times), np.log(each), density)
    shown = {name: each[:: max(1, len(each) // 50)] for name, each in schedules.items()}
    return draw_step_densities(times, densities, shown, marks)
