"""Figures of a denoiser's open modes: how many, which ones, and in what order they are learned."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from diffusion_jax.plots import panel, style
from diffusion_jax.plots.cloning import show
from diffusion_jax.plots.regimes import log_time_axis
from diffusion_jax.regimes.curves import Curve, Estimate

# Estimates of each source, of each denoiser by its name, at each time.
Curves = Mapping[str, Mapping[str, Sequence[Estimate]]]
# Newly open modes that are drawn at a stop, at most.
MOST_DIRECTIONS = 5
# Ratios of variances are drawn between these.
_RATIOS = (1e-2, 4.0)


def draw_open_modes(
    times: np.ndarray,
    counts: Curves,
    bounded: Mapping[str, Mapping[str, np.ndarray]],
    traces: Curves,
    leading: int,
    marks: Mapping[str, float],
    mode_times: np.ndarray,
) -> Figure:
    """Draws the number of open modes and the trace against time, one column per source.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing.
      counts: the number of open modes.
      bounded: where that is a lower bound (T,), by source and denoiser.
      traces: the trace.
      leading: how many modes were looked for.
      marks: times to be marked, by their labels.
      mode_times: at which the training set's Gaussian opens its modes (k,).
    """
    figure, (upper, lower) = panel.panels(list(counts), 6.6, rows=2)
    limits = panel.limits(times)
    for axes, (source, own) in zip(upper, counts.items(), strict=True):
        for name, estimates in own.items():
            panel.band(axes, times, estimates, name, list(own))
            at_least, color = bounded[source][name], panel.look(name, list(own))["color"]
            value = np.array([each.value for each in estimates])
            axes.plot(
                *(times[at_least], value[at_least], "^"),
                color=color,
                markersize=7,
                markerfacecolor="white",
            )
        axes.plot([], [], "^", color="0.4", markerfacecolor="white", label="at least this many")
        axes.axhline(leading, color="0.8", linewidth=0.6, zorder=0)
        axes.set_ylim(-0.04 * leading, 1.08 * leading)
        axes.set_title(source, fontsize=10, pad=11)
        rug(axes, limits, mode_times)
    for axes, own in zip(lower, traces.values(), strict=True):
        for name, estimates in own.items():
            panel.band(axes, times, estimates, name, list(own))
        axes.set_yscale("log")
        most = max(each.value for estimates in own.values() for each in estimates)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-3 * most))
    for axes in (*upper, *lower):
        log_time_axis(axes, limits)
        panel.marks(axes, marks, named=True)
    for axes in upper:
        axes.set_xlabel("")
    upper[0].set_ylabel("open modes of e$^{-t}$ dD/dx")
    lower[0].set_ylabel("its trace, degrees of freedom")
    return panel.legend(figure, upper[0])


def rug(axes: Axes, limits: tuple[float, float], mode_times: np.ndarray) -> None:
    """Ticks above the axis at the times of the Gaussian's modes, and what they are."""
    inside = mode_times[(mode_times > limits[0]) & (mode_times < limits[1])]
    color = panel.COLORS["gaussian"]
    axes.plot(
        inside,
        np.full(len(inside), 1.0),
        "|",
        color=color,
        markersize=9,
        markeredgewidth=0.8,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        label="½ log(1 + λ$_i$)",
    )


def draw_curves(
    times: np.ndarray,
    curves: Curves,
    marks: Mapping[str, float],
    ylabel: str,
    log: bool = False,
) -> Figure:
    """Draws a number against time, one panel per source.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing.
      curves: the number.
      marks: times to be marked, by their labels.
      ylabel: what it is.
      log: on a logarithmic axis.
    """
    figure, (panels,) = panel.panels(list(curves), 3.9)
    for axes, own in zip(panels, curves.values(), strict=True):
        for name, estimates in own.items():
            panel.band(axes, times, estimates, name, list(own))
        if log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        log_time_axis(axes, panel.limits(times))
        panel.marks(axes, marks, named=True)
    panels[0].set_ylabel(ylabel)
    return panel.legend(figure, panels[0])


def draw_spectra(times: np.ndarray, spectra: Mapping[str, np.ndarray]) -> Figure:
    """Draws eigenvalues as heat maps: time to the right, the mode's number upwards.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing, at least two.
      spectra: mean eigenvalues of each denoiser (T, k), decreasing.
    """
    figure, (panels,) = panel.panels([panel.label(name) for name in spectra], 3.9)
    edges = np.sqrt(times[1:] * times[:-1])
    edges = np.concatenate([[times[0] ** 2 / edges[0]], edges, [times[-1] ** 2 / edges[-1]]])
    for axes, values in zip(panels, spectra.values(), strict=True):
        number = np.arange(1, values.shape[1] + 1)
        grid = axes.pcolormesh(
            edges,
            np.arange(values.shape[1] + 1) + 0.5,
            values.T,
            cmap="RdBu_r",
            norm=Normalize(0, 1),
        )
        if values.min() < 0.5 < values.max() and values.shape[1] > 1:
            axes.contour(times, number, values.T, [0.5], colors="black", linewidths=1.2)
        log_time_axis(axes, (float(edges[0]), float(edges[-1])))
    panels[0].set_ylabel("number i of the mode")
    bar = figure.colorbar(grid, ax=panels, extend="both", pad=0.01)
    bar.set_label("mean eigenvalue")
    bar.ax.axhline(0.5, color="black", linewidth=1.2)
    return figure


def _noisy(axes: Axes, state: np.ndarray) -> None:
    """An x_t on grey levels of its own: three standard deviations about its mean."""
    scaled = 0.5 + (state - state.mean()) / (6 * state.std() + 1e-12)
    show(axes, scaled, np.zeros(state.shape[-1]))


def _direction(axes: Axes, image: np.ndarray) -> None:
    """A signed image; of a colour one the mean over its channels."""
    image = image.mean(axis=2)
    limit = float(np.abs(image).max()) or 1.0
    axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")


def draw_along(
    times: Sequence[float],
    states: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    counts: Sequence[int],
    opened: Sequence[tuple[np.ndarray, np.ndarray]],
    mean: np.ndarray,
) -> Figure:
    """Draws one trajectory: x_t, the predicted image and the newly open modes, one column per time.

    Args:
      times: of the stops, descending (S,).
      states: x_t at each (height, width, channels).
      predicted: the predicted image at each, mean removed.
      counts: open modes at each.
      opened: at each the eigenvalues (j,) and directions (j, height, width, channels) of the modes
        that are open there and were not before.
      mean: per-channel mean (channels,).
    """
    columns = len(times)
    directions = min(MOST_DIRECTIONS, max(len(values) for values, _ in opened))
    rows = 2 + directions
    figure, grid = style.new(rows, columns, width=1.15 * columns + 1.1, height=1.28 * rows + 0.3)
    grid = np.asarray(grid).reshape(rows, columns)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for j, time in enumerate(times):
        values, images = opened[j]
        _noisy(grid[0, j], states[j])
        show(grid[1, j], predicted[j], mean)
        more = f"\n{len(values)} new" if j else ""
        grid[0, j].set_title(f"t = {time:.2g}\n{counts[j]} open{more}", fontsize=8)
        for i, (value, image) in enumerate(zip(values, images, strict=True)):
            if i < directions:
                _direction(grid[2 + i, j], image)
                grid[2 + i, j].set_title(f"{value:.2f}", fontsize=7, pad=2)
    names = ["x$_t$", "D", *(f"new {i + 1}" for i in range(directions))]
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.text(
            *(-0.12, 0.5, name), transform=axes.transAxes, ha="right", va="center", fontsize=8
        )
    return figure


def draw_learned(
    eigenvalues: np.ndarray, curves: Sequence[Curve], learned: Sequence[Estimate]
) -> Figure:
    """Draws the variance of samples along each mode against the update, and when it is learned.

    Args:
      eigenvalues: the training set's variances along the modes (k,), decreasing.
      curves: the samples' variance over that, against the update.
      learned: the update at which each is half of it for good; NaN where there is none.
    """
    figure, axes = style.new(1, 2, width=10, height=4)
    left, right = axes
    shade = matplotlib.colormaps["viridis_r"]
    logs = np.log(eigenvalues)
    place = (logs - logs.min()) / (np.ptp(logs) or 1.0)
    for i, curve in reversed(list(enumerate(curves))):
        left.plot(curve.times, curve.mean, color=shade(place[i]), marker=".", linewidth=1)
    left.axhline(1, color="0.8", linewidth=0.6, zorder=0)
    left.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
    updates = curves[0].times
    low = max(_RATIOS[0], 0.8 * min(float(curve.mean.min()) for curve in curves))
    high = max(_RATIOS[1], min(100.0, 1.2 * max(float(curve.mean.max()) for curve in curves)))
    left.set(
        xscale="log", yscale="log", ylim=(low, high), xlim=(updates[0] / 1.1, 1.1 * updates[-1])
    )
    left.set(xlabel="update", ylabel="samples' variance / training set's")
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(
            matplotlib.colors.LogNorm(eigenvalues.min(), eigenvalues.max()), shade
        ),
        ax=left,
        pad=0.01,
    )
    bar.set_label("variance λ$_i$ of the mode")
    value, begin, end = (
        np.array([getattr(each, name) for each in learned]) for name in ("value", "low", "high")
    )
    reached = np.isfinite(value)
    known = reached & np.isfinite(begin)
    right.errorbar(
        eigenvalues[known],
        value[known],
        [(value - begin)[known].clip(0), (end - value)[known].clip(0)],
        fmt="none",
        ecolor="0.6",
        capsize=2,
    )
    right.scatter(eigenvalues[reached], value[reached], c=[shade(p) for p in place[reached]])
    right.set(xscale="log", yscale="log", ylim=(updates[0] / 1.1, 1.1 * updates[-1]))
    right.set(xlim=(eigenvalues.min() / 1.3, 1.3 * eigenvalues.max()))
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis, bar.ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    right.set(xlabel="variance λ$_i$ of the mode", ylabel="update at which half is learned")
    return style.trimmed(figure)
