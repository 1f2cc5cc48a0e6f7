"""A server of this process and pages of it in Chromium, for the tests of the explorer."""

import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from browsers import chromium
from processes import free_port
from servers import quick_regimes, serving

from diffusion_jax.serving import model, opening

CLASSES = ("<i>-m</i>", "+m")  # a name is text, whatever it looks like
AT_REST = "!!window.explorer?.session.trunk?.id && !explorer.worker.busy()"


class Server:
    """A server of the mixture's points on a port of its own, which can be lost and found again."""

    def __init__(self, folder):
        images = replace(opening.mixture_images(), class_names=CLASSES)
        law, names = opening.mixture(), ["mixture", "exact", "gaussian"]
        opened = opening.Opened("mixture", images, None, folder, names, [], law)
        result = quick_regimes(opened)
        schedule = opened.schedule
        self.model = model.make("mixture", images, schedule, names, result, None, None, law)
        self.port = free_port()
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def start(self, token=None):
        self.running = ExitStack()
        served = serving(self.model, token=token, port=self.port)
        _, self.desk = self.running.enter_context(served)

    def stop(self):
        self.running.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("serve"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, server):
    """Opens pages; afterwards none of them has complained, or asked another host for anything."""
    contexts, said = [], []

    def open_page(fragment="calls=40", rest=AT_REST, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: refused(line.text))
        page.on("request", lambda request: foreign(request.url))
        page.goto(f"{server.url}#{fragment}")
        until(page, rest)
        return page

    def refused(line):
        if "Security Policy" in line:
            said.append(line)

    def foreign(url):
        if not url.startswith((server.url, "data:", f"blob:{server.url}")):
            said.append(url)

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def until(page, condition, seconds=30):
    """Waits for an expression to be true, where the page's policy forbids wait_for_function."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(20)


def number_of(page):
    return page.evaluate("explorer.session.number")


def drawn_at_cursor(page):
    """The x_t that is drawn, once it is that of the cursor."""
    until(page, "explorer.at()?.step === explorer.session.step()")
    return np.array(page.evaluate("[...explorer.at().x]"), np.float32)


def fork(page, clones="32", place=12):
    page.evaluate(f"explorer.session.moveTo({place})")
    page.select_option("#clones", clones)
    page.click("#fork")
    until(page, f"explorer.session.shownFork()?.ends?.length === {clones} * 64")
