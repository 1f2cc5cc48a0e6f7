"""Names that others gave, as figures and pages show them: to the letter."""

import os
import warnings
from itertools import combinations

import numpy as np
import pytest

from diffusion_jax.plots import classes, information, page, regimes, style
from diffusion_jax.regimes.class_information import Partition
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.transitions import Regimes

pytestmark = pytest.mark.usefixtures("rendered")

# What is given, and what is seen of it.
NAMES = {
    "$5 to $10": "$5 to $10",
    "_a": "_a",
    r"\$x$ \alpha^2_3 {": r"\$x$ \alpha^2_3 {",
    os.fsdecode(b"caf\xe9\n"): r"caf\xe9\n",
    "猫": r"\u732b",
    "<b>[red]x": "<b>[red]x",
    "x" * 200: "x" * 16 + "…" + "x" * 16,
}


def seen(texts):
    """What is drawn of texts, none of which is mathematics."""
    found = []
    for each in texts:
        text, is_mathematics = each._preprocess_math(each.get_text())
        assert not is_mathematics
        found.append(text.strip())
    return found


@pytest.fixture(autouse=True)
def no_warnings():
    """Of letters that the font lacks, say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("names", [list(NAMES)[:4], list(NAMES)[4:]])
def test_a_legend_shows_names_to_the_letter(names):
    times = np.geomspace(0.1, 10, 20)
    curve = Curve(times, 1 / (1 + times), np.full(20, 0.01), np.zeros((2, 20)))
    named = dict.fromkeys(("t_C_phi", "t_S_phi", "t_S_spectrum"), Estimate(1.0, 0.9, 1.1))
    each = dict.fromkeys(names, curve)
    figure = regimes.draw_speciation({"phi": curve, "phi_C": curve}, each, named, 0.5, 0.7)
    (legend,) = figure.legends
    texts = [text for text in legend.get_texts() if text.get_text().startswith("from")]
    ends = [NAMES[name] for name in names]
    ends = ["from " + "x" * 11 + "…" + "x" * 16 if "…" in end else f"from {end}" for end in ends]
    assert seen(texts) == ends
    style.png(figure)


def test_ticks_show_names_to_the_letter():
    names = tuple(NAMES)
    ends = list(NAMES.values())
    count = len(names)
    pairs = classes.draw_pairs(np.arange(count**2, dtype=float).reshape(count, -1), names, 3.0)
    axes = pairs.axes[0]
    assert seen(axes.get_xticklabels()) == seen(axes.get_yticklabels()) == ends
    tree = np.array([[0, 1, 1.0, 2], [2, 3, 2.0, 2]])[:1]
    estimate = Estimate(1.0, 0.9, 1.1)
    drawn = classes.draw_tree(tree, names[:2], [([0], [1])], [(estimate, estimate)], 0.5)
    left, right = drawn.axes
    assert seen(left.get_xticklabels()) == ends[:2]
    assert seen(right.get_yticklabels()) == [f"{ends[0]} |  {ends[1]}   (1)"]
    style.png(drawn)


def test_the_pairs_of_classes_show_names_to_the_letter():
    """And times that there are not, of one pair or of all."""
    names = tuple(NAMES)[:3]
    times = [Estimate(1.0, 0.9, 1.1), Estimate(2.0, 1.9, 2.1), Estimate(*3 * (np.nan,))]
    for chosen in (times, times[2:] * 3):
        found = [
            Partition(
                ((first,), (second,)),
                np.full(2, 0.5),
                Regimes({}, dict.fromkeys(("t_S_phi", "t_S_rate"), time), {}, 0.5, np.ones(1)),
            )
            for (first, second), time in zip(combinations(names, 2), chosen, strict=True)
        ]
        figure = information.draw_pair_times(tuple(found), names, 1.5)
        axes = figure.axes[0]
        assert seen(axes.get_xticklabels()) == list(NAMES.values())[:3]
        texts = [text.get_text() for text in axes.texts]
        shown = ["(1.00)", "2.00", "-"] if chosen is times else ["-"] * 3
        assert sorted(texts) == sorted(2 * shown)
        style.png(figure)


def test_a_name_alone_is_in_the_legend():
    _, axes = style.new()
    for name in NAMES:
        axes.plot([0, 1], label=style.label(name))
    assert seen(axes.legend().get_texts()) == list(NAMES.values())


def test_a_page_shows_names_to_the_letter(tmp_path):
    path, name = tmp_path / "a.html", os.fsdecode(b"<b>\xe9\x1b\n")
    table = page.Table([name], [[name]])
    page.save(path, name, [page.Paragraph(name), table, page.Picture("a.png", b"", name)])
    text = path.read_text("utf-8")
    assert text.count(r"&lt;b&gt;\xe9\x1b\n") == 7
    assert "<b>" not in text
