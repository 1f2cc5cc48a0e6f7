"""Figures of a training: image grids, losses, the comparison of two frameworks."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from diffusion_jax.plots import style
from diffusion_jax.runtime.files import writing


def save_image_grid(path: Path, images: np.ndarray, mean: np.ndarray) -> None:
    """Writes images as one PNG, about as many rows as columns, on a white ground.

    Args:
      path: the PNG.
      images: (n, height, width, channels), 1 or 3 channels, mean removed; what lies outside [0, 1]
        once the mean is added is clipped.
      mean: per-channel mean (channels,).
    """
    n, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    scale = max(1, 128 // max(height, width))
    pixels = np.round(255 * np.clip(images + mean, 0, 1)).astype(np.uint8)
    pixels = pixels.repeat(scale, 1).repeat(scale, 2)
    gap = 4
    cell = np.array([height * scale + gap, width * scale + gap])
    canvas = np.full((*(cell * (rows, columns) + gap), channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = cell * divmod(i, columns) + gap
        canvas[top : top + height * scale, left : left + width * scale] = image
    with writing(path) as partial:
        Image.fromarray(canvas[..., 0] if channels == 1 else canvas).save(partial, "PNG")


def draw_loss_curve(step: np.ndarray, loss: np.ndarray) -> Figure:
    """Draws the loss of a run against the number of updates, with its running median.

    Args:
      step: numbers of the updates (n,).
      loss: their losses (n,).
    """
    window = max(1, len(loss) // 20)
    median = [np.median(loss[max(0, i - window) : i + window + 1]) for i in range(len(loss))]
    figure, axes = style.new()
    axes.plot(step, loss, color="0.75", linewidth=0.8, label="one update")
    axes.plot(step, median, color="C0", label="running median")
    axes.set(xlabel="update", ylabel="loss (mean squared error of the noise)", yscale="log")
    axes.legend(frameon=False)
    return style.trimmed(figure)


def draw_memorisation(
    step: np.ndarray,
    fraction: np.ndarray,
    ratio: np.ndarray,
    training: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
) -> Figure:
    """Draws the evaluations of a run against the number of updates.

    Args:
      step: updates done before each evaluation (n,).
      fraction: memorised fraction of the samples (n,).
      ratio: median of the nearest distance over the second nearest (n,).
      training: losses on training images (n,) by their bands, named as `evaluation.Band` names
        them; NaN where there is none.
      held_out: losses on held-out images, likewise.
    """
    figure, (top, bottom) = style.new(2, 1, width=7, height=7)
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(training)))
    for band, color in zip(training, colors, strict=True):
        _, lower, upper = band.split("_")
        label = f"above {lower}" if upper == "inf" else f"{lower} to {upper}"
        for losses, line in ((held_out, "-"), (training, "--")):
            if band in losses:
                top.plot(step, losses[band], line, marker=".", color=color, label=label)
                label = "_"
    top.set(ylabel="mean squared error of the noise", yscale="log")
    title = "solid: held out\ndashed: training\n\ntime t"
    beside = {"frameon": False, "loc": "upper left", "bbox_to_anchor": (1, 1)}
    top.legend(title=title, **beside)
    bottom.plot(step, fraction, marker=".", color="C3", label="memorised fraction")
    label = "nearest over second\nnearest, median"
    bottom.plot(step, ratio, marker=".", color="C0", label=label)
    bottom.axhline(1 / 3, color="C0", linestyle=":", label="memorised below")
    bottom.set(xlabel="update", ylabel="of generated samples", ylim=(-0.03, 1.03))
    bottom.sharex(top)
    bottom.legend(**beside)
    return style.trimmed(figure)


def draw_parity_curves(
    losses: dict[str, tuple[np.ndarray, np.ndarray]], bounds: dict[str, float]
) -> Figure:
    """Draws the losses of two frameworks and their relative difference against the updates.

    Args:
      losses: for each float type, the losses in JAX and in PyTorch.
      bounds: for each float type, the largest relative difference allowed.
    """
    figure, (top, bottom) = style.new(2, 1, height=6)
    jax_losses, torch_losses = losses["float32"]
    updates = np.arange(1, len(jax_losses) + 1)
    top.plot(updates, torch_losses, color="C1", linewidth=3, alpha=0.5, label="PyTorch")
    top.plot(updates, jax_losses, color="C0", linewidth=1, label="JAX")
    top.set(ylabel="loss, float32", yscale="log")
    top.sharex(bottom)
    top.legend(frameon=False)
    for color, (name, (a, b)) in zip(("C2", "C3"), losses.items(), strict=True):
        # Equal losses have no place on a logarithmic axis.
        difference = np.maximum(np.abs(a / b - 1), np.finfo(np.float64).eps / 2)
        bottom.plot(updates, difference, ".", markersize=3, color=color, label=name)
        bottom.axhline(bounds[name], color=color, linestyle="--", linewidth=1)
    bottom.set(xlabel="update", ylabel="relative difference", yscale="log")
    bottom.legend(frameon=False, title="dashed: bound", loc=(0.75, 0.3))
    return style.trimmed(figure)
