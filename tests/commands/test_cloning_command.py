"""The command that forks a run: what it writes, how it goes on after a kill, what it refuses."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import two_convolutions
from sklearn.datasets import load_digits
from weights import random_params

from diffusion_jax import data, forking
from diffusion_jax.config import ModelConfig
from diffusion_jax.judging import classifier
from diffusion_jax.judging.classifier_training import train_classifier
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.runtime import backend
from diffusion_jax.training import run
from experiments import cloning, cloning_report
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

OPTIONS = [
    *("--preset", "mnist", "--image-size", "28", "--images-per-class", "15", "--seed", "3"),
    *("--base-channels", "8", "--num-res-blocks", "1", "--multiples", "1", "1"),
    "--attention-levels",
    *("--diffusion-steps", "25", "--batch-size", "8", "--num-samples", "4", "--steps", "2"),
]
FORKS = (
    *("--num-trunks", "32", "--batch-size", "16", "--accuracy", "0.05"),
    *("--times", "0.3", "1.0", "2.5"),
)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Two convolutions in place of the UNet: forks take any network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of a network that was not trained: forks need no good one."""
    folder = tmp_path_factory.mktemp("forks") / "run"
    config = parse([*OPTIONS, "--run-dir", str(folder)])
    images = data.load(config.data)
    model = config.model.build(1)
    params = jax.tree.map(lambda leaf: 0.5 * leaf, random_params(model, (28, 28, 1)))
    run.import_parameters(config, params, run.data_of(images))
    return folder


@pytest.fixture(scope="module")
def judge(run_dir):
    """A classifier hardly trained: a folder that holds one like it is not given another."""
    images = data.load(run.load_model(run_dir).config.data)
    settings = forking.classifier_settings(images, None, seed=0)  # the default seed
    return dataclasses.replace(train_classifier(images, 1, updates=5), settings=settings)


def command(*arguments):
    """The command in this process, on its eight devices: its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on
        patch.setattr(sys, "argv", ["cloning", *map(str, arguments)])
        try:
            cloning.main()
        except SystemExit as exit:
            return exit.code
    return 0


@pytest.fixture
def undrawn(monkeypatch):
    """No figures, which other tests here look at: they take longer than the forks."""
    monkeypatch.setattr(cloning_report, "_figures", lambda findings: [])


def result_of(out):
    result = json.loads((out / "result.json").read_text())
    return {name: value for name, value in result.items() if name != "settings"}


PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(two_convolutions.__file__).parent)!r})
from two_convolutions import ModelConfig, build
from experiments import cloning
ModelConfig.build = build
cloning.main()
"""


@pytest.fixture(scope="module")
def forked(run_dir, judge, tmp_path_factory):
    """The command in a process, killed once its first batch is there, and started again."""
    out = tmp_path_factory.mktemp("out")
    classifier.save(out / "batches", judge)
    words = [sys.executable, "-c", PROGRAM, str(run_dir), "--out", str(out), *FORKS]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    first = out / "batches" / "trunks_000000_000016.npz"
    deadline = time.monotonic() + 200
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "result.json").exists()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command(run_dir, "--out", out, *FORKS) == 0
    return out, printed.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_killed_experiment_goes_on_to_the_same_numbers(forked, run_dir, judge, tmp_path):
    out, text = forked
    classifier.save(tmp_path / "batches", judge)
    assert "of 2 batches were done before" in text
    assert command(run_dir, "--out", tmp_path, *FORKS) == 0
    assert result_of(tmp_path) == result_of(out)


def test_what_is_written_is_what_the_trunks_say(forked, run_dir):
    """The result against samples of the library, and against the formulas of the calls."""
    out, text = forked
    result = result_of(out)
    model = run.load_model(run_dir)
    images = data.load(model.config.data)
    points = images.images / np.float32(255) - images.mean
    trunk = model.backward().sample(jax.random.key(0), 32, model.shape)
    found = nearest(trunk, points)
    assert result["neighbour_ratio_median"] == pytest.approx(
        float(np.median(found.distance / found.second)), rel=1e-4
    )
    assert result["memorised_fraction"]["value"] == found.memorised.mean()
    times = np.asarray(model.sampler.schedule.time)
    steps = [int(np.abs(times - t).argmin()) + 1 for t in (2.5, 1.0, 0.3)]
    np.testing.assert_allclose(result["phi"]["time"], times[np.array(steps) - 1], rtol=1e-6)
    assert result["denoiser_calls"]["a_trunk"] == 25 + sum(steps)
    assert result["denoiser_calls"]["a_trunk_if_separate"] == 3 * 25 + sum(steps)
    for name in ("phi", "phi_C"):
        low, mean, high = (np.array(result[name][key]) for key in ("low", "mean", "high"))
        assert np.all((low <= mean) & (mean <= high))
    assert result["phi_C"]["mean"][-1] >= result["phi_C"]["mean"][0]
    assert result["t_C_hat"]["trajectories"] + result["t_C_hat"]["unchanged"] == 32
    assert sum(result["class_fractions"].values()) == pytest.approx(1)
    assert 0 <= result["classifier"]["accuracy"] <= 1
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "memorised fraction" in text


@pytest.mark.usefixtures("undrawn")
def test_few_calls_and_classes_unlike_the_datas_are_warned_of(run_dir, judge, tmp_path, capsys):
    classifier.save(tmp_path / "batches", judge)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloning, "_classes", lambda judge, mean, x: np.zeros(len(x), np.int64))
        assert command(run_dir, "--out", tmp_path, *FORKS, "--calls", "10") == 0
    few, skewed = (
        "ancestral sampling with 10 calls: samples contract",
        "100.0% of the trunks end in class 1, of which 50.0% of the training images are",
    )
    result = result_of(tmp_path)
    assert any(text.startswith(few) for text in result["warnings"])
    assert any(text.startswith(skewed) for text in result["warnings"])
    assert f"warning: {few}" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_more_trunks_add_to_those_that_are_done(forked, run_dir, tmp_path, capsys):
    out = tmp_path / "more"
    shutil.copytree(forked[0], out)
    more = ("--num-trunks", "40", *FORKS[2:])
    assert command(run_dir, "--out", out, *more) == 0
    assert "2 of 3 batches were done before" in capsys.readouterr().out
    assert result_of(out)["phi"]["pairs"] == 40
    # Whatever the size of a batch was, and fewer again: the first trunks are those of before.
    earlier = result_of(forked[0])
    for count in ("48", "32"):
        assert command(run_dir, "--out", out, "--num-trunks", count, *FORKS[4:]) == 0
        assert result_of(out)["phi"]["pairs"] == int(count)
    assert result_of(out) == earlier
    # Another experiment does not mix with it.
    assert command(run_dir, "--out", out, *more, "--seed", 2) == 1
    assert "seed: 0 -> 2" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_the_exact_score_memorises_and_a_classifier_is_trained(
    run_dir, tmp_path, monkeypatch, capsys
):
    quick = partial(train_classifier, updates=5)  # not the 300 of a good one
    monkeypatch.setattr(forking, "train_classifier", quick)
    options = ("--score", "exact", "--calls", "20", "--out", tmp_path, "--published", "MNIST")
    assert command(run_dir, *FORKS, *options) == 0
    result = result_of(tmp_path)
    assert result["memorised_fraction"]["value"] > 0.9
    text = capsys.readouterr().out
    assert "Training the classifier on 30 images" in text
    assert "exact score, trajectories" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-trunks", "29"), "num_trunks = 29 gives no useful interval"),
        (("--times", "70.0"), "must lie in the schedule"),
        (("--times", "1.0", "1.0001"), "fall on one of 25 steps"),
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--calls", "26"), "between 2 and 25"),
    ],
)
def test_bad_options_are_refused(run_dir, tmp_path, capsys, options, message):
    assert command(run_dir, "--out", tmp_path / "x", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_is_no_run_or_not_the_same_any_more_is_named(run_dir, tmp_path, capsys):
    assert command(tmp_path) == 1
    assert "is not the folder of a run" in capsys.readouterr().err

    def changed(name, edit):
        folder = tmp_path / name
        shutil.copytree(run_dir, folder)
        config = json.loads((folder / "config.json").read_text())
        edit(config)
        (folder / "config.json").write_text(json.dumps(config))
        assert command(folder, *FORKS) == 1
        return capsys.readouterr().err

    text = changed("wide", lambda config: config["model"].update(base_channels=16))
    assert "another model than its checkpoint holds (base_channels: 8 -> 16)" in text
    gone = {"data": "lsun", "data_dir": str(tmp_path / "nowhere")}
    text = changed("gone", lambda config: config["data"].update(gone))
    assert "the run's training images cannot be read" in text
    text = changed("other", lambda config: config["data"].update(images_per_class=16))
    assert "the training images changed since the run" in text


@pytest.mark.parametrize("calls", ["10", "2"])
def test_few_calls_have_forks(run_dir, judge, tmp_path, calls):
    classifier.save(tmp_path / "batches", judge)
    options = ("--score", "exact", "--calls", calls, "--out", tmp_path)
    assert command(run_dir, *FORKS[:6], *options) == 0
    result = result_of(tmp_path)
    assert len(result["phi_C"]["time"]) == int(calls)
    assert result["denoiser_calls"]["a_trunk"] == int(calls) + sum(range(int(calls) + 1))


def small_run(folder, labels, images=None):
    """A run of noise of a Lambda below 1, or of images of 8 x 8, with the given classes."""
    labels, rng = np.asarray(labels), np.random.default_rng(0)
    if images is None:
        images = np.uint8(127 + 12 * rng.standard_normal((len(labels), 8, 8)).clip(-3, 3))
    folder.mkdir()
    np.savez(folder / "data.npz", images=images, labels=labels)
    words = ["--data", str(folder / "data.npz"), *OPTIONS[6:], "--run-dir", str(folder / "run")]
    config = parse(words)
    images = data.load(config.data)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, classes=images.class_names)
    )
    params = random_params(config.model.build(1), (8, 8, 1))
    run.import_parameters(config, params, run.data_of(images))
    return folder / "run"


BYTE = os.fsdecode(b"\xe9")  # not UTF-8
EXACT = ("--score", "exact", "--calls", "20", *FORKS)


@pytest.mark.usefixtures("rendered")
def test_a_dozen_images_and_awkward_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forking, "train_classifier", partial(train_classifier, updates=2))
    folder = small_run(tmp_path / "few", [f"[red]x{BYTE}", "[/] :dog:"] * 6)
    assert command(folder, "--out", tmp_path / "out", *EXACT) == 0
    result, text = result_of(tmp_path / "out"), capsys.readouterr().out
    assert set(result["class_fractions"]) == {f"[red]x{BYTE}", "[/] :dog:"}
    assert result["quality"]["kernel_distance_standard_error"] > 0
    assert result["quality"]["precision"] is not None
    assert result["t_S_spectrum"] is None
    assert r"samples of class [red]x\xe9" in text
    assert "samples of class [/] :dog:" in text
    assert "none: Lambda <= 1" in text
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert r"samples of class [red]x\xe9" in page
    refused = (folder, "--out", tmp_path / "other", *EXACT, "--published", "MNIST")
    assert command(*refused) == 1
    assert "--published rescales time by t_S" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_scores_of_patches_fork_digits(tmp_path, monkeypatch, capsys):
    """What is local makes images that are none of the training set's, and says its patch."""
    monkeypatch.setattr(forking, "train_classifier", partial(train_classifier, updates=5))
    digits = load_digits()
    chosen = np.concatenate([np.flatnonzero(digits.target == digit)[:20] for digit in (1, 8)])
    images = np.uint8(digits.images[chosen] * 15.9)
    folder = small_run(tmp_path / "digits", digits.target[chosen].astype(str), images)
    words = ("--calls", "20", *FORKS)
    assert command(folder, "--score", "equivariant", "--patch", "3", *words) == 0
    found = result_of(folder / "cloning_equivariant_3")
    assert found["memorised_fraction"]["value"] < 0.1
    settings = folder / "cloning_equivariant_3" / "batches" / "settings.json"
    assert json.loads(settings.read_text())["patch"] == 3
    # Another patch is another experiment: here the default one.
    out = folder / "cloning_equivariant_3"
    assert command(folder, "--score", "equivariant", "--out", out, *words) == 1
    assert "patch: 3 -> 5" in capsys.readouterr().err
    # Batches of an earlier version, which knew no patches, are continued.
    exact = folder / "cloning_exact" / "batches" / "settings.json"
    assert command(folder, "--score", "exact", *words) == 0
    kept = json.loads(exact.read_text())
    assert kept.pop("patch") is None
    exact.write_text(json.dumps(kept))
    capsys.readouterr()
    assert command(folder, "--score", "exact", *words) == 0
    assert "2 of 2 batches were done before" in capsys.readouterr().out
    for refused, message in (
        (("--score", "local", "--patch", "4"), "patch = 4 must be an odd number of pixels from 1"),
        (("--score", "equivariant", "--patch", "17"), "patch = 17 must be an odd number"),
        (("--score", "exact", "--patch", "3"), "--score exact compares no patches"),
        (("--patch", "3"), "leave --patch out, or take --score local or equivariant"),
    ):
        assert command(folder, *refused, *words, "--out", tmp_path / "x") == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("labels", [["a"] * 6 + ["b"], ["a", "b"], ["a"] * 3])
def test_images_too_few_for_a_classifier(tmp_path, labels, capsys):
    """phi_C and the exact score's curves are given all the same."""
    folder = small_run(tmp_path / "few", labels)
    assert command(folder, "--out", tmp_path / "out", *EXACT) == 0
    result = result_of(tmp_path / "out")
    assert result["phi"] is result["quality"] is result["classifier"] is None
    assert len(result["phi_C"]["mean"]) == 3
    said = any("a classifier needs at least 5 of each class" in w for w in result["warnings"])
    assert said == (len(set(labels)) > 1)
    assert (result["class_fractions"] is None) == said
    assert ("t_S_phi" in result["exact_score"]) == said


def test_a_run_of_one_image_is_refused_before_anything_is_made(tmp_path):
    one = data.ImageSet(np.zeros((1, 8, 8, 1), np.uint8), None, ())
    with pytest.raises(cloning.UserError, match="one training image only"):
        cloning.plan(cloning.Options(tmp_path), None, one, None, None)
