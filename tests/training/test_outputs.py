"""What is said and saved of the data at a training's start."""

import json

import numpy as np
import pytest

from diffusion_jax.data.images import ImageSet
from diffusion_jax.training import outputs
from experiments.train_lsun import parse


@pytest.mark.parametrize(
    ("first", "others", "times"),
    [
        (0.5, 0.5, [None, None]),
        (0.9, 0.9, [None, 0.5 * np.log(3 * 0.81)]),
        (0.0, 0.9, [None, 0.5 * np.log(2 * 0.81)]),
        (2.0, 0.0, [0.5 * np.log(4), 0.5 * np.log(4)]),
    ],
)
def test_there_is_a_speciation_time_where_lambda_is_over_1(first, others, times, tmp_path, capsys):
    """Two pixels of independent unit variance, so that Lambda is the scale's square."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(3 / 4)
    scale = np.array([first, others, others])
    images = (signs[:, :, None, None] * scale).astype(np.float32)
    config = parse(["--data", "mnist", "--run-dir", str(tmp_path)])
    outputs.summarize(config, ImageSet(images, None, ()), 7, "digest")
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = [each["t_S"] for each in summary["spectrum"].values()]
    assert found == [each if each is None else pytest.approx(each, rel=1e-5) for each in times]
    lines = [line for line in capsys.readouterr().out.splitlines() if "Spectrum" in line]
    for line, time in zip(lines, times, strict=True):
        ending = "no t_S, since Lambda is at most 1" if time is None else f"t_S = {time:.3f}"
        assert line.endswith(ending)
