"""The formulas of the pages render on GitHub and on the site."""

import re

import doc_pages
import pytest
from latex2mathml.converter import convert

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)


def formulas(path):
    """Those of a page's text; its code may have dollars of its own."""
    text = (doc_pages.ROOT / path).read_text()
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [display or inline for display, inline in FORMULA.findall(text)]


PATHS = [path for path in doc_pages.paths() if formulas(path)]


@pytest.mark.parametrize("path", PATHS)
def test_formulas_are_plain(path):
    """What Markdown would read as its own is not in them, and the converter knows their macros."""
    for formula in formulas(path):
        assert not re.search(r"\\[,;!{}_*<]|[|*]|<(?! )", formula), formula
        mathml = convert(formula.strip())
        assert "\\" not in mathml, formula


def test_most_pages_that_explain_have_formulas():
    assert {"docs/regimes.md", "docs/concepts/collapse.md", "docs/theories.md"} <= set(PATHS)
    assert sum(len(formulas(path)) for path in PATHS) > 800
