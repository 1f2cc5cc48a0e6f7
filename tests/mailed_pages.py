"""Pages that hold a data set, and a browser that opens them; for the tests of the explorer."""

import base64
import json
from functools import cache
from importlib import resources

import numpy as np
from sklearn.datasets import load_digits

from diffusion_jax.data.arrays import image_set
from diffusion_jax.explorer import mailed

# As little of a result.json as the page needs.
RESULT = {
    "Lambda": {"value": 2.0, "low": 1.9, "high": 2.1},
    "t_C_phi": {"value": 0.1, "low": 0.09, "high": 0.11},
    "phi_floor": 0.5,
    "curves": {
        name: {"time": [0.01, 0.1, 1.0], "mean": 3 * [0.5], "low": 3 * [0.4], "high": 3 * [0.6]}
        for name in ("phi", "phi_C", "class_entropy")
    },
}


@cache
def digits(count=100, classes=2):
    """The first 8 x 8 digits of scikit-learn that are of the first classes, as grey levels."""
    found = load_digits()
    chosen = np.flatnonzero(found.target < classes)[:count]
    pixels = np.rint(found.images[chosen] * (255 / 16)).astype(np.uint8)
    return image_set(pixels[..., None], found.target[chosen])


def module(name):
    text = (resources.files("diffusion_jax.explorer") / "page" / name).read_text("utf-8")
    return "data:text/javascript;base64," + base64.b64encode(text.encode()).decode()


def bare(images, name="digits", result=RESULT, **options):
    """A page of the data, the worker and the source of numbers alone, which is `window.source`."""
    imports = json.dumps({"imports": {"elements": module("elements.js")}})
    return (
        f"<!doctype html><meta charset=utf-8>{mailed.carried(images, name, result, **options)}"
        f'<script type="importmap">{imports}</script>'
        f'<script type="module">import {{makeSource}} from "{module("local.js")}";'
        "window.source = makeSource(); window.model = (await source.models())[0].id;</script>"
    )


def opened(browser, images, **options):
    """A page of these images, once its source is there."""
    page = browser.new_page()
    page.set_content(bare(images, **options))
    page.wait_for_function("window.model !== undefined")
    return page
