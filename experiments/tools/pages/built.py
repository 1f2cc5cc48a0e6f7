"""What is done to the site's HTML: formulas are typeset, and links are tried."""

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urldefrag

import lxml.html
from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def typeset(site: Path) -> None:
    """Puts MathML, which browsers know without a script, in the place of LaTeX."""
    for path in site.rglob("*.html"):
        html = path.read_text()
        path.write_text(_FORMULA.sub(lambda found: _mathml(found[2], found[1]), html))


def _mathml(latex: str, element: str) -> str:
    block = element == "div"
    math = convert(unescape(latex).strip(), display="block" if block else "inline")
    # A wide formula scrolls by itself, with the keyboard too.
    return f'<div class="formula" tabindex="0">{math}</div>' if block else math


def broken_links(site: Path) -> list[str]:
    """Links and sources that lead to no file of the site, or to no place in it."""
    trees = {
        path.resolve(): lxml.html.parse(path).getroot()
        for path in site.rglob("*.html")
        if "explorer" not in path.parts[-2:]
    }
    places = {path: set(tree.xpath("//@id | //a/@name")) for path, tree in trees.items()}
    wrong = []
    for path, tree in trees.items():
        for link in set(tree.xpath("//@href | //@src")):
            target, place = urldefrag(link)
            if re.match("[a-z]+:|//", target) or path.name == "404.html":
                continue
            there = (path.parent / unquote(target)).resolve() if target else path
            known = places.get(there)
            if not there.exists() or (place and known is not None and unquote(place) not in known):
                wrong.append(f"{path.relative_to(site.resolve())}: {link}")
    return sorted(wrong)
