"""Pages that hold a data set, and a browser that opens them; for the tests of the explorer."""

import base64
from contextlib import contextmanager
from functools import cache
from importlib import resources

import numpy as np
from sklearn.datasets import load_digits

from diffusion_jax import study
from diffusion_jax.explorer import mailed

CHROMIUM = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}


@contextmanager
def chromium():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()


@cache
def digits(count=100, classes=2):
    """The first 8 x 8 digits of scikit-learn of the first classes, uint8, and their labels."""
    found = load_digits()
    chosen = np.flatnonzero(found.target < classes)[:count]
    pixels = np.rint(found.images[chosen] * (255 / 16)).astype(np.uint8)
    return pixels[..., None], found.target[chosen]


@cache
def digits_study(count=100, classes=2):
    images, labels = digits(count, classes)
    return study.analyse(images, labels, accuracy=0.02, name="digits")


def module(name):
    text = (resources.files("diffusion_jax.explorer") / "page" / name).read_text("utf-8")
    return "data:text/javascript;base64," + base64.b64encode(text.encode()).decode()


def bare(found, **options):
    """A page of the data, the worker and the source of numbers alone, which is `window.source`."""
    return (
        f"<!doctype html><meta charset=utf-8>{mailed.carried(found, **options)}"
        f'<script type="module">import {{makeSource}} from "{module("local.js")}";'
        "window.source = makeSource(); window.model = (await source.models())[0].id;</script>"
    )


def opened(browser, text):
    """A page with this text, once its source is there."""
    page = browser.new_page()
    page.set_content(text)
    page.wait_for_function("window.model !== undefined")
    return page
