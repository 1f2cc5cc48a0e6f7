"""Forks of one backward trajectory above phi and phi_C, on one axis of time: the three regimes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import FancyArrowPatch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, NullLocator

from diffusion_jax.plots import style
from diffusion_jax.regimes.curves import Curve

SHADES = {"I": "#dbe8f2", "II": "#f5ecd0", "III": "#f2d5d0"}
CLASS_COLORS = ("#7b3294", "#1b7837")
_WIDTH, _HEIGHT, _DPI = 1600, 1080, 150
# In pixels from the left and from the top: the axis of time, the rows of images, the curves.
_LEFT, _RIGHT, _END = 105, 1415, 1508
_NAMES, _TRUNK, _MEANS, _CLONES, _WORDS = 40, 132, 250, 456, 548
_TOP, _BOTTOM = 598, 966
_SIDE = 108
_PHI_C = "#b8480a"


@dataclass(frozen=True)
class Trunk:
    """A trajectory and the clones that leave it.

    Attributes:
      times: of the states shown, descending (W,).
      states: the trajectory's x_t at these times (W, height, width).
      means: the denoiser's E[a | x_t] of these states, in [0, 1] (W, height, width).
      end: where it ends, in [0, 1] (height, width).
      forks: times at which clones leave, descending, each one of `times` (B,).
      clones: where they end, in [0, 1] (B, clones, height, width).
      classes: of the clones' ends (B, clones).
    """

    times: np.ndarray
    states: np.ndarray
    means: np.ndarray
    end: np.ndarray
    forks: np.ndarray
    clones: np.ndarray
    classes: np.ndarray


def draw_forks(
    trunk: Trunk,
    phi: Curve,
    phi_C: Curve,
    t_S: float,
    t_C: float,
    limits: tuple[float, float],
    outcomes: Sequence[str],
) -> Figure:
    """Draws a trunk, where its clones end, and below phi and phi_C, with the regimes shaded.

    Time runs as the backward process does, from noise on the left to data on the right.

    Args:
      trunk: see `Trunk`; one fork in each regime.
      phi: probability that two clones end in one class.
      phi_C: probability that they end on one training image.
      t_S: speciation time.
      t_C: collapse time, less than t_S.
      limits: least and largest time shown.
      outcomes: what the clones of each fork have in common, in words.
    """
    figure = style.blank(_WIDTH / _DPI, _HEIGHT / _DPI)
    figure.set_layout_engine("none")
    whole = figure.add_axes((0, 0, 1, 1))
    whole.set(xlim=(0, _WIDTH), ylim=(_HEIGHT, 0))
    whole.set_axis_off()
    _regimes(whole, limits, t_S, t_C)
    _trunk(whole, trunk, limits)
    for time, ends, classes, words in zip(
        trunk.forks, trunk.clones, trunk.classes, outcomes, strict=True
    ):
        _clones(whole, _place(time, limits), ends, classes, words)
    box = (_LEFT, _HEIGHT - _BOTTOM, _RIGHT - _LEFT, _BOTTOM - _TOP)
    left, bottom, width, height = (
        value / size for value, size in zip(box, (_WIDTH, _HEIGHT) * 2, strict=True)
    )
    axes = figure.add_axes((left, bottom, width, height), facecolor="none")
    _curves(axes, phi, phi_C, limits, t_S, t_C)
    return figure


def _place(time: float, limits: tuple[float, float]) -> float:
    """Pixels from the left: the logarithm of time runs from right to left."""
    low, high = np.log(limits)
    return float(_RIGHT - (_RIGHT - _LEFT) * (np.log(time) - low) / (high - low))


def _regimes(axes: Axes, limits: tuple[float, float], t_S: float, t_C: float) -> None:
    edges = [_LEFT, _place(t_S, limits), _place(t_C, limits), _RIGHT]
    names = ("noise", "classes", "collapse")
    for (number, color), name, left, right in zip(
        SHADES.items(), names, edges, edges[1:], strict=False
    ):
        axes.fill_between([left, right], 8, _BOTTOM, color=color, linewidth=0, zorder=0)
        where = ((left + right) / 2, _NAMES)
        axes.annotate(
            f"{number}: {name}", where, ha="center", va="center", fontsize=19, weight="bold"
        )
    for edge in edges[1:-1]:
        axes.plot([edge, edge], [8, _BOTTOM], color="0.25", linewidth=1.4, dashes=(5, 3), zorder=1)


def _image(axes: Axes, x: float, y: float, pixels: np.ndarray, color: str) -> None:
    zoom = _SIDE / pixels.shape[0] / _DPI * 72
    picture = OffsetImage(
        np.clip(pixels, 0, 1), zoom=zoom, cmap="gray", norm=Normalize(0, 1), interpolation="nearest"
    )
    frame = {"edgecolor": color, "linewidth": 2.2, "facecolor": "white"}
    axes.add_artist(AnnotationBbox(picture, (x, y), pad=0, bboxprops=frame, zorder=5))


def _grey(state: np.ndarray) -> np.ndarray:
    """A noisy image in grey levels of its own."""
    low, high = np.percentile(state, [1, 99])
    return np.asarray((state - low) / (high - low))


def _trunk(axes: Axes, trunk: Trunk, limits: tuple[float, float]) -> None:
    line = FancyArrowPatch(
        (_LEFT, _TRUNK),
        (_END - _SIDE / 2, _TRUNK),
        arrowstyle="-|>",
        mutation_scale=22,
        color="0.25",
        linewidth=2.2,
        shrinkA=0,
    )
    axes.add_patch(line)
    for time, state, mean in zip(trunk.times, trunk.states, trunk.means, strict=True):
        _image(axes, _place(time, limits), _TRUNK, _grey(state), "0.25")
        _image(axes, _place(time, limits), _MEANS, mean, "0.25")
    _image(axes, _END, _TRUNK, trunk.end, "0.25")
    for y, words in ((_TRUNK, "x$_t$"), (_MEANS, "best\nguess"), (_CLONES, "clones\nend in")):
        axes.annotate(words, (_LEFT / 2, y), ha="center", va="center", fontsize=13)
    axes.annotate("sample", (_END, _TRUNK - 66), ha="center", fontsize=13)


def _clones(axes: Axes, x: float, ends: np.ndarray, classes: np.ndarray, words: str) -> None:
    """Curves from the fork down to the ends, in the colour of the class."""
    step = _SIDE + 6
    top, bottom = _MEANS + _SIDE / 2, _CLONES - _SIDE / 2
    middle = (top + bottom) / 2
    for i, (end, label) in enumerate(zip(ends, classes, strict=True)):
        to = x + step * (i - (len(ends) - 1) / 2)
        color = CLASS_COLORS[int(label)]
        curve = Path([(x, top), (x, middle + 20), (to, middle - 20), (to, bottom)], [1, 4, 4, 4])
        axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=color, linewidth=3, zorder=2))
        _image(axes, to, _CLONES, end, color)
    axes.annotate(words, (x, _WORDS), ha="center", va="center", fontsize=13)


def _curves(
    axes: Axes, phi: Curve, phi_C: Curve, limits: tuple[float, float], t_S: float, t_C: float
) -> None:
    for curve, color in ((phi, "C0"), (phi_C, _PHI_C)):
        axes.plot(curve.times, curve.mean, color=color, linewidth=3.2)
    axes.set(xscale="log", xlim=limits[::-1], ylim=(0, 1.04), yticks=(0, 0.5, 1))
    axes.set_yticklabels(["0", "½", "1"])
    axes.tick_params(labelsize=14)
    ticks = [time for time in (0.2, 0.5, 1, 2, 5) if limits[0] <= time <= limits[1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("time t: the backward process runs from left to right", fontsize=14)
    for name, time in (("t$_S$", t_S), ("t$_C$", t_C)):
        axes.annotate(
            f"{name} = {time:.1f}",
            (time, 0.29),
            (8, 0),
            textcoords="offset points",
            fontsize=16,
            weight="bold",
        )
    for name, place, color in (
        ("φ: two clones end\nin one class", (2.45, 0.8), "C0"),
        ("φ$_C$: two clones end\non one training image", (0.362, 0.07), _PHI_C),
    ):
        axes.annotate(name, place, fontsize=14, color=color, linespacing=1.3)
    axes.spines[["top", "right"]].set_visible(False)
