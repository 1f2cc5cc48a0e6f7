"""What a reader noticed is said once on stderr by every command that loads data, and kept."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data, forking
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.notes import say_notes
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training import outputs, run
from experiments import convert, likelihood
from experiments.train_lsun import parse

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 6, 6), dtype=np.uint8)


@pytest.fixture
def sources(tmp_path):
    """Each with what is to be said of it."""
    np.save(tmp_path / "binary.npy", GREY // 128)
    np.savez(tmp_path / "label.npz", images=GREY, label=np.arange(12))
    (tmp_path / "clear").mkdir()
    for i, image in enumerate(GREY):
        Image.fromarray(np.stack([image] * 4, axis=-1)).save(tmp_path / "clear" / f"{i:02d}.png")
    (tmp_path / "clear" / "a\nb.txt").write_bytes(b"")
    return {
        tmp_path / "binary.npy": (
            f"the largest grey level of {tmp_path / 'binary.npy'} is 1, taken out of 255: if that "
            f"is not its scale, multiply the levels so that white is 255",
        ),
        tmp_path / "label.npz": (
            f"{tmp_path / 'label.npz'} also holds label, not used: labels are called labels or y",
        ),
        tmp_path / "clear": (
            f"1 files of {tmp_path / 'clear'} are no images by their names (.txt)",
            "12 of 12 images have transparency, which was dropped",
        ),
    }


def said(err):
    """The notes on stderr, where there is nothing else but what is left of a progress bar."""
    lines = [line for line in err.splitlines() if line]
    assert all(line.startswith("note: ") for line in lines)
    return [line.removeprefix("note: ") for line in lines]


def test_a_training_says_them_and_keeps_them(sources, tmp_path, capsys):
    for path, notes in sources.items():
        config = parse(["--preset", "sample", "--data", str(path), "--run-dir", str(tmp_path)])
        images, held_out = data.load_split(config.data)
        outputs.summarize(config, images, 7, "digest", held_out)
        printed, err = capsys.readouterr()
        assert said(err) == list(notes)
        assert not any(note in printed for note in notes)
        assert json.loads((tmp_path / "summary.json").read_text())["notes"] == list(notes)


def test_those_of_held_out_images_are_not_said_twice(sources, tmp_path, capsys):
    folder = list(sources)[2]
    words = ["--preset", "sample", "--data", str(folder), "--run-dir", str(tmp_path)]
    words += ["--images-per-class", "8", "--held-out-per-class", "4"]
    outputs.summarize(*_summary(parse(words)))
    stray, clear = sources[folder]
    own = "8 of 8 images have transparency, which was dropped"
    other = "of those held out, 4 of 4 images have transparency, which was dropped"
    assert clear.removeprefix("12 of 12") == own.removeprefix("8 of 8")
    kept = json.loads((tmp_path / "summary.json").read_text())["notes"]
    assert kept == [stray, own, other]
    assert said(capsys.readouterr().err) == kept


def _summary(config):
    images, held_out = data.load_split(config.data)
    return config, images, 7, "digest", held_out


def test_every_other_command_says_them(sources, capsys):
    """Of a run's own images, of others, and of a checkpoint's."""
    for path, notes in sources.items():
        images = data.load_images(path)
        config = parse(["--preset", "sample", "--data", str(path)])
        model = _model(config, images)
        np.testing.assert_array_equal(forking.training_images(model).images, images.images)
        assert said(capsys.readouterr().err) == list(notes)
        options = likelihood.Options(Path("run"), data=path)
        for each in (options, dataclasses.replace(options, data=None)):
            found = likelihood.load_images(each, model)
            np.testing.assert_array_equal(found.images, images.images)
            assert said(capsys.readouterr().err) == list(notes)
        known, kept = convert._training_set(config.data, None, images.images.shape[-1])
        assert known["num_images"] == 12
        assert kept == {"notes": list(notes)}
        assert said(capsys.readouterr().err) == list(notes)


def _model(config, images):
    return run.TrainedModel(
        config=config,
        denoiser=None,
        sampler=None,
        shape=images.images.shape[1:],
        mean=images.mean,
        class_names=images.class_names,
        step=0,
    )


def test_one_process_of_several_says_them_legibly(monkeypatch, capsys):
    images = ImageSet(GREY[..., None], None, (), ("a\x1b[1m\n", "b"))
    assert say_notes(images) == ["a\x1b[1m\n", "b"]
    assert capsys.readouterr().err == "note: a\\x1b[1m\\n\nnote: b\n"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert say_notes(images) == ["a\x1b[1m\n", "b"]
    assert capsys.readouterr().err == ""


def test_likelihood_takes_a_folder_as_the_run_took_its_own(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.fromarray(GREY[0]).save(tmp_path / "a" / "b" / "0.png")
    np.save(tmp_path / "one.npy", GREY[:1])
    model = _model(
        parse(["--preset", "sample", "--data", "x", "--flat"]), ImageSet(GREY[..., None], None, ())
    )
    for path in (tmp_path, tmp_path / "one.npy"):
        found = likelihood.load_images(likelihood.Options(tmp_path, data=path), model)
        np.testing.assert_array_equal(found.images, GREY[:1, ..., None])


@pytest.mark.parametrize("faithful", [False, True])
def test_likelihood_takes_no_more_levels_than_the_run_has(faithful):
    training = SimpleNamespace(faithful=faithful)
    model = SimpleNamespace(
        sampler=SimpleNamespace(schedule=linear_schedule(40)),
        config=SimpleNamespace(training=training),
    )
    np.testing.assert_array_equal(likelihood.chosen_steps(None, model), np.arange(faithful, 40))
    fewest = likelihood.chosen_steps(2 + faithful, model)
    assert len(fewest) == 2
    assert fewest[-1] == 39
    for levels in (41, 1 + faithful, 0):
        with pytest.raises(
            UserError, match=rf"--levels {levels} must lie between {2 + faithful} and 40, the steps"
        ):
            likelihood.chosen_steps(levels, model)
    model.sampler.schedule = linear_schedule(1000)
    assert len(likelihood.chosen_steps(None, model)) == 100 - faithful


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (16, 16)])
def test_likelihood_reads_a_folder_at_the_runs_own_size(tmp_path, size):
    """Square or not: what is larger is cut to the run's shape, and what is as large is as it is."""
    height, width = size
    (tmp_path / "same").mkdir()
    (tmp_path / "larger").mkdir()
    own = RNG.integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(own).save(tmp_path / "same" / "0.png")
    # Each pixel twice in both directions, beside a rim that is cut off.
    rim = [(0, 0), (0, 0)]
    rim[int(width >= height)] = (6, 6)
    larger = np.pad(own.repeat(2, 0).repeat(2, 1), rim, constant_values=255)
    Image.fromarray(larger).save(tmp_path / "larger" / "0.png")
    config = parse(["--preset", "sample"])
    model = SimpleNamespace(shape=(height, width, 1), config=config)
    options = likelihood.Options(tmp_path, data=tmp_path / "same")
    found = likelihood.load_images(options, model)
    np.testing.assert_array_equal(found.images, own[None, ..., None])
    whole = Image.fromarray(own.repeat(2, 0).repeat(2, 1))
    expected = np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR))
    options = likelihood.Options(tmp_path, data=tmp_path / "larger")
    found = likelihood.load_images(options, model)
    np.testing.assert_array_equal(found.images, expected[None, ..., None])
    if height != width:
        turned = SimpleNamespace(shape=(width, height, 1), config=config)
        options = likelihood.Options(tmp_path, data=tmp_path / "same")
        wrong = (
            rf"0.png is {width} x {height} pixels, smaller than image_size = \({width}, {height}\)"
        )
        with pytest.raises(UserError, match=wrong):
            likelihood.load_images(options, turned)
