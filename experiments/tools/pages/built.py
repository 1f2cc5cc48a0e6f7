"""What is done to the site's HTML: formulas are typeset, and links are tried."""

import functools
import json
import os
import re
from html import unescape
from html.entities import html5
from pathlib import Path
from urllib.parse import unquote, urldefrag

import lxml.html
from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
# Functions that no bracket follows, after which the converter leaves no space.
_FUNCTION = re.compile(r"(<mi>(?:log|exp|tanh|cosh|ln)</mi>)(?=<m(?!o))")


# The menu's inner lists, which the theme makes landmarks of one name each.
_INNER_MENU = re.compile(
    r'(<nav class="md-nav" data-md-level="[1-9]") aria-labelledby="[^"]*" aria-expanded="[a-z]*"'
)


# A head's cell that is all formula, which is no text to who checks that heads have some.
_ONLY_FORMULA = re.compile(r"<th>\s*(<math(?:(?!</th>).)*</math>)\s*</th>", re.DOTALL)

# A drawing that is wider than a phone, and scrolls by itself.
_DRAWING = re.compile(r'<p>(<img [^>]*src="[^"]*\.svg"[^>]*></p>)')

# Formulas in the search's index, and LaTeX's names in them; the first say how to set what follows.
_SEARCHED = re.compile(r"\\\((.*?)\\\)|\\\[.*?\\\]", re.DOTALL)
_NAME = re.compile(r"\\(?:t?frac|math[a-z]+|bar|hat|quad|qquad|left|right)\b|\\([A-Za-z]+)")


def finish(site: Path) -> None:
    """Typesets formulas as MathML, which browsers know without a script, and mends landmarks.

    Readers of screens are told of one menu, and of no header where a table's corner is empty. What
    scrolls by itself does so with the keyboard too.
    """
    for path in site.rglob("*.html"):
        html = path.read_text()
        html = _FORMULA.sub(lambda found: _mathml(found[2], found[1]), html)
        html = _INNER_MENU.sub(r'\1 role="none"', html)
        html = _ONLY_FORMULA.sub(r"<td><b>\1</b></td>", html)
        html = _DRAWING.sub(r'<p tabindex="0">\1', html)
        path.write_text(html.replace("<th></th>", "<td></td>"))
    index = site / "search.json"
    found = json.loads(index.read_text())
    for item in found["items"]:
        item |= {key: _SEARCHED.sub(_plain, item[key]) for key in ("title", "text")}
    index.write_text(json.dumps(found, ensure_ascii=False))


def _plain(formula: re.Match[str]) -> str:
    """A formula as text, for the lines that the search shows; displayed ones are left out.

    Greek letters and operators stand for their names, where HTML calls them as LaTeX does.
    """

    def letter(name: re.Match[str]) -> str:
        if name[1] is None:
            return ""
        sign = html5.get(f"{name[1]};", "")
        return sign if re.fullmatch("[\u00b1\u0370-\u03ff\u2200-\u22ff]", sign) else f" {name[1]} "

    text = _NAME.sub(letter, formula[1] or "").replace("}{", "/")
    return " ".join(re.sub(r"[{}]|\\(?=\W)", "", text.replace("~", " ")).split())


def _mathml(latex: str, element: str) -> str:
    block = element == "div"
    math = convert(unescape(latex).strip(), display="block" if block else "inline")
    math = _FUNCTION.sub(r'\1<mspace width="0.17em"/>', math)
    return f'<div class="formula" tabindex="0">{math}</div>' if block else math


def broken_links(site: Path) -> list[str]:
    """Links and sources that lead to no file of the site, or to no place in it."""
    trees = {
        str(path): lxml.html.parse(path).getroot()
        for path in site.rglob("*.html")
        if path.name not in ("404.html", "mnist.html")
    }
    places = {path: set(tree.xpath("//@id | //a/@name")) for path, tree in trees.items()}
    there = functools.cache(os.path.exists)
    wrong = []
    for path, tree in trees.items():
        for link in set(tree.xpath("//@href | //@src")):
            target, place = map(unquote, urldefrag(link))
            if re.match("[a-z]+:|//", target):
                continue
            file = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
            if not there(file) or (place and file in places and place not in places[file]):
                wrong.append(f"{os.path.relpath(path, site)}: {link}")
    return sorted(wrong)
