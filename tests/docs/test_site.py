"""The site as it is built, in a browser. Slow: it is built first."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from axe_playwright_python import sync_playwright as axe
from browsers import chromium

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
PAGES = (
    *("index.html", "concepts/speciation.html", "concepts/glossary.html", "guides/images.html"),
    *("regimes.html", "results/mnist/index.html", "notebooks/gaussian_mixture.html"),
    *("reference/front_door.html", "reference/diffusion_jax/regimes/posterior.html"),
    *("developers/architecture.html", "explorer/embedded.html"),
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    """Where the site is, which is built for it: strictly, with every link tried."""
    command = [sys.executable, "-m", "experiments.tools.site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing(address, browser, colours):
    page = browser.new_page(color_scheme=colours)
    wrong = {}
    for name in PAGES:
        page.goto(f"{address}/{name}")
        found = axe.Axe().run(page).response["violations"]
        if found:
            wrong[name] = [(each["id"], each["nodes"][0]["html"][:150]) for each in found]
    assert not wrong


@pytest.mark.slow
def test_nothing_is_asked_of_other_sites(address, browser):
    page, others = browser.new_page(), []
    page.on("request", lambda request: others.append(request.url))
    for name in PAGES:
        page.goto(f"{address}/{name}")
    assert [url for url in others if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.slow
def test_a_phone_shows_every_page_in_its_width(address, browser):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    for name in PAGES:
        page.goto(f"{address}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        hidden = page.evaluate(
            """() => [...document.querySelectorAll("main img, main math, main table, main pre")]
                .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
                .filter(e => { for (let p = e; p; p = p.parentElement)
                    if (["auto", "scroll"].includes(getComputedStyle(p).overflowX)) return false;
                    return true; })
                .map(e => e.outerHTML.slice(0, 100))"""
        )
        assert hidden == [], name


@pytest.mark.slow
def test_formulas_are_typeset_and_the_explorer_runs_in_its_page(address, browser):
    raw = [
        path.relative_to(SITE).as_posix()
        for path in SITE.rglob("*.html")
        if re.search(r'class="arithmatex"', path.read_text())
    ]
    assert raw == []
    page = browser.new_page()
    page.goto(f"{address}/explorer/embedded.html")
    frame = page.frame_locator("iframe")
    frame.get_by_role("button", name="Fork here").wait_for(timeout=60_000)


@pytest.mark.slow
def test_a_search_finds_a_name(address, browser):
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    search = page.locator("dialog[aria-label=Search]")
    search.wait_for(state="attached")  # until then letters are the page's own keys
    page.keyboard.press("Control+k")
    search.get_by_role("combobox").fill("speciation")
    search.get_by_role("option").nth(3).wait_for(timeout=30_000)
    assert "Speciation" in search.get_by_role("option").first.inner_text()
