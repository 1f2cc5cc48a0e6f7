"""A run made by an earlier version, with all modules elsewhere, goes on and is sampled from."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.sampling import sample
from diffusion_jax.training import loop
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.run import load_model
from diffusion_jax.training.saved_config import from_dict

DATA = Path(__file__).parents[1] / "reference" / "run"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the run names its data by a relative path
    return tmp_path / "run"


def test_it_goes_on_with_the_same_losses(folder):
    saved = json.loads((folder / "config.json").read_text())
    loop.train(dataclasses.replace(from_dict(saved), steps=12))
    made, expected = (
        read_metrics(folder / "metrics.jsonl")[9:],
        read_metrics(DATA / "continued.jsonl"),
    )
    assert [record["step"] for record in made] == [9, 10, 11, 12, 12]
    # Adam divides by gradients of any size, so that rounding grows; 5e-7 was seen.
    for name in ("loss", "grad_norm", "learning_rate"):
        values = [[each[name] for each in run[:4]] for run in (made, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    names = [name for name in expected[4] if "loss/" in name]
    assert len(names) == 12
    np.testing.assert_allclose(
        *([run[4][name] for name in names] for run in (made, expected)), rtol=1e-5
    )


def test_it_is_sampled_from(folder):
    model = load_model(folder)
    assert (model.step, model.class_names) == (8, ("tall", "wide"))
    images = sample(model.sampler, model.denoiser, jax.random.key(1), 4, model.shape) + model.mean
    expected = np.load(folder.parent / "samples.npy", allow_pickle=False)
    # Forty steps amplify rounding by up to 1/sqrt(alpha_bar), 150.
    np.testing.assert_allclose(
        images, expected, rtol=0, atol=150 * np.finfo(np.float32).eps * np.abs(expected).max()
    )
