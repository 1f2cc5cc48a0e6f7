"""The documentation's pages as GitHub reads them: their code, spans of code, links and anchors."""

import re
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
READER = MarkdownIt("commonmark").enable("table")
# A fence without a language shows commands; output and drawings carry the language `text`.
SHELL = ("", "sh", "bash", "console")


@dataclass
class Page:
    """What a page holds: (line, language, text) of code, (line, text) of spans and links."""

    code: list[tuple[int, str, str]] = field(default_factory=list)
    spans: list[tuple[int, str]] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)


def paths():
    """The pages, from the root: README, CONTRIBUTING and all below docs."""
    found = ["README.md", "CONTRIBUTING.md"]
    return found + sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))


@cache
def page(path):
    """The page at a path from the root."""
    return read((ROOT / path).read_text())


def read(text):
    """The page that a text is."""
    found, tokens = Page(), READER.parse(text)
    for token in tokens:
        line = token.map[0] + 1 if token.map else 0
        if token.type == "fence":
            found.code.append((line, token.info.partition(" ")[0], token.content))
        elif token.type == "html_block":
            _read_html(found, line, token.content)
        for child in token.children or ():
            if child.type == "code_inline":
                found.spans.append((line, child.content))
            elif child.type == "html_inline":
                _read_html(found, line, child.content)
            elif target := child.attrGet("href") or child.attrGet("src"):
                found.links.append((line, target))
    for before, heading in pairwise(tokens):
        if before.type == "heading_open":
            plain = "".join(each.content for each in heading.children)
            found.anchors.add(_new_anchor(plain, found.anchors))
    return found


def _read_html(found, line, html):
    found.links += [(line, target) for target in re.findall(r'\b(?:href|src)="([^"]*)"', html)]
    found.anchors |= set(re.findall(r'\b(?:id|name)="([^"]*)"', html))


def _new_anchor(heading, taken):
    """GitHub's: small letters, hyphens for spaces, without punctuation; numbered when repeated."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
    numbered = (f"{plain}-{number}" for number in range(1, 1000))
    return plain if plain not in taken else next(each for each in numbered if each not in taken)
