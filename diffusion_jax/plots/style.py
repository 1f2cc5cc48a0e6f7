"""What all figures share: no display and no global state, two spines, one resolution."""

import io
from pathlib import Path
from typing import IO, Any

from matplotlib.figure import Figure

from diffusion_jax.runtime.files import writing


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
