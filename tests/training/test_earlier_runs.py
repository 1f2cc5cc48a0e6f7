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

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

DATA = Path(__file__).parents[1] / "reference" / "run"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the run names its data by a relative path
    return tmp_path / "run"


def test_it_goes_on_with_the_same_losses(folder):
    config = from_dict(json.loads((folder / "config.json").read_text()))
    # Evaluations may end when a run goes on, and their programs take long to compile.
    output = dataclasses.replace(config.output, evaluate_every=None)
    held_in = dataclasses.replace(config.data, held_out_per_class=0)
    loop.train(dataclasses.replace(config, steps=12, output=output, data=held_in))
    made = read_metrics(folder / "metrics.jsonl")[-4:]
    expected = [each for each in read_metrics(DATA / "continued.jsonl") if "loss" in each]
    assert [each["step"] for each in made] == [9, 10, 11, 12]
    # Adam divides by gradients of any size, so that rounding grows; 5e-7 was seen.
    for name in ("loss", "grad_norm", "learning_rate"):
        values = [[each[name] for each in records] for records in (made, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5)


def test_it_is_sampled_from(folder):
    model = load_model(folder)
    assert (model.step, model.class_names) == (8, ("tall", "wide"))
    images = sample(model.sampler, model.denoiser, jax.random.key(1), 4, model.shape) + model.mean
    expected = np.load(folder.parent / "samples.npy", allow_pickle=False)
    # Forty steps amplify rounding by up to 1/sqrt(alpha_bar), 150.
    np.testing.assert_allclose(
        images, expected, rtol=0, atol=150 * np.finfo(np.float32).eps * np.abs(expected).max()
    )
