"""The Python that the documentation shows does run, and gives what is said of it."""

import re
import shutil
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def blocks(path):
    found = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    assert found
    return found


def test_the_readmes(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "tests" / "reference" / "run", tmp_path / "runs")
    (tmp_path / "runs" / "run").rename(tmp_path / "runs" / "sample")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("README.md"):
        exec(block, names)
    assert names["images"].shape == (16, 8, 8, 1)
    assert np.isfinite(names["images"]).all()


def test_python_md():
    analysing, training = blocks("docs/python.md")
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
    assert len(rows) == 7
    for name, values in expected.items():  # another processor rounds otherwise
        np.testing.assert_allclose(*(np.array(v, float) for v in (rows[name], values)), rtol=0.02)
    exec(training, names)
    assert names["state"].step == 200
    # Of unit noise in 64 pixels: what is left says that something was learnt.
    assert names["metrics"]["loss"] < 0.2
    assert names["samples"].shape == (16, 8, 8, 1)
