"""Figures of forked trajectories: phi and phi_C, t_C_hat, the clones and the nearest neighbours."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_jax.plots import style
from diffusion_jax.regimes.cloning import Cloning
from diffusion_jax.regimes.commitment import Commitment
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.measures import COLLAPSE_LEVEL


def _points(axes: Axes, cloning: Cloning, fraction: np.ndarray, color: str, label: str) -> None:
    """Fractions with Wilson's intervals."""
    low, high = cloning.interval().T
    # Wilson's interval holds the fraction, except for rounding.
    errors = np.maximum([fraction - low, high - fraction], 0)
    axes.errorbar(
        cloning.times, fraction, errors, fmt="o", markersize=4, color=color, capsize=2, label=label
    )


def _exact(axes: Axes, curve: Curve, limit: float, color: str) -> None:
    inside = curve.times <= 1.02 * limit
    low, high = curve.interval[:, inside]
    axes.fill_between(curve.times[inside], low, high, color=color, alpha=0.25, linewidth=0)
    axes.plot(
        curve.times[inside], curve.mean[inside], color=color, linewidth=1, label="exact score"
    )


def _line(axes: Axes, limit: float, estimate: Estimate, color: str, label: str, dash: str) -> None:
    if 0 < estimate.value < limit:
        text = f"{label} = {estimate.value:.3g}"
        axes.axvline(estimate.value, color=color, linestyle=dash, linewidth=1, label=text)


def draw_phi(
    commitment: Commitment,
    exact: Curve,
    t_S: Estimate,
    exact_time: Estimate,
    floor: float,
    name: str,
    published: tuple[np.ndarray, np.ndarray, str] | None = None,
) -> Figure:
    """Draws phi(t) of forked trajectories over that of the exact score.

    Args:
      commitment: of the trajectories, with classes.
      exact: phi of the exact score.
      t_S: 1/2 log Lambda.
      exact_time: where phi of the exact score crosses the level.
      floor: what phi tends to.
      name: of what was forked.
      published: times, phi and label of a curve to lay over.
    """
    assert commitment.phi is not None
    limit = float(commitment.phi.times.max())
    figure, axes = style.new(height=4.4)
    _exact(axes, exact, limit, "0.35")
    if published is not None:
        times, phi, label = published
        axes.plot(times, phi, "x", color="C1", markersize=5, label=label)
    _points(axes, commitment.phi, commitment.phi.phi, "C0", style.label(name))
    _line(axes, limit, t_S, "C3", "t$_S$ = ½ log Λ", "-.")
    label = f"t$_S$ (φ = {commitment.level:.3f})"
    _line(axes, limit, commitment.times["t_S_phi"], "C0", label, "--")
    _line(axes, limit, exact_time, "0.35", f"exact {label}", ":")
    for level, what, dash in ((commitment.level, "level of t$_S$", "-"), (floor, "floor", ":")):
        if np.isfinite(level):
            axes.axhline(level, color="0.7", linewidth=0.6, linestyle=dash)
            # Beside the axes, where no point is.
            axes.annotate(
                f"{what}, {level:.3f}",
                (1, level),
                xytext=(3, 0),
                textcoords="offset points",
                xycoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=8,
                color="0.35",
            )
    axes.set(
        xlabel="branch time t (Ornstein-Uhlenbeck)",
        ylabel="probability of the same class, φ",
        xlim=(0, 1.02 * limit),
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return style.trimmed(figure)


def draw_collapse(
    commitment: Commitment,
    exact: Curve,
    t_C: dict[str, Estimate],
    name: str,
) -> Figure:
    """Draws phi_C(t) over that of the exact score, and below it the histogram of t_C_hat.

    Args:
      commitment: of the trajectories.
      exact: phi_C of the exact score.
      t_C: times of the exact score by their labels.
      name: of what was forked.
    """
    limit = float(commitment.phi_C.times.max())
    figure, (top, bottom) = style.new(2, 1, height=6.4)
    bottom.sharex(top)
    _exact(top, exact, limit, "0.35")
    _points(top, commitment.phi_C, commitment.phi_C.phi, "C1", style.label(name))
    for i, (label, estimate) in enumerate(t_C.items()):
        _line(top, limit, estimate, "C2", label, ("--", ":")[i % 2])
        _line(bottom, limit, estimate, "C2", "", ("--", ":")[i % 2])
    top.axhline(COLLAPSE_LEVEL, color="0.7", linewidth=0.6)
    top.set(ylabel="same nearest training point, φ$_C$", xlim=(0, 1.02 * limit))
    if len(commitment.changes):
        bottom.hist(commitment.changes, bins=np.linspace(0, limit, 51), color="C4", alpha=0.7)
        mean = commitment.mean_change.value
        bottom.axvline(mean, color="C4", linewidth=1.5)
        top.axvline(mean, color="C4", linewidth=1.5, label=f"mean of $\\hat t_C$ = {mean:.3g}")
    bottom.set(
        xlabel=style.TIME,
        ylabel="trajectories",
    )
    bottom.set_title(
        f"$\\hat t_C$, the last change of the nearest training point; "
        f"{commitment.unchanged} trajectories have none",
        fontsize=9,
    )
    figure.legend(
        *top.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    return style.trimmed(figure)


def show(axes: Axes, image: np.ndarray, mean: np.ndarray) -> None:
    """Shows an image (height, width, channels), mean removed, kept within [0, 1]."""
    pixels = np.clip(image + mean, 0, 1)
    axes.imshow(np.squeeze(pixels), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def draw_forks(pairs: np.ndarray, times: np.ndarray, mean: np.ndarray) -> Figure:
    """Draws forks: one column per branch time, one row per trunk, the two clones side by side.

    Args:
      pairs: the two ends of each fork (rows, columns, 2, height, width, channels), mean removed.
      times: Ornstein-Uhlenbeck times of the columns, descending.
      mean: per-channel mean (channels,).
    """
    rows, columns = pairs.shape[:2]
    between = np.ones((rows, columns, pairs.shape[3], 1, pairs.shape[5]))
    side_by_side = np.concatenate([pairs[:, :, 0], between, pairs[:, :, 1]], axis=3)
    figure, grid = style.new(rows, columns, width=1.15 * columns, height=0.6 * rows + 0.5)
    grid = np.asarray(grid).reshape(rows, columns)
    for j, t in enumerate(times):
        for i in range(rows):
            show(grid[i, j], side_by_side[i, j], mean)
        grid[0, j].set_title(f"t = {t:.2f}", fontsize=8)
    return style.trimmed(figure)


def draw_neighbours(
    samples: np.ndarray,
    points: np.ndarray,
    ratio: np.ndarray,
    mean: np.ndarray,
) -> Figure:
    """Draws samples above their nearest training images, and how near these are.

    Args:
      samples: (columns, height, width, channels), mean removed.
      points: the nearest training image of each, the same shape.
      ratio: distance to the nearest over that to the second nearest (columns,).
      mean: per-channel mean (channels,).
    """
    columns = len(samples)
    figure, grid = style.new(2, columns, width=0.8 * columns, height=2.2)
    grid = np.asarray(grid).reshape(2, columns)
    for j in range(columns):
        show(grid[0, j], samples[j], mean)
        show(grid[1, j], points[j], mean)
        grid[0, j].set_title(f"{ratio[j]:.2f}", fontsize=8)
    return style.trimmed(figure)
