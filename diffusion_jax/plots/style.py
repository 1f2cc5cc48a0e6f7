"""What all figures share: no display and no global state, two spines, one resolution."""

import io
from pathlib import Path
from typing import IO, Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from diffusion_jax.runtime.files import writing
from diffusion_jax.runtime.text import shown

# Characters at either end of a long name, which would leave its axes no room.
_SHOWN = 16
# What a time axis is called that runs from data to noise.
TIME = "← backward process     time t (Ornstein-Uhlenbeck)"


class _Figure(Figure):
    """A figure that notebooks show by itself, whether they use pyplot or not."""

    def _repr_png_(self) -> bytes:
        return png(self)


def new(rows: int = 1, columns: int = 1, width: float = 6, height: float = 4) -> tuple[Figure, Any]:
    """A figure of the given size in inches and its axes (an array where there are several)."""
    figure = blank(width, height)
    return figure, figure.subplots(rows, columns)


def blank(width: float, height: float) -> Figure:
    """A figure without axes, for grids of unequal parts."""
    return _Figure(figsize=(width, height), layout="constrained")


def trimmed(figure: Figure) -> Figure:
    """The figure without its upper and right spines."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def label(name: str) -> str:
    """A name that others gave, as figures show it: to the letter, never as mathematics.

    What the figures' font lacks is escaped like what is not printable, so that two names stay two.
    Of a long name the beginning and the end are shown.
    """
    letters = get_font(findfont(FontProperties())).get_charmap()
    text = shown(name, lambda each: each.isprintable() and ord(each) in letters)
    if len(text) > 2 * _SHOWN + 1:
        text = f"{text[:_SHOWN]}…{text[-_SHOWN:]}"
    hidden = text.startswith("_")  # from legends, where it has no space before it
    return " " * hidden + text.replace("$", r"\$")


def _write(figure: Figure, file: Path | IO[bytes]) -> None:
    figure.savefig(file, dpi=150, format="png")


def png(figure: Figure) -> bytes:
    """The bytes of a figure as a PNG."""
    file = io.BytesIO()
    _write(figure, file)
    return file.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG.

    Raises:
      UserError: it cannot be written.
    """
    with writing(path) as partial:
        _write(figure, partial)
