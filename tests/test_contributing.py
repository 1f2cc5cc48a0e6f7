"""What the guide shows to be added is added, each from outside the package, and then used."""

import importlib
import json
import re
import sys
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_convolutions
from sklearn.datasets import load_digits

import diffusion_jax as dj
from diffusion_jax import forking
from diffusion_jax.config import ModelConfig, ScheduleConfig
from diffusion_jax.data import SOURCES
from diffusion_jax.denoisers import DENOISERS, GaussianMixtureDenoiser
from diffusion_jax.judging.classifier_training import train_classifier
from diffusion_jax.runtime import backend
from diffusion_jax.sampling import backward
from experiments import cloning, regimes, train_lsun
from experiments import sample as sampling_command

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "extend.md").read_text()
KINDS = ("sampler", "schedule", "data set", "measure", "denoiser")


def diffs():
    """New file, its lines, the table's module, its name, the key and the value, of each diff."""
    found = []
    for block in re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL):
        _, path, new, table, change = re.split(r"\+\+\+ (\S+)\n", block)
        source = "".join(line[1:] for line in new.splitlines(keepends=True))
        assert all(line.startswith("+") for line in new.splitlines()), path
        (name,) = re.findall(r"^ (\w+): dict", change, re.MULTILINE)
        ((key, value),) = re.findall(r'^\+    "(\w+)": (.*),$', change, re.MULTILINE)
        context = [line[1:] for line in change.splitlines() if line.startswith(" ")]
        found.append((path, source, table, name, key, value, context))
    return found


DIFFS = diffs()


def module_of(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.fixture(autouse=True)
def added(monkeypatch):
    """All five, as if each file lay in its place."""
    for path, source, table, name, key, value, _ in DIFFS:
        module = types.ModuleType(module_of(path))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, path, "exec"), module.__dict__)
        names = module.__dict__ | {path.split("/")[-1].removesuffix(".py"): module}
        entries = getattr(importlib.import_module(module_of(table)), name)
        monkeypatch.setitem(entries, key, eval(value, names))


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs a command in this process, in a folder of its own."""
    monkeypatch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)
    quick = partial(train_classifier, updates=5)  # not the 300 of a good one
    monkeypatch.setattr(forking, "train_classifier", quick)
    monkeypatch.chdir(tmp_path)

    def run(module, *words):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        module.main()

    return run


def test_each_diff_is_of_the_file_as_it_is():
    """The lines without a + are there, and in this order."""
    assert len(DIFFS) == len(KINDS)
    assert all(f"\n## A {kind}\n" in PAGE for kind in KINDS)
    for _, _, table, *_, context in DIFFS:
        text = (Path(__file__).parents[1] / table).read_text()
        places = [text.index(f"\n{line}\n") for line in context]
        assert places == sorted(places)


@pytest.mark.slow
def test_what_is_added_runs_through_the_commands(command, tmp_path, capsys):
    """A data set and a schedule trained with, a sampler drawn with, a denoiser forked with it."""
    command(
        train_lsun,
        *("--data", "small_digits", "--schedule", "sigmoid", "--schedule-parameters"),
        *("steepness", "5", "--diffusion-steps", "30", "--steps", "4", "--batch-size", "8"),
        *("--sampler", "heun", "--num-samples", "8", "--run-dir", "run", "--sample-every", "2"),
    )
    config = json.loads(Path("run/config.json").read_text())
    assert config["schedule"]["schedule"] == "sigmoid"
    assert config["data"]["classes"] == ["1", "8"]
    assert Path("run/samples/step_00000002.png").exists()
    command(sampling_command, "run", "--num-samples", "4", "--sampler", "heun", "--calls", "20")
    assert "heun, 20 calls" in capsys.readouterr().out
    (samples,) = Path("run/samples").glob("*heun*.npy")
    images = np.load(samples)
    assert images.shape == (4, 8, 8, 1)
    assert images.min() > -1e-6
    assert images.max() < 1 + 1e-6
    command(
        cloning,
        *("run", "--score", "isotropic", "--num-trunks", "32", "--calls", "10"),
        *("--accuracy", "0.05"),
    )
    result = json.loads(Path("run/cloning_isotropic/result.json").read_text())
    assert result["settings"]["score"] == "isotropic"
    command(regimes, "--data", "small_digits", "--out", "regimes", "--accuracy", "0.02")
    result = json.loads(Path("regimes/result.json").read_text())
    assert "certainty" in json.dumps(result)
    assert 0 < result["t_S_certain"]["value"] < 2


def test_the_measure_is_what_brute_force_gives():
    digits = load_digits()
    chosen = np.isin(digits.target, (1, 8))
    points, labels = digits.images[chosen][:150] / 16, digits.target[chosen][:150]
    study = dj.analyse(points, labels, accuracy=1e-2)
    assert "t_S_certain" in repr(study)
    curve = study.analysis.overall.curves["certainty"]
    flat, rng = points.reshape(150, -1), np.random.default_rng(0)
    for place in (30, 50, 60):
        t = curve.times[place]
        mu = rng.integers(150, size=4000)
        x = np.exp(-t) * flat[mu] + np.sqrt(-np.expm1(-2 * t)) * rng.standard_normal((4000, 64))
        distance = ((x[:, None] - np.exp(-t) * flat[None]) ** 2).sum(2)
        weights = np.exp(-(distance - distance.min(1, keepdims=True)) / -2 / np.expm1(-2 * t))
        weights /= weights.sum(1, keepdims=True)
        p = np.stack([weights[:, labels == c].sum(1) for c in (1, 8)], 1)
        error = np.hypot(p.max(1).std() / np.sqrt(4000), curve.standard_error[place])
        assert abs(curve.mean[place] - p.max(1).mean()) < 5 * error


def test_the_schedule_is_its_formula():
    schedule = ScheduleConfig("sigmoid", 50, {"steepness": 4.0}).build()
    np.testing.assert_allclose(schedule.log_snr, np.linspace(4, -4, 50), atol=1e-4)


def test_the_sampler_is_of_second_order():
    schedule = dj.linear_schedule(1000)
    mixture = GaussianMixtureDenoiser(schedule, jnp.full(4, 0.5), jnp.float32(0.3))
    ends = [
        backward(schedule, mixture, name, calls).sample(jax.random.key(0), 64, (4,))
        for name, calls in (("heun", 40), ("heun", 160), ("dpm-solver-2m", None))
    ]
    errors = [np.abs(end - ends[2]).mean() for end in ends[:2]]
    assert errors[1] < errors[0] / 6  # 16, but for the last step, which is of first order


def test_the_denoiser_is_its_formula():
    schedule = dj.linear_schedule(100)
    points = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32) * 0.7 + 2
    denoiser = DENOISERS["isotropic"](schedule, points, None)
    end = backward(schedule, denoiser).sample(jax.random.key(1), 4000, (3,), 4000)
    np.testing.assert_allclose(end.mean(0), points.mean(0), atol=0.06)
    np.testing.assert_allclose(end.var(), ((points - points.mean(0)) ** 2).mean(), rtol=0.08)
    assert "small_digits" in SOURCES
