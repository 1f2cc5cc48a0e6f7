"""Every number in README's tables, and in those that pages copy, is in the file that it names."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.]*\d)")


def interval(found, key):
    each = found[key]
    return [f"{each[part]:.3f}" for part in ("value", "low", "high")]


def medians(found, name):
    ratio = found["ratios"][name]
    return [f"{each:.2f}" for each in (ratio["median"], *ratio["interval"])]


# What the row is of, and its numbers as the file has them.
ROWS = {
    "t_S of 1 000 ones and eights": lambda found: interval(found, "t_S_phi"),
    "the same from 1/2 log Lambda": lambda found: interval(found, "t_S_spectrum"),
    "t_C, where phi_C": lambda found: interval(found, "t_C_phi"),
    "t_C, where the [excess entropy]": lambda found: interval(found, "t_C_entropy"),
    "against PyTorch, output": lambda found: [
        f"{found['errors'][dtype]['whole model']['output']:.1e}" for dtype in ("float64", "float32")
    ],
    "every gradient": lambda found: [
        f"{found['errors'][dtype]['whole model']['gradient']:.1e}"
        for dtype in ("float64", "float32")
    ],
    "trainings killed": lambda found: [str(sum(found["kills"].values())), found["lost"]],
    "a train step": lambda found: medians(found, "train_32"),
}


def rows(page):
    """The cells of each row of a page's tables, links as their files."""
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


MEASURED = [cells for cells in rows("README.md") if ".json" in cells[-1]]


@pytest.mark.parametrize("cells", MEASURED, ids=lambda cells: cells[0])
def test_a_row_has_the_numbers_of_its_file(cells):
    what, result, link = cells
    (file,) = re.findall(r"\]\((.*?)\)", link)
    (key,) = [key for key in ROWS if key in what]
    expected = ROWS[key](json.loads((ROOT / file).read_text()))
    assert re.findall(NUMBER.pattern + "|nothing", result.replace("95 %", "")) == expected


def test_every_row_is_compared_and_no_other_table_has_numbers():
    assert len(MEASURED) == len(ROWS)
    others = [cells for cells in rows("README.md") if cells not in MEASURED]
    names = re.compile(r"\(.*?\)|CIFAR-10")
    assert not [cells for cells in others if NUMBER.search(names.sub("", cells[1]))]


def test_the_guides_table_is_the_files():
    found = json.loads((ROOT / "docs" / "results" / "mnist" / "regimes.json").read_text())
    wanted = re.compile(r"Lambda|t_[SC]")
    shown = [cells for cells in rows("docs/guides/images.md") if wanted.match(cells[0])]
    keys = ("Lambda", "t_S_spectrum", "t_S_phi", "t_C_entropy", "t_C_phi")
    assert [NUMBER.findall(" ".join(cells[2:])) for cells in shown] == [
        interval(found, key) for key in keys
    ]


def test_the_parity_table_is_the_files():
    found = json.loads((ROOT / "docs" / "results" / "parity" / "parity.json").read_text())
    shown = {cells[0]: cells[1:] for cells in rows("docs/results/parity/README.md")}
    for place, dtype in enumerate(("float32", "float64")):
        errors = found["errors"][dtype]
        whole = errors["whole model"]
        blocks = [each for name, each in errors.items() if "output" in each and each is not whole]
        expected = {
            "blocks, output": max(each["output"] for each in blocks),
            "blocks, gradients": max(each["gradient"] for each in blocks),
            "whole model, output": whole["output"],
            "whole model, largest error of a gradient": whole["gradient"],
            "loss, largest error": max(each["loss"] for each in (*blocks, whole)),
            "200 updates, largest error of a loss": errors["200 updates on digits"]["training"],
            "50-step ancestral chain": errors["50-step ancestral chain"]["chain"],
        }
        assert len(blocks) > 5
        assert {name: float(shown[name][place]) for name in expected} == {
            name: float(f"{value:.1e}") for name, value in expected.items()
        }
        assert all(errors["whole model"][kind] < found["bounds"][dtype][kind] for kind in whole)
