"""Figures of a network beside theories: R^2 and losses along time, patches, and samples."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from diffusion_jax.plots import panel, style
from diffusion_jax.plots.cloning import show
from diffusion_jax.plots.regimes import log_time_axis, window
from diffusion_jax.regimes.curves import Curve, Estimate

# R^2 below this is no resemblance, however far below.
_LOWEST = -0.25
# Losses below so small a share of the network's least are as good as none.
_NEGLIGIBLE = 1e-4


def draw_resemblance(
    times: np.ndarray,
    curves: Mapping[str, Mapping[str, Sequence[Estimate]]],
    marks: Mapping[str, float],
    ylabel: str = "R$^2$ of the network's predicted images",
) -> Figure:
    """Draws R^2 against time, one panel per source.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing.
      curves: of each source, R^2 of each theory at each time.
      marks: times to be marked, by their labels.
      ylabel: what R^2 is of.
    """
    figure, (panels,) = panel.panels(list(curves), 4.8)
    for axes, theories in zip(panels, curves.values(), strict=True):
        for name, estimates in theories.items():
            panel.band(axes, times, estimates, name, list(theories))
        axes.axhline(0, color="0.85", linewidth=0.6, zorder=0)
        axes.set_ylim(_LOWEST, 1.03)
        log_time_axis(axes, panel.limits(times))
        panel.marks(axes, marks, named=True)
    panels[0].set_ylabel(ylabel)
    return panel.legend(figure, panels[0])


def draw_losses(
    times: np.ndarray,
    curves: Mapping[str, Mapping[str, Sequence[Estimate]]],
    marks: Mapping[str, float],
) -> Figure:
    """Draws the noise losses of the network and of the theories, one panel per source.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing.
      curves: of each source, the losses of each at each time.
      marks: times to be marked, by their labels.
    """
    figure, (panels,) = panel.panels(list(curves), 4.8)
    for axes, theories in zip(panels, curves.values(), strict=True):
        for name, estimates in theories.items():
            panel.band(axes, times, estimates, name, list(theories))
        most = max(each.value for estimates in theories.values() for each in estimates)
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(axes.get_ylim()[0], _NEGLIGIBLE * most))
        log_time_axis(axes, panel.limits(times))
        panel.marks(axes, marks, named=True)
    panels[0].set_ylabel("squared error of the predicted noise, per component")
    return panel.legend(figure, panels[0])


def draw_patches(
    times: np.ndarray,
    best: Mapping[str, Mapping[str, Sequence[tuple[int, int, int]]]],
    sides: Sequence[int],
    marks: Mapping[str, float],
) -> Figure:
    """Draws the patch of the largest R^2 against time, one panel per source.

    Args:
      times: Ornstein-Uhlenbeck times (T,), increasing.
      best: of each source and family, at each time the best patch, and the least and the largest
        that the images cannot rule out.
      sides: all that were compared.
      marks: times to be marked, by their labels.
    """
    figure, (panels,) = panel.panels(list(best), 3.8)
    sides = sorted(
        {side for each in best.values() for row in each.values() for three in row for side in three}
    )
    for axes, families in zip(panels, best.values(), strict=True):
        for i, (family, row) in enumerate(families.items()):
            patch, low, high = np.array(row).T
            moved = times * 1.03 ** (i - (len(families) - 1) / 2)  # bars side by side
            color = matplotlib.colormaps[panel.MAPS.get(family, "YlGn")](0.75)
            axes.errorbar(
                moved,
                patch,
                [patch - low, high - patch],
                marker="o",
                capsize=2,
                color=color,
                linewidth=1.2,
                markersize=4,
                label=family,
                linestyle=panel.DASHES.get(family, "-"),
            )
        axes.set_yscale("log", base=2)
        axes.set_yticks(sides, [str(side) for side in sides])
        axes.set_ylim(min(sides) / 1.2, 1.2 * max(sides))
        axes.minorticks_off()
        log_time_axis(axes, panel.limits(times))
        panel.marks(axes, marks, named=True)
    panels[0].set_ylabel("best patch, pixels per side")
    return panel.legend(figure, panels[0])


def draw_two_moments(exact: Curve, moments: Curve, times: Mapping[str, Estimate]) -> Figure:
    """Draws phi of the data, and of their classes with no more than two moments.

    Args:
      exact: phi of the data's exact score.
      moments: phi of the mixture of Gaussians.
      times: t_S of each, by their labels, in this order.
    """
    figure, axes = style.new(height=3.6)
    for curve, color, (name, t_S) in zip(
        (exact, moments), ("0.1", "C9"), times.items(), strict=True
    ):
        low, high = curve.interval
        axes.fill_between(curve.times, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(curve.times, curve.mean, color=color, label=name)
        if np.isfinite(t_S.value):
            text = f"t$_S$ = {t_S.value:.3g}"
            axes.axvline(t_S.value, color=color, linestyle=":", linewidth=1, label=text)
    low, high = window({"phi": exact, "phi_C": moments})
    log_time_axis(axes, (low, high))
    axes.set_ylabel("probability of the same class, φ")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return style.trimmed(figure)


def draw_rows(rows: Sequence[tuple[str, np.ndarray]], mean: np.ndarray) -> Figure:
    """Draws rows of images with a text before each.

    Args:
      rows: text and images (columns, height, width, channels), mean removed.
      mean: per-channel mean (channels,).
    """
    columns = len(rows[0][1])
    lines = max(text.count("\n") + 1 for text, _ in rows)
    high = max(0.8, 0.2 * lines)
    figure, grid = style.new(
        len(rows), columns, width=0.85 * columns + 2.2, height=high * len(rows) + 0.1
    )
    grid = np.asarray(grid).reshape(len(rows), columns)
    for axes, (text, images) in zip(grid, rows, strict=True):
        for each, image in zip(axes, images, strict=True):
            show(each, image, mean)
        axes[0].text(
            -0.12, 0.5, text, transform=axes[0].transAxes, ha="right", va="center", fontsize=8
        )
    return style.trimmed(figure)
