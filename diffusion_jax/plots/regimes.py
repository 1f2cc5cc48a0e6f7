"""Figures of a data set's regimes: its spectrum, speciation, collapse, and noisy samples."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from diffusion_jax.plots import style
from diffusion_jax.plots.times import number
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.lipschitz import LipschitzCurve
from diffusion_jax.regimes.measures import OBSERVABLES, level_of
from diffusion_jax.regimes.transitions import Regimes

_COLORS = {"phi": "C0", "phi_C": "C1", "excess_entropy": "C2"}
_SHADES = (("III: collapse", "#f2d5d0"), ("II: classes", "#f5ecd0"), ("I: noise", "#dbe8f2"))


def band(axes: Axes, curve: Curve, color: str, label: str, zorder: float = 2) -> None:
    """A curve with its 95 % interval."""
    low, high = curve.interval
    axes.fill_between(curve.times, low, high, color=color, alpha=0.3, linewidth=0)
    axes.plot(curve.times, curve.mean, color=color, label=label, zorder=zorder)


def shade(axes: Axes, window: tuple[float, float], t_C: float, t_S: float | None) -> None:
    """Shades the three regimes: III below t_C, I above both times, II between t_C and t_S.

    A name that its band has no room for is cut to its numeral, or left out. Without t_S, what lies
    above t_C is left white.
    """
    above = max(t_C, t_S) if t_S is not None and np.isfinite(t_S) else None
    edges = [window[0], t_C, *([above, window[1]] if above is not None else [])]
    width = axes.get_window_extent().width / np.log(window[1] / window[0])
    for (name, color), left, right in zip(_SHADES, edges, edges[1:], strict=False):
        left, right = max(left, window[0]), min(right, window[1])
        if right > left:
            axes.axvspan(left, right, color=color, zorder=-2, linewidth=0)
            room = width * np.log(right / left)
            _name_band(axes, np.sqrt(left * right), room, (name, name.partition(":")[0]))


def _name_band(axes: Axes, center: float, room: float, names: tuple[str, ...]) -> None:
    """Writes above the axes the first of some names that the room, in pixels, is enough for."""
    place = axes.get_xaxis_transform()
    for name in names:
        text = axes.text(center, 1.01, name, transform=place, ha="center", fontsize=8)
        if text.get_window_extent().width < room:
            return
        text.remove()


def mark_time(
    axes: Axes,
    limits: tuple[float, float],
    estimate: Estimate | None,
    color: str,
    label: str,
    style_: str,
) -> None:
    """A time within the limits as an upright line, with its interval shaded."""
    left, right = limits
    if estimate is None or not left < estimate.value < right:
        return
    axes.axvline(
        estimate.value,
        color=color,
        linestyle=style_,
        linewidth=1,
        label=f"{label} = {number(estimate.value)}",
    )
    if np.isfinite(estimate.low):
        axes.axvspan(max(estimate.low, left), estimate.high, color=color, alpha=0.15, linewidth=0)


def _named_line(
    axes: Axes, limits: tuple[float, float], times: dict[str, Estimate], name: str, style_: str
) -> None:
    """A time by its name and its level, in the colour of the curve that defines it."""
    curve, level = level_of(name)
    label = level.defined or level.symbol
    mark_time(axes, limits, times.get(name), _COLORS[curve], label, style_)


def window(curves: dict[str, Curve]) -> tuple[float, float]:
    """The times between which anything happens: all but a thousandth of each curve's change."""
    low, high = np.inf, -np.inf
    for name in ("phi_C", "phi"):
        if name in curves:
            mean = curves[name].mean
            moving = np.flatnonzero(
                (np.abs(mean - mean[0]) > 2e-3) & (np.abs(mean - mean[-1]) > 2e-3)
            )
            if len(moving):
                low = min(low, curves[name].times[moving[0]])
                high = max(high, curves[name].times[moving[-1]])
    if not low < high:
        return float(curves["phi_C"].times[0]), float(curves["phi_C"].times[-1])
    return float(low), float(high)


def log_time_axis(axes: Axes, limits: tuple[float, float]) -> None:
    """A logarithmic time axis with its numbers written out; data are at its left."""
    axes.set(xscale="log", xlim=limits, xlabel=style.TIME)
    wide = limits[1] > 500 * limits[0]
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_regimes(curves: dict[str, Curve], times: dict[str, Estimate]) -> Figure:
    """Draws phi where it is known, phi_C and f^e/alpha, with t_S, t_C and the shaded regimes.

    Args:
      curves: `Regimes.curves`.
      times: the named times, "t_C_phi", "t_C_entropy" and, where known, "t_S_phi" used.
    """
    figure, axes = style.new(width=7)
    limits = window(curves)
    t_S = times.get("t_S_phi")
    shade(axes, limits, times["t_C_phi"].value, t_S.value if t_S else None)
    for name, color in _COLORS.items():
        if name in curves:
            band(axes, curves[name], color, OBSERVABLES[name].label)
    _named_line(axes, limits, times, "t_S_phi", ":")
    _named_line(axes, limits, times, "t_C_phi", "-.")
    _named_line(axes, limits, times, "t_C_entropy", "--")
    axes.set(ylim=(-0.03, 1.05))
    log_time_axis(axes, limits)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return style.trimmed(figure)


def draw_symmetry(found: Regimes, without: Regimes, name: str) -> Figure:
    """Draws phi where it is known, phi_C and f^e/alpha, with a symmetry and without.

    Args:
      found: with it.
      without: without it.
      name: of the symmetry.
    """
    figure, axes = style.new(width=7)
    shown = style.label(name)
    windows = [window(each.curves) for each in (found, without)]
    limits = min(low for low, _ in windows), max(high for _, high in windows)
    for curve, color in _COLORS.items():
        if curve in found.curves:
            band(axes, found.curves[curve], color, OBSERVABLES[curve].label)
            other = without.curves[curve]
            axes.plot(other.times, other.mean, color=color, linestyle="--", linewidth=1)
    axes.plot([], [], "0.4", linestyle="--", linewidth=1, label=f"without {shown}")
    for regimes, dashes, words in ((found, "-", f"with {shown}"), (without, "--", "without")):
        for time in ("t_S_phi", "t_C_phi"):
            if time in regimes.times:
                curve, level = level_of(time)
                label = f"{words}: {level.symbol}"
                mark_time(axes, limits, regimes.times[time], _COLORS[curve], label, dashes)
    axes.set(ylim=(-0.03, 1.05))
    log_time_axis(axes, limits)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return style.trimmed(figure)


def draw_spectrum(
    eigenvalues: np.ndarray,
    modes: np.ndarray,
    shape: tuple[int, ...] | None,
    t_S: Estimate,
) -> Figure:
    """Draws the eigenvalues, each mode's own time, and the first modes as images.

    Of a colour mode, the mean over the channels is shown.

    Args:
      eigenvalues: decreasing (k,).
      modes: unit modes (m, d), the first few.
      shape: (height, width) or (height, width, channels) of a mode; None if it is no image.
      t_S: 1/2 log Lambda with its interval; NaN where there is none.
    """
    positive = eigenvalues[eigenvalues > 1e-7 * eigenvalues[0]]  # below lies float32 rounding
    rank = np.arange(1, len(positive) + 1)
    columns = min(8, len(modes)) if shape is not None else 0
    figure = style.blank(8, 5 if columns else 3.5)
    grid = figure.add_gridspec(2 if columns else 1, 1, height_ratios=[3, 1] if columns else None)
    upper = grid[0].subgridspec(1, 2)
    left, right = figure.add_subplot(upper[0]), figure.add_subplot(upper[1])
    left.loglog(rank, positive, ".-", markersize=3, linewidth=0.8)
    left.set(xlabel="rank i", ylabel="eigenvalue λ$_i$ (pixel units squared)")
    left.annotate(f"Λ = {positive[0]:.3g}", (1, positive[0]), (7, 2), textcoords="offset points")
    right.semilogx(rank, 0.5 * np.log1p(positive), ".-", markersize=3, linewidth=0.8)
    right.set(xlabel="rank i", ylabel="mode's own time ½ log(1 + λ$_i$)")
    if np.isfinite(t_S.value):
        label = f"t$_S$ = ½ log Λ = {t_S.value:.3g}"
        right.axhline(t_S.value, color="C3", linewidth=1, label=label)
        right.legend(frameon=False)
    if np.isfinite(t_S.low):
        right.axhspan(t_S.low, t_S.high, color="C3", alpha=0.2, linewidth=0)
    if columns:
        assert shape is not None
        lower = grid[1].subgridspec(1, columns)
        for i in range(columns):
            image = modes[i].reshape(shape)
            axes = figure.add_subplot(lower[i])
            limit = np.abs(image).max()
            if image.ndim == 3:
                image = image.mean(axis=2)
            axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(f"mode {i + 1}", fontsize=8)
            axes.set_axis_off()
    return style.trimmed(figure)


def draw_speciation(
    curves: dict[str, Curve],
    per_class: dict[str, Curve],
    times: dict[str, Estimate],
    floor: float,
    level: float,
) -> Figure:
    """Draws phi(t), overall and of each class, with t_S and the shaded regimes.

    Args:
      curves: `Regimes.curves`, with "phi" among them.
      per_class: phi of each class, by its name.
      times: the named times, "t_S_spectrum", "t_S_phi", "t_C_phi" used.
      floor: what phi tends to.
      level: value of phi at t_S_phi.
    """
    figure, axes = style.new()
    limits = window(curves)
    shade(axes, limits, times["t_C_phi"].value, times["t_S_phi"].value)
    band(axes, curves["phi"], "C0", "φ", zorder=3)
    if len(per_class) <= 4:
        for i, (name, curve) in enumerate(per_class.items()):
            axes.plot(
                curve.times,
                curve.mean,
                f"C{i + 4}--",
                linewidth=0.9,
                zorder=4,
                label=style.label(f"from {name}"),
            )
    _named_line(axes, limits, times, "t_S_phi", "--")
    mark_time(axes, limits, times["t_S_spectrum"], "C3", "t$_S$ (½ log Λ)", "-.")
    axes.axhline(level, color="0.5", linewidth=0.6)
    axes.axhline(floor, color="0.5", linewidth=0.6, linestyle=":")
    axes.set(ylabel="probability of the same class, φ")
    log_time_axis(axes, limits)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return style.trimmed(figure)


def draw_collapse(
    curves: dict[str, Curve], times: dict[str, Estimate], num_points: float
) -> Figure:
    """Draws f^e(t)/alpha and phi_C(t) with t_C, and the effective number of training points.

    Args:
      curves: `Regimes.curves`.
      times: the named times, "t_C_entropy", "t_C_phi" and, where known, "t_S_phi" used.
      num_points: number n of training points, see `TrainingSet.num_points`.
    """
    figure, (top, bottom) = style.new(2, 1, height=6)
    bottom.sharex(top)
    limits = window(curves)
    t_S = times.get("t_S_phi")
    for axes in (top, bottom):
        shade(axes, limits, times["t_C_phi"].value, t_S.value if t_S else None)
    for text in bottom.texts:
        text.set_visible(False)
    band(top, curves["excess_entropy"], "C2", "$f^e/\\alpha$")
    band(top, curves["phi_C"], "C1", "φ$_C$")
    _named_line(top, limits, times, "t_C_entropy", "--")
    _named_line(top, limits, times, "t_C_phi", "-.")
    _named_line(top, limits, times, "t_S_phi", ":")
    top.set(ylabel="$f^e/\\alpha$, φ$_C$", ylim=(-0.03, 1.05))
    handles, labels = top.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    band(bottom, curves["effective_points"], "C2", "exp H")
    bottom.axhline(num_points, color="0.5", linewidth=0.6, linestyle=":")
    bottom.set(yscale="log", ylabel="effective number of training points")
    log_time_axis(bottom, limits)
    return style.trimmed(figure)


def draw_lipschitz(curve: LipschitzCurve) -> Figure:
    """Draws the empirical score's Lipschitz constants at x_t, their bound, and 1/Delta_t.

    Args:
      curve: from `lipschitz.lipschitz_curve`.
    """
    figure, axes = style.new()
    low, median, high = np.percentile(curve.local, [5, 50, 95], axis=0)
    axes.fill_between(curve.times, low, high, color="C0", alpha=0.3, linewidth=0)
    axes.plot(curve.times, median, "C0", label="at x$_t$: median, 5 to 95 %")
    axes.plot(curve.times, curve.bound, "C3", linewidth=1, label="bound for all x")
    axes.plot(curve.times, -1 / np.expm1(-2 * curve.times), "0.4", linestyle=":", label="1/Δ$_t$")
    axes.set(yscale="log", ylabel="Lipschitz constant of the empirical score")
    log_time_axis(axes, (curve.times[0], curve.times[-1]))
    axes.legend(frameon=False)
    return style.trimmed(figure)


def draw_noisy_samples(
    images: np.ndarray, mean: np.ndarray, times: dict[str, float], seed: int = 0
) -> Figure:
    """Draws x_t = e^-t a + sqrt(Delta_t) z of a few images, one column a time.

    The range of grey levels or colours is each picture's own, except for the images themselves.

    Args:
      images: (rows, height, width, channels), 1 or 3 channels, in [0, 1] minus `mean`.
      mean: per-channel mean (channels,).
      times: the times by the name that heads their column; 0 shows the images themselves.
      seed: of the noise, which is the same along a row.
    """
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    rows, columns = len(images), len(times)
    figure, grid = style.new(rows, columns, width=1.2 * columns, height=1.15 * rows + 0.4)
    grid = np.asarray(grid).reshape(rows, columns)
    for j, (name, t) in enumerate(sorted(times.items(), key=lambda item: item[1])):
        noisy = np.exp(-t) * images + np.sqrt(-np.expm1(-2 * t)) * noise
        for i in range(rows):
            low, high = np.percentile(noisy[i] + mean, [1, 99]) if t else (0, 1)
            pixels = np.clip((noisy[i] + mean - low) / (high - low), 0, 1)
            grid[i, j].imshow(np.squeeze(pixels), cmap="gray", vmin=0, vmax=1)
            grid[i, j].set_axis_off()
        grid[0, j].set_title(f"{name}\nt = {t:.2f}" if t else f"{name}\n", fontsize=8)
    return style.trimmed(figure)
