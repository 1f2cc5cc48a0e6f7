"""One page to mail: the explorer with a data set inside it, which opens from the disk.

The page and its modules are those that are served; here they are written into the one file, and the
numbers come from a worker in the browser in place of a server. The exact score is that of the
images that travel with the page, the Gaussian one that of the whole data set.
"""

import base64
import gzip
import html
import json
import re
from importlib import resources
from typing import Any

import numpy as np

from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.names import slug
from diffusion_jax.denoisers import GaussianDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import analysis
from diffusion_jax.regimes.spectrum import signed
from diffusion_jax.runtime.files import plain
from diffusion_jax.runtime.text import shown
from diffusion_jax.schedule import NoiseSchedule, linear_schedule
from diffusion_jax.study import Study, describe

NAME = "explorer.html"
# Of base64, for the images that travel with a page; and of their values, which a call of the exact
# score runs through twice.
MOST_BYTES, MOST_VALUES = 5_000_000, 2**24
NUM_STEPS = 1000
MOST_MODES = 128
MOST_CLONES = 128
# What the page draws of a study.
_CURVES = ("phi", "phi_C", "class_entropy")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data: blob:; worker-src blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
)
_WORKER = ("noise.js", "scores.js", "engine.js")  # one classic script


def page(study: Study, most_bytes: int = MOST_BYTES) -> str:
    """The explorer of a data set as one HTML page that needs no other file and no connection.

    Args:
      study: the data set and its regimes.
      most_bytes: see `page_of`, as for the errors.

    Raises:
      UserError: a study with a symmetry, whose score the page does not compute.
    """
    if study.analysis.symmetry is not None:
        raise UserError(
            "the page to mail computes the score of the images alone, not that with the symmetry "
            f"{study.analysis.symmetry.name}: leave out --explorer or --symmetry"
        )
    return page_of(study.images, study.name, analysis.to_json(study.analysis), most_bytes)


def page_of(
    images: ImageSet, name: str, result: dict[str, Any], most_bytes: int = MOST_BYTES
) -> str:
    """The page from a data set and what its result.json holds.

    Args:
      images: the data set.
      name: of the data set.
      result: of its regimes, see `regimes.analysis.to_json`.
      most_bytes: what the images may take, in base64; of more, a part travels with the page, the
        first of each class in proportion, and the page says so.

    Raises:
      UserError: images so large that not one of each class is within the limit.
    """
    held = carried(images, name, result, most_bytes)
    return _assembled(_file("index.html"), held, html.escape(shown(name)))


def carried(
    images: ImageSet, name: str, result: dict[str, Any], most_bytes: int = MOST_BYTES
) -> str:
    """The elements that hold the data and the worker's text; see `page_of`."""
    worker = "\n".join(_file(part) for part in _WORKER)
    if "</script" in worker:
        raise ValueError("the worker's text would end the element that it is in")
    content = json.dumps(plain(_content(images, name, result, most_bytes)), allow_nan=False)
    content = content.replace("<", "\\u003c")  # so that no name in it can end the element
    return (
        f'<script type="application/json" id="data">{content}</script>\n'
        f'<script type="text/plain" id="engine">{worker}</script>\n'
    )


def _file(name: str) -> str:
    return (resources.files("diffusion_jax.explorer") / "page" / name).read_text("utf-8")


def _as_url(name: str) -> str:
    """A module as an address that holds it."""
    return "data:text/javascript;base64," + base64.b64encode(_file(name).encode()).decode()


def _assembled(text: str, carried: str, title: str) -> str:
    """The served page with all that it refers to written into it."""
    found = re.search(r'(<script type="importmap">)(.*?)(</script>)', text, re.DOTALL)
    assert found is not None, "index.html has an import map"
    imports = json.loads(found[2])["imports"]
    names = {name: path.removeprefix("/page/") for name, path in imports.items()}
    urls = {name: _as_url(path) for name, path in names.items() if name != "remote"}
    urls["local"] = _as_url("local.js")
    text = text.replace(found[2], json.dumps({"imports": urls}))
    text = re.sub(
        r'<link rel="stylesheet" href="/page/([^"]+)">',
        lambda link: f"<style>\n{_file(link[1])}</style>",
        text,
    )
    text = re.sub(
        r'<script type="module" src="/page/([^"]+)">',
        lambda script: f'<script type="module" src="{_as_url(script[1])}">',
        text,
    )
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    text = text.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}', 1)
    text = re.sub("<title>.*?</title>", lambda _: f"<title>Explorer of {title}</title>", text)
    assert '"/page/' not in text, "every file of the page is written into it"
    # What the page starts with needs the data, which come before it.
    return text.replace('<script type="module"', f'{carried}<script type="module"', 1)


def _base64(array: np.ndarray) -> str:
    """Little-endian numbers in C order."""
    return base64.b64encode(_bytes(array)).decode()


def _bytes(array: np.ndarray) -> bytes:
    little = array.dtype.newbyteorder("<")
    return np.ascontiguousarray(array, little).tobytes()


def _zipped(images: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(_bytes(images), 9, mtime=0)).decode()


def first_of_each(labels: np.ndarray | None, n: int, count: int) -> np.ndarray:
    """The first images of each class, about `count` in proportion and one of each at least.

    Args:
      labels: of the images (n,), or None.
      n: number of images.
      count: how many are wanted, at most n.

    Returns:
      Their indices, increasing.
    """
    if labels is None:
        return np.arange(count)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return np.sort(np.concatenate([part[: max(1, len(part) * count // n)] for part in parts]))


def _dtype(images: ImageSet) -> np.dtype:
    return np.dtype(np.uint8 if images.images.dtype == np.uint8 else np.float32)


def _travelling(images: ImageSet, most_bytes: int) -> tuple[np.ndarray, str]:
    """The indices of the images that travel, and these in base64."""
    n, classes = len(images.images), max(1, len(images.class_names))
    pixels = images.images.astype(_dtype(images), copy=False)
    # How small they get is known from a few, so that a large set is not compressed as a whole.
    few = first_of_each(images.labels, n, min(n, 500))
    fitting = int(1.1 * most_bytes * len(few) / len(_zipped(pixels[few])))
    count = min(n, max(classes, min(fitting, MOST_VALUES // pixels[0].size)))
    while True:
        chosen = first_of_each(images.labels, n, count)
        text = _zipped(pixels[chosen])
        if len(text) <= most_bytes:
            return chosen, text
        if count <= classes:
            raise UserError(
                f"an image of each class takes {len(text)} bytes, more than the {most_bytes} that "
                f"may travel with a page: ask for smaller images"
            )
        count = max(classes, min(int(0.98 * count * most_bytes / len(text)), count - 1))


def _content(
    images: ImageSet, name: str, result: dict[str, Any], most_bytes: int
) -> dict[str, Any]:
    """All that the page holds, see `local.js`."""
    schedule = linear_schedule(NUM_STEPS)
    classed = images.labels is not None and len(images.class_names) > 1
    chosen, text = _travelling(images, most_bytes)
    points = images.centred()
    fitting = MOST_BYTES // len(_base64(points[0]))  # of large images the modes too would be much
    rank = max(1, min(MOST_MODES, len(points) - 1, points[0].size, fitting))
    gaussian = GaussianDenoiser.fit(schedule, points, rank=rank, floor="rest")
    num_modes, regimes = len(gaussian.modes), _regimes(result, classed)
    return {
        "model": _model(images, name, regimes, schedule, len(chosen), num_modes, classed),
        "regimes": regimes,
        "about": _about(len(images.images), len(chosen), num_modes, classed),
        "images": {"dtype": _dtype(images).name, "data": text},
        "labels": images.labels[chosen] if classed and images.labels is not None else None,
        "schedule": {
            table: _base64(np.asarray(getattr(schedule, table), np.float32))
            for table in ("beta", "alpha_bar", "noise_variance", "time")
        },
        "gaussian": {
            "mean": _base64(np.asarray(gaussian.mean, np.float32)),
            "modes": _base64(signed(np.asarray(gaussian.modes, np.float32))),
            "eigenvalues": _base64(np.asarray(gaussian.eigenvalues, np.float32)),
            "floor": float(gaussian.floor),
        },
    }


def _regimes(result: dict[str, Any], classed: bool) -> dict[str, Any]:
    """The times with their intervals, and the curves that the page draws."""
    curves = {
        name: {part: curve[part] for part in ("time", "mean", "low", "high")}
        for name, curve in result["curves"].items()
        if name == "phi_C" or (classed and name in _CURVES)
    }
    times = {
        name: each for name, each in result.items() if isinstance(each, dict) and "low" in each
    }
    return times | {"phi_floor": result["phi_floor"] if classed else None, "curves": curves}


def _model(
    images: ImageSet,
    name: str,
    regimes: dict[str, Any],
    schedule: NoiseSchedule,
    count: int,
    num_modes: int,
    classed: bool,
) -> dict[str, Any]:
    """The model as the REST interface describes one."""
    gaussian = f"a Gaussian's, of {num_modes} modes and one variance across them"
    return {
        "id": f"{slug(name)}-{fingerprint(images)[:8]}",
        "name": shown(name),
        "kind": "data",
        "shape": images.images.shape[1:],
        "mean": images.mean,
        "classes": [shown(each) for each in images.class_names] if classed else [],
        "num_images": count,
        "num_steps": schedule.num_steps,
        "times": np.asarray(schedule.time),
        "denoisers": [
            {"name": "exact", "about": "the exact score of the images in this page"},
            {"name": "gaussian", "about": gaussian, "modes": num_modes},
        ],
        "samplers": [
            {"name": "ancestral", "noisy": True},
            {"name": "ddim", "noisy": False},
            {"name": "dpm-solver-2m", "noisy": False},
        ],
        "calls": {"default": 100, "least": 2, "most": schedule.num_steps},
        "regimes": {time: each for time, each in regimes.items() if time.startswith(("Lam", "t_"))},
        "trained_on": _trained_on(images, name, count),
        "network": None,
        "mixture": None,
        "most_clones": MOST_CLONES,
    }


def _trained_on(images: ImageSet, name: str, count: int) -> str:
    shape = " x ".join(str(side) for side in images.images.shape[1:])
    part = "" if count == len(images.images) else f"{count} of the "
    return f"{shown(name)}: {part}{describe(images)} ({shape})."


def _about(n: int, count: int, modes: int, classed: bool) -> str:
    """What travels with the page, and what its numbers are of."""
    if count == n:
        images = f"The {n} images travel with this page: who has the page has the images."
    else:
        images = (
            f"{count} of the {n} images travel with this page, the first of each class in "
            f"proportion: who has the page has these images. The exact score, the posterior and "
            f"what clones do are those of the {count}; t_S, t_C, the curves and the Gaussian score "
            f"are of all {n}."
        )
    fate = " A sample is of the class of its nearest training image." if classed else ""
    return (
        f"{images} Nothing is sent anywhere: this page computes all that it shows. Its Gaussian "
        f"score has {modes} modes, and one variance for all other directions.{fate}"
    )
