"""Figures of a training: image grids, losses, the comparison of two frameworks."""

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.plots import style
from diffusion_jax.runtime.files import unwritten, writing

# Pixels of a grid, at most: Pillow opens no more than 89 million without a warning.
_MOST_PIXELS = 2**26
_GAP = 4


def _pixels(images: np.ndarray) -> np.ndarray:
    """Grey levels round(255 x), of x clipped to [0, 1]."""
    return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_images(folder: Path, images: np.ndarray) -> None:
    """Writes images as PNGs, 00000.png and so on, as programs that judge samples read them.

    A value x becomes the grey level round(255 x), once it is clipped to [0, 1]; one channel becomes
    a grey PNG.

    Args:
      folder: holds no other PNGs; it is made if it is missing.
      images: (n, height, width, channels), 1 or 3 channels, in [0, 1]; may be mapped from a file.

    Raises:
      UserError: the folder holds other PNGs, or cannot be written to.
    """
    names = [f"{i:05d}.png" for i in range(len(images))]
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if others := {path.name for path in folder.glob("*.png")} - set(names):
            raise UserError(
                f"{folder} holds {len(others)} PNGs that are none of these {len(images)} images, "
                f"such as {min(others)}: move them away, and run the same command again"
            )
        for name, image in zip(names, images, strict=True):
            path = folder / name
            partial = folder / f"{name}.partial"
            _picture(_pixels(image)).save(partial, "PNG")
            partial.replace(path)
    except OSError as error:
        raise unwritten(path, error) from error


def save_image_grid(path: Path, images: np.ndarray, mean: np.ndarray) -> None:
    """Writes images as one PNG, about as many rows as columns, on a white ground.

    Small ones are enlarged, to 128 pixels at most and the grid to about 1024. Of more images than
    67 million pixels have room for, the first are shown.

    Args:
      path: the PNG.
      images: (n, height, width, channels), 1 or 3 channels, mean removed; what lies outside [0, 1]
        once the mean is added is clipped.
      mean: per-channel mean (channels,).
    """
    _, height, width, channels = images.shape
    most = max(1, math.isqrt(_MOST_PIXELS // ((height + _GAP) * (width + _GAP))))
    images = images[: most**2]
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    side = max(height, width)
    scale = max(1, min(128 // side, 1024 // (columns * side)))
    pixels = _pixels(images + mean).repeat(scale, 1).repeat(scale, 2)
    gap = _GAP
    cell = np.array([height * scale + gap, width * scale + gap])
    canvas = np.full((*(cell * (rows, columns) + gap), channels), 255, np.uint8)
    for i, image in enumerate(pixels):
        top, left = cell * divmod(i, columns) + gap
        canvas[top : top + height * scale, left : left + width * scale] = image
    with writing(path) as partial:
        _picture(canvas).save(partial, "PNG")


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
