"""The Python that the documentation shows does run, and gives what is said of it."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from servers import serving, small_model

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

ROOT = Path(__file__).parents[1]


def blocks(path):
    found = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    assert found
    return found


def with_a_run(tmp_path, monkeypatch):
    """Goes to a folder that has a run where the documentation has one."""
    shutil.copytree(ROOT / "tests" / "reference" / "run", tmp_path / "runs")
    (tmp_path / "runs" / "run").rename(tmp_path / "runs" / "sample")
    monkeypatch.chdir(tmp_path)


def test_the_readmes(tmp_path, monkeypatch):
    with_a_run(tmp_path, monkeypatch)
    names = {}
    for block in blocks("README.md"):
        exec(block, names)
    assert names["images"].shape == (16, 8, 8, 1)
    assert np.isfinite(names["images"]).all()


def test_python_md(tmp_path, monkeypatch):
    analysing, training, differentiating = blocks("docs/python.md")
    names = {}
    exec(analysing, names)
    shown = (ROOT / "docs" / "python.md").read_text().partition("prints\n\n```\n")[2]
    shown = shown.partition("```")[0].splitlines()
    printed = repr(names["study"]).splitlines()
    assert printed[:3] == shown[:3]
    rows, expected = (
        {
            line.split()[0]: re.findall(r"-?\d\.\d+", line.partition("  ")[2])
            for line in lines
            if re.match(" (Lambda|t_)", line)
        }
        for lines in (printed, shown)
    )
    assert list(rows) == list(expected)
    assert len(rows) == 8
    for name, values in expected.items():  # another processor rounds otherwise
        np.testing.assert_allclose(*(np.array(v, float) for v in (rows[name], values)), rtol=0.02)
    exec(training, names)
    assert names["state"].step == 200
    # Of unit noise in 64 pixels: what is left says that something was learnt.
    assert names["metrics"]["loss"] < 0.2
    assert names["samples"].shape == (16, 8, 8, 1)

    with_a_run(tmp_path, monkeypatch)
    exec(differentiating, names)
    fast = jax.jit(lambda x, step: names["run"].denoiser(x, step))
    x, v, step = (names[name] for name in ("x", "direction", "step"))
    np.testing.assert_allclose(names["noise"], fast(x, step), atol=1e-5)
    difference = (fast(x + 1e-2 * v, step) - fast(x - 1e-2 * v, step)) / 2e-2
    error = np.linalg.norm(names["change"] - difference) / np.linalg.norm(difference)
    assert error < 1e-2  # of a second order in the step, and float32's digits over it


def test_geometry_md():
    spectrum, guiding = blocks("docs/geometry.md")
    names = {}
    exec(spectrum, names)
    g = 1 / np.expm1(2 * float(names["schedule"].time[names["step"]]))
    share = g * np.array([100, 10, 5, 0.5])
    np.testing.assert_allclose(names["found"].eigenvalues[0], share / (1 + share), rtol=0.03)
    assert names["found"].open_modes[0] == 2
    exec(guiding, names)
    distances = np.abs(names["samples"][:, None] - names["points"][1::2][None]).max(axis=2)
    assert distances.min(axis=1).max() < 0.1  # training points of the class


def test_memorisation_md():
    """What is printed is the closed form of these two sets, within its interval."""
    (block,) = blocks("docs/memorisation.md")
    names = {}
    exec(block, names)
    training, held_out = (names[name].astype(np.float64) for name in ("training", "held_out"))
    denoiser, g = names["denoiser"], 1 / np.expm1(1.0)
    centred = [x - training.mean(axis=0) for x in (training, held_out)]
    modes = np.asarray(denoiser.modes, np.float64)
    along = [np.mean((x @ modes.T) ** 2, axis=0) for x in centred]
    rest = [np.mean(np.sum(x**2, axis=1)) - np.sum(a) for x, a in zip(centred, along, strict=True)]
    shares = g * (along[1] - along[0]) / (1 + g * np.asarray(denoiser.eigenvalues))
    expected = 0.5 * (shares.sum() + g * (rest[1] - rest[0]))
    assert names["gap"].low < expected < names["gap"].high
    assert expected > 3


def test_serve_md():
    """The client that is shown asks a server, and has the numbers that it prints."""
    (block,) = blocks("docs/serve.md")
    model = small_model()
    with serving(model) as (address, _):
        names = {}
        exec(block.replace("http://127.0.0.1:8000", address), names)
    assert names["x"].shape == model.shape
    assert abs(names["state"]["time"] - 1.0) < 0.05
    assert len(names["fork"]["fates"]) == 32
    assert sum(each["count"] for each in names["fork"]["classes"]) == 32
