"""Figures that are made and not rendered, whose layout takes longer than most tests."""

from PIL import Image

from diffusion_jax.plots import style


def write_nothing(figure, file):
    """A pixel in place of a figure."""
    Image.new("L", (1, 1)).save(file, "png")


def render_nothing(patch=setattr):
    """From now on, or until a `MonkeyPatch.setattr` is undone."""
    patch(style, "_write", write_nothing)
