"""Figures that explain, for readers to whom the subject is new."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_jax.plots import style
from diffusion_jax.plots.regimes import log_time_axis

_SIDES = ("#7b3294", "#1b7837")


def _show(axes: Axes, pixels: np.ndarray, noisy: bool = False) -> None:
    """An image without axes; of a noisy one, grey levels of its own."""
    low, high = np.percentile(pixels, [1, 99]) if noisy else (0, 1)
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _label(axes: Axes, words: str) -> None:
    """What a row of images is, beside the first of them."""
    axes.set_ylabel(words, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)


def draw_noising(times: np.ndarray, states: np.ndarray, means: np.ndarray) -> Figure:
    """Draws an image on its way into noise, and what a denoiser makes of it again.

    Args:
      times: increasing (T,); 0 is the image itself.
      states: x_t (T, height, width).
      means: the denoiser's E[a | x_t], in [0, 1] (T, height, width).
    """
    figure, grid = style.new(2, len(times), width=1.2 * len(times) + 0.6, height=2.9)
    for column, time, state, mean in zip(grid.T, times, states, means, strict=True):
        _show(column[0], state, noisy=time > 0)
        _show(column[1], mean)
        column[0].set_title(f"t = {time:g}", fontsize=12)
    for axes, words in zip(grid[:, 0], ("x$_t$", "E[a | x$_t$]"), strict=True):
        _label(axes, words)
    return figure


def draw_clocks(time: np.ndarray, marks: Mapping[str, float]) -> Figure:
    """Draws the time of each step, and how much signal and noise are left there.

    Args:
      time: t_s of a schedule's steps (L,).
      marks: times by their names, which both panels show.
    """
    figure, (left, right) = style.new(1, 2, width=9, height=3.6)
    steps = np.arange(len(time))
    left.plot(steps, time, "0.2", linewidth=2)
    left.set(xlabel="step s", ylabel="time t", ylim=(0, None))
    right.plot(steps, np.exp(-time), "C0", linewidth=2, label="signal, e$^{-t}$")
    right.plot(steps, np.sqrt(-np.expm1(-2 * time)), "C1", linewidth=2, label="noise, √Δ$_t$")
    right.set(xlabel="step s", ylabel="amplitude", ylim=(0, 1.05))
    right.legend(frameon=False, loc="center right")
    for (name, at), color in zip(marks.items(), ("C3", "C4"), strict=False):
        step = float(np.interp(at, time, steps))
        left.plot([0, step, step], [at, at, 0], color=color, linestyle="--", linewidth=1)
        left.annotate(f"{name}: step {step:.0f}", (8, at + 0.08), color=color)
        right.axvline(step, color=color, linestyle="--", linewidth=1)
        right.annotate(name, (step + 8, 0.02), color=color)
    return style.trimmed(figure)


def draw_choice(
    times: np.ndarray,
    paths: np.ndarray,
    potentials: Mapping[float, tuple[np.ndarray, np.ndarray]],
    t_S: float,
) -> Figure:
    """Draws backward paths that choose one of two sides, and the potential that makes them.

    Args:
      times: of the paths, descending (T,).
      paths: places along the line between the classes' centres (N, T).
      potentials: at some times, descending, places q and V(q).
      t_S: the speciation time.
    """
    figure = style.blank(6.8, 4.4)
    grid = figure.add_gridspec(2, len(potentials), height_ratios=[3, 2])
    upper = figure.add_subplot(grid[0, :])
    for path in paths:
        color = _SIDES[int(path[-1] > 0)]
        upper.plot(times, path, color=color, linewidth=1)
    upper.axvline(t_S, color="0.2", linestyle="--")
    upper.annotate(
        f"t$_S$ = {t_S:.2g}", (t_S, 0.9 * paths.max()), (6, 0), textcoords="offset points"
    )
    log_time_axis(upper, (float(times[-1]), float(times[0])))
    upper.invert_xaxis()
    upper.set(xlabel="time t (Ornstein-Uhlenbeck)", ylabel="x$_t$ between the classes")
    for i, (time, (places, values)) in enumerate(potentials.items()):
        axes = figure.add_subplot(grid[1, i])
        axes.plot(places, values, "0.2", linewidth=2)
        axes.set(title=f"potential at t = {time:.2g}", xlabel="q", yticks=[])
    return style.trimmed(figure)


def draw_posterior(
    times: Sequence[float],
    states: np.ndarray,
    images: np.ndarray,
    weights: np.ndarray,
    effective: np.ndarray,
) -> Figure:
    """Draws which training images an x_t may come from, a line for each time.

    Args:
      times: descending (T,).
      states: x_t (T, height, width).
      images: those of the largest weights, in [0, 1] (T, k, height, width).
      weights: theirs, p(nu | x_t), decreasing (T, k).
      effective: e to the posterior's entropy (T,).
    """
    rows, columns = weights.shape
    figure, grid = style.new(
        rows, columns + 1, width=1.15 * (columns + 1) + 1.6, height=1.32 * rows
    )
    for line, time, state, own, shares, number in zip(
        grid, times, states, images, weights, effective, strict=True
    ):
        _show(line[0], state, noisy=True)
        many = f"{number:.0f}" if number > 9.5 else f"{number:.1f}"
        _label(line[0], f"t = {time:g}\n{many} images")
        for axes, image, share in zip(line[1:], own, shares, strict=True):
            _show(axes, image)
            axes.set_title("< 0.1 %" if share < 1e-3 else f"{100 * share:.1f} %", fontsize=9, pad=2)
    grid[0, 0].set_title("x$_t$", fontsize=9, pad=2)
    return figure


def draw_copies(samples: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draws samples of some denoisers over the training images nearest to them.

    Args:
      samples: by the denoiser's name, samples and their nearest training images, both in [0, 1]
        (k, height, width).
    """
    count = len(next(iter(samples.values()))[0])
    figure, grid = style.new(
        2 * len(samples), count, width=1.05 * count + 1.6, height=2.3 * len(samples)
    )
    for i, (name, pair) in enumerate(samples.items()):
        for axes, rows, words in zip(
            grid[2 * i : 2 * i + 2],
            pair,
            (name, "nearest\ntraining\nimages"),
            strict=True,
        ):
            _label(axes[0], words)
            for each, image in zip(axes, rows, strict=True):
                _show(each, np.clip(image, 0, 1))
    return figure
