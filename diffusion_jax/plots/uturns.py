"""Figures of U-turns: what comes back along time, correlations of changes, images and maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_jax.plots import panel, style
from diffusion_jax.plots.cloning import show
from diffusion_jax.plots.regimes import log_time_axis
from diffusion_jax.regimes.curves import Curve, Estimate

# Of what changes, of layers and of times: colours from dark to bright.
_CHANGE, _LAYERS, _TIMES = "magma", "viridis", "plasma"
# Distances in pixels beyond which few pairs of a small image lie.
_FAR = 0.6


@dataclass(frozen=True)
class Row:
    """A row of panels, one for each source of images.

    Attributes:
      label: what is drawn.
      curves: by source and by what brought the images back; no panel for a source without any.
      beside: a curve with a name of its own that is laid over them, by source.
      limits: of the ordinate, where they are known.
    """

    label: str
    curves: Mapping[str, Mapping[str, Curve]]
    beside: Mapping[str, tuple[str, Curve]] = field(default_factory=dict)
    limits: tuple[float, float] | None = None


def _estimates(curve: Curve) -> list[Estimate]:
    low, high = curve.interval
    return [Estimate(*map(float, each)) for each in zip(curve.mean, low, high, strict=True)]


def draw_rows(sources: Sequence[str], rows: Sequence[Row], marks: Mapping[str, float]) -> Figure:
    """Draws curves against time: a row of panels a quantity, a column a source.

    Args:
      sources: names of the columns.
      rows: what is drawn in each row.
      marks: times to be marked, by their labels.
    """
    figure, grid = panel.panels(sources, 0.8 + 2.9 * len(rows), len(rows))
    for row, line in zip(rows, grid, strict=True):
        for axes, source in zip(line, sources, strict=True):
            curves = row.curves.get(source, {})
            if not curves:
                axes.set_axis_off()
                continue
            names = list(curves)
            for name, curve in curves.items():
                panel.band(axes, curve.times, _estimates(curve), name, names)
            times = next(iter(curves.values())).times
            limits = panel.limits(times)
            if source in row.beside:
                name, curve = row.beside[source]
                inside = (curve.times >= limits[0]) & (curve.times <= limits[1])
                x, y = curve.times[inside], curve.mean[inside]
                axes.plot(x, y, label=name, color="0.6", linewidth=4, alpha=0.6, zorder=1)
            if row.limits is not None:
                axes.set_ylim(row.limits)
            else:
                axes.set_ylim(bottom=0)
            log_time_axis(axes, limits)
            panel.marks(axes, marks, named=row is rows[0])
        line[0].set_ylabel(row.label)
        if row is not rows[-1]:
            for axes in line:
                axes.set_xlabel("")
    return panel.legend(figure, grid[0][0])


def draw_layers(
    layers: Mapping[str, Mapping[str, Sequence[Curve]]],
    names: Sequence[str],
    marks: Mapping[str, float],
) -> Figure:
    """Draws how alike each layer finds an image and its return: a row a source, a column a score.

    Args:
      layers: of each source and score, a curve a layer.
      names: of the layers.
      marks: times to be marked, by their labels.
    """
    sources, scores = list(layers), list(next(iter(layers.values())))
    figure, grid = panel.panels(scores, 0.8 + 2.9 * len(sources), len(sources))
    colors = matplotlib.colormaps[_LAYERS](np.linspace(0, 0.92, len(names)))
    for source, line in zip(sources, grid, strict=True):
        for axes, score in zip(line, scores, strict=True):
            curves = layers[source][score]
            for curve, name, color in zip(curves, names, colors, strict=True):
                low, high = curve.interval
                axes.fill_between(curve.times, low, high, color=color, alpha=0.15, linewidth=0)
                axes.plot(curve.times, curve.mean, color=color, marker="o", ms=3, label=name)
            axes.axhline(0, color="0.85", linewidth=0.6, zorder=0)
            axes.set_ylim(top=1.03)
            log_time_axis(axes, panel.limits(curves[0].times))
            panel.marks(axes, marks, named=True)
        line[0].set_ylabel(f"cosine of the layers, {source}")
    return panel.legend(figure, grid[0][0])


def draw_correlation(
    functions: Mapping[str, Mapping[str, np.ndarray]],
    distance: np.ndarray,
    times: np.ndarray,
) -> Figure:
    """Draws C(r)/C(0) against the distance: a row a source, a column a score, a line a time.

    Args:
      functions: of each source and score, C(r)/C(0) (T, K); NaN throughout where nothing changes.
      distance: r (K,), in pixels.
      times: Ornstein-Uhlenbeck times (T,).
    """
    sources, scores = list(functions), list(next(iter(functions.values())))
    figure, grid = panel.panels(scores, 0.6 + 2.9 * len(sources), len(sources))
    norm = matplotlib.colors.LogNorm(times[0], times[-1])
    shades = matplotlib.cm.ScalarMappable(norm, _TIMES)
    near = distance <= _FAR * distance[-1]
    for source, line in zip(sources, grid, strict=True):
        for axes, score in zip(line, scores, strict=True):
            for t, row in zip(times, functions[source][score], strict=True):
                axes.plot(distance[near], row[near], color=shades.to_rgba(t), linewidth=1.2)
            axes.axhline(0, color="0.85", linewidth=0.6, zorder=0)
            axes.set(xlim=(0, distance[near][-1]), ylim=(-0.15, 1.03), xlabel="distance r (pixels)")
        line[0].set_ylabel(f"C(r)/C(0) of changes, {source}")
    bar = figure.colorbar(shades, ax=[axes for line in grid for axes in line], label="time t")
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if times[0] <= t <= times[-1]]
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.minorticks_off()
    return style.trimmed(figure)


def _map(axes: Axes, change: np.ndarray, most: float) -> None:
    axes.imshow(change, cmap=_CHANGE, vmin=0, vmax=most, interpolation="nearest")
    axes.set_axis_off()


def _grid(rows: int, columns: int, left: float = 0.0) -> tuple[Figure, np.ndarray]:
    width, height = 0.85 * columns + left, 0.85 * rows + 0.3
    figure, grid = style.new(rows, columns, width=width, height=height)
    return figure, np.asarray(grid).reshape(rows, columns)


def draw_changes(
    images: np.ndarray,
    returned: np.ndarray,
    change: np.ndarray,
    times: np.ndarray,
    mean: np.ndarray,
) -> Figure:
    """Draws images, what they come back as, and below each the map of what changed.

    Args:
      images: (rows, height, width, channels), mean removed.
      returned: a return of each from each time (rows, columns, height, width, channels).
      change: how far each pixel moved (rows, columns, height, width).
      times: Ornstein-Uhlenbeck times of the columns.
      mean: per-channel mean (channels,).
    """
    rows, columns = returned.shape[:2]
    figure, grid = _grid(2 * rows, columns + 1)
    most = float(change.max()) or 1.0
    for i in range(rows):
        show(grid[2 * i, 0], images[i], mean)
        grid[2 * i + 1, 0].set_axis_off()
        for j in range(columns):
            show(grid[2 * i, j + 1], returned[i, j], mean)
            _map(grid[2 * i + 1, j + 1], change[i, j], most)
    grid[0, 0].set_title("image", fontsize=8)
    for j, t in enumerate(times):
        grid[0, j + 1].set_title(f"t = {t:.2g}", fontsize=8)
    return style.trimmed(figure)


def draw_maps(maps: Mapping[str, np.ndarray], times: np.ndarray) -> Figure:
    """Draws the mean change of each pixel: a row a score, a column a time.

    Args:
      maps: of each score (columns, height, width).
      times: Ornstein-Uhlenbeck times of the columns.
    """
    figure, grid = _grid(len(maps), len(times), left=1.2)
    most = max(float(each.max()) for each in maps.values()) or 1.0
    for axes, (name, row) in zip(grid, maps.items(), strict=True):
        for each, change in zip(axes, row, strict=True):
            _map(each, change, most)
        place = {"transform": axes[0].transAxes, "ha": "right", "va": "center", "fontsize": 8}
        axes[0].text(-0.12, 0.5, panel.label(name), **place)
    for axes, t in zip(grid[0], times, strict=True):
        axes.set_title(f"t = {t:.2g}", fontsize=8)
    shades = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, most), _CHANGE)
    figure.colorbar(shades, ax=list(grid.ravel()), label="mean |x' - x|", aspect=12)
    return style.trimmed(figure)
