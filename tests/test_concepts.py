"""The pages of concepts and for developers: their links lead somewhere, and their code runs."""

import re

import jax
import numpy as np
import pytest

from experiments.tools.architecture import ROOT

DOCS = ROOT / "docs"
PAGES = [page for room in ("concepts", "developers") for page in sorted((DOCS / room).glob("*.md"))]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), link
        assert there.is_relative_to(DOCS), link  # the site holds no others
        assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_formulas_are_plain(page):
    """What Markdown would read as its own, in tables or out of them, is not in a formula."""
    for formula in re.findall(r"\$\$?([^$]+)\$\$?", page.read_text()):
        assert not re.search(r"\\[,;!{}_*<]|[<|*]", formula), formula


def test_the_code_of_diffusion_md_runs():
    (block,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "concepts" / "diffusion.md").read_text(), re.DOTALL
    )
    names = {}
    exec(block, names)
    assert abs(float(names["schedule"].time[442]) - 1) < 2e-3
    assert names["x_t"].shape == (50, 8, 8, 1)
    assert abs(float(names["x_t"].std()) - 1) < 0.05
    assert isinstance(names["x_t"], jax.Array)
    points = np.asarray(names["points"])
    distances = np.abs(names["samples"][:, None] - points[None]).max(axis=(2, 3, 4))
    assert distances.min(axis=1).max() < 0.1  # the samples are training images
