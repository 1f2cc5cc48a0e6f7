"""Every link in the documentation leads to something: a file, and a heading in it."""

import re
from urllib.parse import unquote, urlsplit

import doc_pages
import pytest
from doc_pages import ROOT

PATHS = doc_pages.paths()


def broken(path, links):
    """The links of the page at a path that lead nowhere, each with its line and why."""
    found = []
    for line, target in links:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        place = ROOT / path
        if parts.path:
            place = (place.parent / unquote(parts.path)).resolve()
        if not (place.is_relative_to(ROOT) and place.exists()):
            found.append(f"{path}:{line}: {target}: there is no such file")
        elif place.suffix == ".md":
            anchors = doc_pages.page(str(place.relative_to(ROOT))).anchors
            if parts.fragment and unquote(parts.fragment) not in anchors:
                found.append(f"{path}:{line}: {target}: there is no such heading")
    return found


@pytest.mark.parametrize("path", PATHS)
def test_links_lead_to_a_file_and_a_heading(path):
    wrong = broken(path, doc_pages.page(path).links)
    assert not wrong


@pytest.mark.parametrize("path", PATHS)
def test_pages_that_are_named_without_a_link_exist(path):
    named = re.findall(r"(?<![\w/.])(?:docs|tests|\.ci)/[\w./-]*\w", (ROOT / path).read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_what_is_no_link_or_leads_nowhere_is_told():
    text = (
        "# A `name`, and: (more)\n## Same\n## Same\n[a](#a-name-and-more) [b](#same-1) [c](#same-2)"
        "\n[d](docs/nowhere.md) [e](docs) ![f](none.png) `[g](h)` [i](https://example.org/j)\n"
        '\n<img src="lost.png">\n\n```\n[k](l)\n```\n[m](../outside)\n\n[n]: docs/lost.md\n[n]\n'
    )
    found = doc_pages.read(text)
    assert found.anchors == {"a-name-and-more", "same", "same-1"}
    # Anchors are looked up in the file that a link names, which README.md is here.
    links = [each for each in found.links if not each[1].startswith("#")]
    wrong = [message.split(": ")[1] for message in broken("README.md", links)]
    assert wrong == ["docs/nowhere.md", "none.png", "lost.png", "../outside", "docs/lost.md"]
    assert broken("README.md", [(1, "#no-such-heading")])
    assert not broken("README.md", [(1, "#start")])
