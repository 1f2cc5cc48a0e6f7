"""The command that takes images to and fro: what it writes, how it goes on, what it refuses."""

import json
import re
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import two_convolutions
from tiny_runs import digits, make_run

from diffusion_jax import data, forking
from diffusion_jax.comparing import returns, turns
from diffusion_jax.comparing.table import Asked, Cell
from diffusion_jax.config import ModelConfig
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.judging import classifier
from diffusion_jax.judging.classifier_training import train_classifier
from diffusion_jax.regimes import cloning, neighbours, uturns
from diffusion_jax.runtime import backend
from diffusion_jax.training import run
from experiments import uturns as command_of
from experiments import uturns_report

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

FEW = ("--times", "0.3", "1.0", "2.5", "--batch-size", "8", "--accuracy", "0.05")


@pytest.fixture(autouse=True, scope="module")
def small():
    """Two convolutions in place of the UNet, a classifier hardly trained, one posterior for all."""
    posterior, known = command_of._posterior, {}

    def once(setting):
        key = fingerprint(setting.subject.images), tuple(setting.steps), setting.options.accuracy
        if key not in known:
            known[key] = posterior(setting)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_of, "_posterior", once)
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        patch.setattr(forking, "train_classifier", partial(train_classifier, updates=5))
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of a network that was not trained, on digits whose source has more of them."""
    return make_run(tmp_path_factory.mktemp("uturns") / "a", *digits(0, 25), per_class=15)


def command(*arguments):
    """The command in this process, on its eight devices: its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on
        patch.setattr(sys, "argv", ["uturns", *map(str, arguments)])
        try:
            command_of.main()
        except SystemExit as exit:
            return exit.code
    return 0


@pytest.fixture
def undrawn(monkeypatch):
    """No figures and no peaks, at which another test looks."""
    monkeypatch.setattr(uturns_report, "figures", lambda findings: [])
    monkeypatch.setattr(uturns_report, "_peaks", lambda measured: {})


def result_of(out):
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(run_dir):
    """The command, killed as it goes to keep its fourth cell, and started again."""
    kept, save = [], returns.Returned.save

    def killed(self, path):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(path)
        save(self, path)

    words = (run_dir, "--images", "10", "--scores", "trained", "exact", *FEW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(returns.Returned, "save", killed)
        assert command(*words) == 130
    assert not (run_dir / "uturns" / "result.json").exists()
    assert len(kept) == 3
    # The first cell, in two batches, is whole; the second is torn, and is run again.
    whole = kept[0].read_bytes()
    kept[2].write_bytes(kept[2].read_bytes()[:500])
    assert command(*words) == 0
    assert kept[0] == kept[1] != kept[2]
    assert kept[0].read_bytes() == whole
    return run_dir / "uturns"


@pytest.mark.slow
def test_what_is_written_is_what_the_images_say(finished, run_dir):
    """Against U-turns by the library, of both sources, for the network and for the exact score."""
    result = result_of(finished)
    model = run.load_model(run_dir)
    images = data.load(model.config.data)
    points = images.centred()
    mean = points.mean(axis=0)
    assert result["images"] == {"training": 10, "held-out": 10}
    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(0), 2**32 - 4), 30))
    before, process = points[order[:10]], model.backward(clock="step")
    steps = [int(np.abs(np.asarray(model.sampler.schedule.time) - t).argmin()) for t in (0.3, 2.5)]
    key = jax.random.fold_in(jax.random.key(0), 2**32 - 2)
    after = np.stack(
        [
            cloning.u_turns(
                process.sampler,
                process.denoiser,
                jax.random.fold_in(key, r),
                [step + 1 for step in steps[::-1]],
                before,
            )[:, ::-1]
            for r in range(2)
        ],
        axis=2,
    )
    found = result["sources"]["training"]["trained"]
    for place, own in ((0, after[:, 0]), (2, after[:, 1])):
        overlap = uturns.overlap(before, own, mean)
        assert found["overlap"]["mean"][place] == pytest.approx(overlap.mean(), abs=1e-5)
        change = uturns.changes(before, own).reshape(10, 2, -1)
        covariance = sum(np.cov(each, rowvar=False) for each in change)
        chi = covariance.sum() / np.trace(covariance)
        assert found["susceptibility"]["mean"][place] == pytest.approx(chi, rel=1e-4)
        home = neighbours.nearest(own.reshape(20, 8, 8, 1), points).index
        same = (home.reshape(10, 2) == order[:10, None]).mean()
        assert found["point_return"]["mean"][place] == pytest.approx(same)
    for source in result["sources"].values():
        assert set(source) == {"trained", "exact"}
        for score in source.values():
            for name in ("overlap", "class_return", "susceptibility", "length"):
                low, value, high = (
                    np.array(score[name][end], float) for end in ("low", "mean", "high")
                )
                some = np.isfinite(value)
                assert np.all((low <= value + 1e-6)[some] & (value <= high + 1e-6)[some])
            assert list(score["layers"])[-2:] == ["features", "logits"]
    assert result["sources"]["held-out"]["exact"]["point_return"] is None
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 9
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_layers_agree_with_the_classifier(finished):
    """Means over the data set, and cosines, from what each layer says of each image alone."""
    judge = classifier.load(finished / "cells")
    images = data.ImageSet(
        np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8),
        np.arange(70) % 2,
        judge.class_names,
    )
    own = returns.Judge.of(judge, images)
    before = images.centred()[:5]
    after = images.centred()[5:20].reshape(5, 3, 8, 8, 1)
    labels, ends, cosines = own.classes_and_layers(before, after)
    shift = images.mean - judge.mean
    np.testing.assert_array_equal(labels, judge.predict(before + shift))
    flat = judge.predict(after.reshape(15, 8, 8, 1) + shift)
    np.testing.assert_array_equal(ends.ravel(), flat)
    every = judge.features(images.centred() + shift).astype(np.float64)
    a, b = every[:5, None] - every.mean(0), every[5:20].reshape(5, 3, -1) - every.mean(0)
    wanted = (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)
    # Differences of features that are alike to three digits lose as many.
    np.testing.assert_allclose(cosines[..., -2], wanted, atol=2e-3)


@pytest.mark.usefixtures("undrawn")
def test_more_images_and_times_add_to_what_is_done(finished, run_dir, tmp_path, capsys):
    out = tmp_path / "more"
    shutil.copytree(finished, out)
    more = ("--out", out, "--scores", "exact", *FEW)
    four = ("--times", "0.3", "0.6", *FEW[2:])
    assert command(run_dir, "--images", "14", *more[:4], *four) == 0
    result = result_of(out)
    assert result["images"] == {"training": 14, "held-out": 14}
    assert len(result["times"]) == 4
    # The first ten again: their numbers are those of before, whatever the batches were.
    assert command(run_dir, "--images", "10", *more) == 0
    assert "6 of 6 cells were computed before" in capsys.readouterr().out
    earlier, now = (result_of(folder)["sources"] for folder in (finished, out))
    for source in ("training", "held-out"):
        assert now[source]["exact"] == earlier[source]["exact"] | {"peaks": {}}
    # Another experiment does not mix with it.
    assert command(run_dir, "--images", "10", *more, "--returns", "3") == 1
    assert "returns: 2 -> 3" in capsys.readouterr().err


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """As many ones and eights as the run has, without a run."""
    found = tmp_path_factory.mktemp("digits") / "digits.npz"
    images, labels = digits(0, 15)
    np.savez(found, images=images, labels=labels)
    return found


# On all of these images, and with equal numbers of steps, so that one program does for both.
DATA = ("--calls", "60", "--times", "0.1", "0.5", "1", "2", "--accuracy", "0.02")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_data_set_has_the_returns_of_its_posterior(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forking, "train_classifier", partial(train_classifier, updates=80))
    monkeypatch.chdir(tmp_path)
    assert command(path, *DATA, "--images", "30", "--returns", "6", "--scores", "exact") == 0
    out = tmp_path / "runs" / "uturns" / "digits"
    result, text = result_of(out), capsys.readouterr().out
    found = result["sources"]["training"]["exact"]
    for name in ("class_return", "point_return"):
        own, posterior = found[name], result["posterior"][name]
        error = np.hypot(own["standard_error"], posterior["standard_error"])
        # Where all return, one in 180 may have been elsewhere.
        difference = np.abs(np.subtract(own["mean"], posterior["mean"]))
        assert np.all(difference < 4 * np.hypot(error, 1 / 180))
    assert found["point_return"]["mean"][0] > 0.5 > 0.1 > found["point_return"]["mean"][-1]
    assert "class return, posterior" in text
    assert result["t_S_phi"]["value"] > result["t_C_phi"]["value"]


@pytest.mark.usefixtures("undrawn")
def test_images_without_classes(path, tmp_path, capsys):
    with np.load(path) as file:
        np.savez(tmp_path / "plain.npz", images=file["images"])
    out = tmp_path / "out"
    assert command(tmp_path / "plain.npz", *DATA, "--images", "40", "--out", out) == 0
    result = result_of(out)
    assert set(result["sources"]["training"]) == {"exact"}
    found = result["sources"]["training"]["exact"]
    assert found["class_return"] is None
    assert found["layers"] == {}
    assert result["posterior"].keys() == {"point_return"}
    assert any(each.startswith("ancestral sampling with 60 calls") for each in result["warnings"])
    assert "there are 30 training images, not 40" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_patches_and_a_sampler_without_noise_are_told(path, tmp_path, capsys):
    words = ("--calls", "5", "--times", "0.5", "2", "--images", "4", "--accuracy", "0.1")
    words += ("--sampler", "ddim", "--scores", "local", "--patch", "3", "--out", tmp_path)
    assert command(path, *words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "ddim draws no noise on the way back" in text
    assert "overlap, local 3" in text
    found = result_of(tmp_path)["sources"]["training"]["local_3"]
    assert min(found["susceptibility"]["mean"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "1"), "images = 1 must be at least 2: intervals are over images"),
        (
            ("--returns", "1"),
            "returns = 1 must be at least 2: the susceptibility is of differences",
        ),
        (("--times", "70"), "must lie in the schedule"),
        (("--times", "1.0", "1.0001"), "fall on one of 25 steps"),
        (("--scores", "exact", "precise"), "there is no score 'precise'; choose from trained,"),
        (("--scores", "exact", "exact"), "must name at least one, and each once"),
        (("--patch", "3"), "compare no patches: leave --patch out, or add local or equivariant"),
        (("--scores", "local", "--patch", "4"), "patch = 4 must be an odd number"),
        (("--sampler", "magic"), "there is no sampler 'magic'"),
        (("--calls", "26"), "between 2 and 25"),
        (("--flat",), "--flat is for data sets"),
        (("--image-size", "8"), "--image-size is for data sets"),
    ],
)
def test_bad_options_are_refused(run_dir, tmp_path, capsys, options, message):
    assert command(run_dir, "--out", tmp_path / "x", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_a_data_set_does_not_have_is_refused(path, tmp_path, capsys):
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 8, 8), np.uint8))
    for source, options, message in (
        (path, ("--scores", "trained"), "is a data set, without a network"),
        (path, ("--classifier-per-class", "9"), "--classifier-per-class is for runs"),
        (tmp_path / "none", (), "is neither a run's folder nor a data set"),
        (tmp_path / "one.npz", (), "one training image only"),
    ):
        assert command(source, "--out", tmp_path / "x", *options) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_a_broken_score_is_named(finished, tmp_path):
    """A value that is not finite is no change."""
    sampler = SimpleNamespace(schedule=SimpleNamespace(time=np.array([0.5])))
    images = np.ones((2, 4, 4, 1), np.float32)
    table = turns.Turns(tmp_path, sampler.schedule, [0], sampler, 2, images, returns.Judge())
    source = turns.Travellers("training", "training", 2, None, images, jax.random.key(0))
    asked = Asked("exact", None, 2, [source], 0.0, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "u_turns", lambda *_: np.full((8, 1, 4, 4, 1), np.nan))
        with pytest.raises(command_of.UserError, match="the score exact is broken"):
            table.add(Cell(asked, source, 0), None, 0, 2)
    assert not list(tmp_path.iterdir())
