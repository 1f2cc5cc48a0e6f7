"""The figures of a data set's regimes: which bands are named, and what the legends say."""

from itertools import pairwise

import numpy as np
import pytest

from diffusion_jax.plots import regimes, style
from diffusion_jax.regimes.curves import Curve, Estimate

TIMES = np.geomspace(0.05, 5, 60)


def curve(mean):
    return Curve(TIMES, mean, np.full_like(mean, 1e-3), np.tile(mean, (2, 1)))


def falling(end, at=0.6):
    return curve(end + (1 - end) / (1 + (TIMES / at) ** 4))


@pytest.fixture
def curves():
    phi_C = falling(0.0, 0.5)
    return {
        "phi": falling(0.5),
        "phi_C": phi_C,
        "excess_entropy": curve(1 - phi_C.mean),
        "effective_points": curve(60 ** (1 - phi_C.mean)),
    }


def at(t_S, t_C=0.5):
    values = {"t_S_phi": t_S, "t_C_phi": t_C, "t_C_entropy": 0.319, "t_S_spectrum": 1.5}
    return {name: Estimate(value, 0.99 * value, 1.01 * value) for name, value in values.items()}


def drawn(curves, times):
    classes = {"a": falling(0.4), "b": falling(0.6)}
    figure = regimes.draw_speciation(curves, classes, times, 0.5, 0.7752)
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize(
    ("t_S", "names"),
    [
        (1.6, ["III: collapse", "II: classes", "I: noise"]),
        (0.62, ["III: collapse", "II", "I: noise"]),
        (0.51, ["III: collapse", "I: noise"]),
        (0.5, ["III: collapse", "I: noise"]),
        (0.4, ["III: collapse", "I: noise"]),
        (np.nan, ["III: collapse"]),
    ],
)
def test_bands_are_shaded_and_named_where_there_is_room(t_S, names, curves):
    figure = drawn(curves, at(t_S))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == names
    extents = [text.get_window_extent() for text in axes.texts]
    assert all(left.x1 < right.x0 for left, right in pairwise(extents))
    bands = [each for each in axes.patches if each.get_zorder() == -2]
    edges = [bands[0].get_x(), *(each.get_x() + each.get_width() for each in bands)]
    left, right = axes.get_xlim()
    expected = [left, 0.5, *([] if np.isnan(t_S) else [t_S] * (t_S > 0.5) + [right])]
    assert edges == pytest.approx(expected)  # and nothing between them is left white
    assert [each.get_x() for each in bands] == pytest.approx(edges[:-1])


def test_the_curves_of_the_classes_are_above_that_of_all(curves):
    (axes,) = drawn(curves, at(1.6)).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    for name in ("from a", "from b"):
        assert lines[name].get_linestyle() == "--"
        assert lines[name].get_zorder() > lines["φ"].get_zorder()


def test_the_legend_has_the_levels_and_the_digits_of_the_table(curves):
    figure = regimes.draw_collapse(curves, at(1.6, t_C=1.105), 60)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert r"$t_C$ ($f^e = 0.12\alpha$) = 0.319" in labels
    assert "$t_C$ (φ$_C$ = ½) = 1.105" in labels
    assert "$t_S$ (φ) = 1.600" in labels


def test_the_time_axis_says_where_the_backward_process_runs(curves):
    (axes,) = drawn(curves, at(1.6)).axes
    assert axes.get_xlabel() == style.TIME
    assert style.TIME.startswith("←")
    assert axes.get_xlim()[0] < axes.get_xlim()[1]
