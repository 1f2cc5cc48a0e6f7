"""What the site is made of: formulas of docstrings, pages of modules, links led and tried."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from latex2mathml.converter import convert

import diffusion_jax as dj
from experiments.tools.pages import assembly, built, notebooks, reference
from experiments.tools.pages.docstrings import typeset
from experiments.tools.pages.formulas import latex

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ("alpha_bar_s = exp(-2 t_s)", r"\bar{\alpha }_{s} = \exp (-2 t_{s})"),
        ("e^-2t/Delta_t^2", r"e^{-2t}/\Delta _{t}^{2}"),
        ("sqrt(1 - beta_s) z", r"\sqrt{1 - \beta _{s}} z"),
        ("sqrt(a + sqrt(b))/2", r"\sqrt{a + \sqrt{b}}/2"),
        ("sum_{i <= s} x_i", r"\sum _{i \le  s} x_{i}"),
        ("E |x_t|^2", r"\mathbb{E} \vert x_{t}\vert ^{2}"),
        ("U_held-out(t) - U(t)", r"U_{\mathrm{held-out}}(t) - U(t)"),
        ("dlambda dt", r"d\lambda  dt"),
        ("logit_nu", r"\mathrm{logit}_{\nu }"),
        ("F^* D~ s_+", r"F^{*} \tilde{D} s_{+}"),
        ("a_mu.m", r"a_{\mu }\cdot m"),
        ("H(p) = 0    (the same point)", r"H(p) = 0 \qquad \text{(the same point)}"),
    ],
)
def test_a_formula_is_read(plain, expected):
    assert latex(plain) == expected
    assert convert(expected).startswith("<math")


@pytest.mark.parametrize(
    "plain", ["the largest of all", "x = {table}[0]", "sqrt(1 - x", "x_", "f(#)"]
)
def test_what_is_no_formula_is_refused(plain):
    with pytest.raises(ValueError, match=r"prose|no formula|not closed|nothing follows"):
        latex(plain)


def docstrings():
    for source in reference.modules():
        for node in ast.walk(ast.parse((ROOT / source).read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                yield source, ast.get_docstring(node) or ""


def test_the_docstrings_formulas_are_typeset():
    """Indented blocks are formulas, except tables of words and code, which stay as they are."""
    made = [typeset(text).split("$$") for _, text in docstrings()]
    formulas = [part.strip() for parts in made for part in parts[1::2]]
    assert len(formulas) > 50
    for formula in formulas:
        assert convert(formula).startswith("<math")
    left = {source for source, text in docstrings() if "```text" in typeset(text)}
    known = {"pictures", "measures", "lipschitz", "novelty", "random_features", "ids", "groups"}
    assert {Path(source).stem for source in left} <= known


def test_text_is_left_alone_and_a_block_becomes_a_formula():
    text = "One line.\n\nThen\n\n    x_t = e^-t a,\n    t > 0\n\nand words.\n"
    expected = "One line.\n\nThen\n\n$$\nx_{t} = e^{-t} a,\n$$\n\n$$\nt > 0\n$$\n\n\nand words."
    assert typeset(text) == expected
    assert typeset("One line.\n\n  no formula, but prose\n") == (
        "One line.\n\n```text\n  no formula, but prose\n```"
    )


def test_every_module_has_a_page_and_every_name_of_the_front_door_an_entry():
    pages = reference.pages()
    modules = [path for path in (ROOT / "diffusion_jax").rglob("*.py") if path.stem[0] != "_"]
    for path in modules:
        page = f"reference/{path.relative_to(ROOT).with_suffix('.md').as_posix()}"
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert f"::: {name}\n" in pages[page]
    assert len(modules) > 150
    for name in dir(dj):
        assert f"[`dj.{name}`][diffusion_jax." in pages["reference/front_door.md"]
    for option in ("--num-samples", "--accuracy", "--learning-rate", "--mean"):
        assert option in pages["reference/commands.md"]


def test_links_are_led_to_pages():
    text = "[a](docs/data.md#fetching) ![b](docs/x.png) [c](CHANGELOG.md) [d](https://e.org/x.md)"
    text += " [e](diffusion_jax/process.py) [f](#start) [g](launch.sh)"
    led = assembly._led(text, "README.md", "index.md")
    assert led == (
        "[a](data.md#fetching) ![b](x.png) [c](changelog.md) [d](https://e.org/x.md)"
        " [e](reference/diffusion_jax/process.md) [f](#start) [g](launch.sh)"
    )
    led = assembly._led("[a](../../README.md#start) [b](n.ipynb)", "docs/a/b.md", "a/b.md")
    assert led == "[a](../index.md#start) [b](n.md)"


def site(tmp_path, body):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.html").write_text('<html><h1 id="there">b</h1></html>')
    (tmp_path / "a.html").write_text(f'<html><p id="here">{body}</p></html>')
    item = {"title": r"The time \(t_S\)", "text": "<code>t</code>" + body, "location": "a.html"}
    (tmp_path / "search.json").write_text(json.dumps({"config": {}, "items": [item]}))
    return tmp_path


def test_formulas_of_pages_are_mathml(tmp_path):
    inline = r'<span class="arithmatex">\(x_t &lt; 1\)</span>'
    block = '<div class="arithmatex">\n\\[\\frac{a}{b}\\]\n</div>'
    built.finish(site(tmp_path, inline + block))
    html = (tmp_path / "a.html").read_text()
    assert "arithmatex" not in html
    assert html.count("<math") == 2
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in html


def test_formulas_that_the_search_shows_are_text(tmp_path):
    inline = r"\(\bar\Delta_{t} \le 1\), \(\frac{1}{2} \log \Lambda\), \(a \cdot e^{-2t}~\pm b\)"
    built.finish(site(tmp_path, inline + "\n\\[\n\\int x\n\\]\nend"))
    (item,) = json.loads((tmp_path / "search.json").read_text())["items"]
    assert item["title"] == "The time t_S"
    assert item["location"] == "a.html"
    assert item["text"] == "<code>t</code>Δ_t ≤ 1, 1/2 log Λ, a cdot e^-2t ± b\n\nend"


@pytest.mark.parametrize(
    ("link", "broken"),
    [
        ("deep/b.html#there", False),
        ("#here", False),
        ("https://e.org/x", False),
        ("deep/b.html#elsewhere", True),
        ("#nowhere", True),
        ("deep/c.html", True),
        ("b.png", True),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path, link, broken):
    found = built.broken_links(site(tmp_path, f'<a href="{link}">x</a>'))
    assert found == ([f"a.html: {link}"] if broken else [])


def test_a_notebook_becomes_a_page(tmp_path):
    """With its code marked as Python, and each figure under a name of its own."""
    path = tmp_path / "small_run.ipynb"
    committed = ROOT / "docs" / "notebooks" / "small_run.ipynb"
    path.write_bytes(committed.read_bytes())
    notebooks.write(path)
    text = path.with_suffix(".md").read_text()
    assert not path.exists()
    cells = nbformat.read(committed, as_version=4).cells
    assert text.count("```python\n") == sum(cell.cell_type == "code" for cell in cells)
    shown = re.findall(r"!\[png\]\((\S+)\)", text)
    assert sorted(shown) == sorted(each.name for each in tmp_path.glob("small_run_*.png"))
    assert len(shown) > 3
