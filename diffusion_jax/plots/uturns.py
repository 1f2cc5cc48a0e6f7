"""Figures of U-turns: what comes back along time, correlations of changes, images and maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from diffusion_jax.plots import panel, style
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
    """Draws curves against time: one row of panels per quantity, one column per source.

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
    """Draws how alike each layer finds an image and its return: rows are sources, columns scores.

    Args:
      layers: of each source and score, one curve per layer.
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
    """Draws C(r)/C(0) against the distance: rows are sources, columns scores, lines times.

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


def _grey(images: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Images (..., channels), mean removed, as colours (..., 3) within [0, 1]."""
    pixels = np.clip(images + mean, 0, 1)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _colors(change: np.ndarray, most: float) -> np.ndarray:
    return np.asarray(matplotlib.colormaps[_CHANGE](change / most)[..., :3])


def _mosaic(
    tiles: np.ndarray, titles: Sequence[str], names: Sequence[str] = (), beside: float = 0.0
) -> Figure:
    """Tiles (rows, columns, height, width, 3) in one pair of axes, with room for what is beside."""
    rows, columns, height, width, _ = tiles.shape
    gap = max(1, height // 10)
    padded = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=1)
    joined = padded.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), -1, 3)
    wide = 0.85 * columns + 0.09 * max(map(len, names), default=0) + beside
    figure, axes = style.new(width=wide, height=0.85 * rows * height / width + 0.4)
    axes.imshow(joined, interpolation="nearest")
    axes.set_axis_off()
    for j, text in enumerate(titles):
        axes.text((j + 0.5) * (width + gap) - gap / 2, -gap, text, ha="center", fontsize=8)
    for i, text in enumerate(names):
        axes.text(-gap, (i + 0.5) * (height + gap), text, ha="right", va="center", fontsize=8)
    return figure


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
    pictures = _grey(np.concatenate([images[:, None], returned], axis=1), mean)
    maps = _colors(change, float(change.max()) or 1.0)
    blank = np.ones_like(maps[:, :1])
    both = np.stack([pictures, np.concatenate([blank, maps], axis=1)], axis=1)
    titles = ["image", *(f"t = {t:.2g}" for t in times)]
    return _mosaic(both.reshape(-1, *pictures.shape[1:]), titles)


def draw_maps(maps: Mapping[str, np.ndarray], times: np.ndarray) -> Figure:
    """Draws the mean change of each pixel: one row per score, one column per time.

    Args:
      maps: of each score (columns, height, width).
      times: Ornstein-Uhlenbeck times of the columns.
    """
    most = max(float(each.max()) for each in maps.values()) or 1.0
    tiles = _colors(np.stack(list(maps.values())), most)
    titles = [f"t = {t:.2g}" for t in times]
    figure = _mosaic(tiles, titles, [panel.label(name) for name in maps], 1.2)
    norm = matplotlib.colors.Normalize(0, most)
    shades = matplotlib.cm.ScalarMappable(norm, _CHANGE)
    figure.colorbar(shades, ax=figure.axes, label="mean |x' - x|", aspect=12, pad=0.02)
    return figure
