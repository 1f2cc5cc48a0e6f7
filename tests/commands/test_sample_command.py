"""The command that draws samples: as they are drawn, on after a kill, and as PNGs."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import two_convolutions
from PIL import Image
from weights import random_params

from diffusion_jax.config import ModelConfig
from diffusion_jax.denoisers import ClippedDenoiser, SymmetricDenoiser
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.devices import batches
from diffusion_jax.runtime.rows import Rows
from diffusion_jax.sampling import loop
from diffusion_jax.sampling.respacing import first_step
from diffusion_jax.symmetry import Group
from diffusion_jax.training import run
from experiments import sample
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SHAPE = (8, 12, 3)
NAME = "step_00000000_seed_0"


@pytest.fixture(autouse=True, scope="module")
def small():
    """Two convolutions in place of the UNet: samplers take any network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        yield


def make_run(folder, seed):
    """A run on images that are not square."""
    words = ["--preset", "sample", "--diffusion-steps", "25", "--run-dir", str(folder)]
    config = parse(words)
    params = random_params(config.model.build(3), SHAPE, seed)
    known = {"shape": list(SHAPE), "mean": [0.4, 0.5, 0.6], "classes": [], "num_images": 9}
    run.import_parameters(config, params, known | {"fingerprint": None})
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run", 0)


@pytest.fixture(scope="module")
def expected(run_dir):
    """The first 150 samples, all at once in memory."""
    model = run.load_model(run_dir)
    return model.mean + model.backward().sample(jax.random.key(0), 150, model.shape, 16)


def command(*arguments):
    """The command in this process, on its eight devices: its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on
        patch.setattr(sys, "argv", ["sample", *map(str, arguments)])
        try:
            sample.main()
        except SystemExit as exit:
            return exit.code
    return 0


class Killed(BaseException):
    """Not caught by any handler of errors."""


def killed_after(batches, *arguments):
    """The command, broken off once so many batches are written."""
    append, written = Rows.append, []

    def append_or_die(rows, images):
        append(rows, images)
        written.append(len(images))
        if len(written) == batches:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "append", append_or_die)
        with pytest.raises(Killed):
            command(*arguments)


def test_a_broken_off_command_goes_on_to_the_same_samples(run_dir, expected, tmp_path, capfd):
    words = (run_dir, "--out", tmp_path, "--num-samples", 150, "--batch-size", 16)
    killed_after(4, *words)
    assert not list(tmp_path.glob("*.npy"))
    assert command(*words) == 0
    captured = capfd.readouterr()
    assert "48 samples were drawn before" in captured.out
    lines = [line for line in captured.err.splitlines() if line.endswith(" of 150 samples")]
    assert [int(line.split()[0]) for line in lines] == [16, 32, 48, *range(64, 150, 16), 150]
    found = np.load(tmp_path / f"{NAME}.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".png", ".json"}


def test_no_more_than_two_batches_are_in_memory():
    """The one that is handed out, and the next, which is at work."""
    begun, found = [], []

    def compute(numbers):
        begun.append(len(numbers))
        return jax.numpy.asarray(numbers)

    for place, part in enumerate(batches(compute, range(32, 83), 13)):
        assert len(begun) <= place + 2
        found.append(part)
    assert begun == [16] * 4  # a multiple of eight devices
    assert [len(part) for part in found] == [16, 16, 16, 3]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(32, 83))


def test_a_larger_number_adds_and_a_smaller_one_takes_nothing(
    run_dir, expected, tmp_path, monkeypatch, capsys
):
    words = (run_dir, "--out", tmp_path, "--batch-size", 16, "--num-samples")
    assert command(*words, 40) == 0
    assert command(*words, 150) == 0
    np.testing.assert_array_equal(np.load(tmp_path / f"{NAME}.npy"), expected)
    monkeypatch.setattr(loop, "_sample_batch", None)  # nothing is drawn
    capsys.readouterr()
    assert command(*words, 40) == 0
    assert "holds 150 samples of this model already: it stays" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(tmp_path / f"{NAME}.npy"), expected)


def test_another_models_samples_are_replaced(run_dir, expected, tmp_path):
    """As after a training anew in the same folder: the name of the file is the same."""
    words = ("--out", tmp_path, "--num-samples", 8)
    assert command(make_run(tmp_path / "other", 1), *words) == 0
    others = np.load(tmp_path / f"{NAME}.npy")
    assert command(run_dir, *words) == 0
    found = np.load(tmp_path / f"{NAME}.npy")
    assert np.abs(found - others).max() > 0.1
    np.testing.assert_allclose(found, expected[:8], atol=1e-5)


def test_the_grid_shows_the_first_64_and_the_folder_all(run_dir, expected, tmp_path):
    words = (run_dir, "--out", tmp_path, "--num-samples", 150, "--batch-size", 16, "--folder")
    assert command(*words) == 0
    levels = np.round(255 * np.clip(expected, 0, 1)).astype(np.uint8)
    grid = np.asarray(Image.open(tmp_path / f"{NAME}.png"))
    scale = 10
    assert grid.shape == (8 * (8 * scale + 4) + 4, 8 * (12 * scale + 4) + 4, 3)
    for i in (0, 9, 63):
        top, left = (
            4 + place * (side * scale + 4) for place, side in zip(divmod(i, 8), SHAPE, strict=False)
        )
        cell = grid[top : top + 8 * scale : scale, left : left + 12 * scale : scale]
        np.testing.assert_array_equal(cell, levels[i])
    names = sorted(path.name for path in (tmp_path / NAME).iterdir())
    assert names == [f"{i:05d}.png" for i in range(150)]
    for i in (0, 77, 149):
        with Image.open(tmp_path / NAME / names[i]) as image:
            np.testing.assert_array_equal(np.asarray(image), levels[i])


def test_the_network_is_averaged_over_a_group(run_dir, expected, tmp_path, capsys):
    """And the file says so: the sampler of SymmetricDenoiser, clipped, from the same noise."""
    words = (run_dir, "--out", tmp_path, "--num-samples", 8, "--symmetrise", "flip")
    assert command(*words) == 0
    assert ", averaged over flip" in capsys.readouterr().out
    found = np.load(tmp_path / f"{NAME}_symmetrised_flip.npy")
    model = run.load_model(run_dir)
    sampler, schedule = model.sampler, model.sampler.schedule
    bounds = (np.asarray(each) for each in model.bounds)
    denoiser = ClippedDenoiser(SymmetricDenoiser(model.denoiser, Group.flip()), schedule, *bounds)
    start = first_step(schedule) + 1
    assert start == schedule.num_steps
    drawn = loop.sample(sampler, denoiser, jax.random.key(0), 8, model.shape)
    np.testing.assert_allclose(found, drawn + model.mean, atol=1e-5)
    assert np.abs(found - expected[:8]).max() > 0.01


def test_its_samples_move_with_the_start(run_dir):
    """The whole backward process of DDIM, with fewer calls: from g x it ends at g of the end."""
    model = run.load_model(run_dir)
    group = Group.translations(*SHAPE[:2])
    process = model.backward("ddim", 5, symmetrise=group)
    x, keys = jax.random.normal(jax.random.key(1), (2, *SHAPE)), jax.random.split(jax.random.key(2))
    g = jax.numpy.int32(17)
    end = jax.jit(lambda x: loop.sampling_loop(process.sampler, process.denoiser, x, keys))
    np.testing.assert_allclose(end(group(g, x)), group(g, end(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mirror", "there is no symmetry 'mirror'; choose from flip, dihedral, translations"),
        ("dihedral", "images of 8 x 12 pixels: quarter turns need square ones"),
    ],
)
def test_symmetries_that_cannot_be_are_one_sentence(run_dir, tmp_path, capsys, name, message):
    assert command(run_dir, "--out", tmp_path, "--symmetrise", name) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_one_sentence(run_dir, tmp_path, capsys):
    assert command(run_dir, "--out", tmp_path, "--num-samples", 10**12) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write ")
    assert "free some space, take fewer, or give another --out" in error
    assert error.count("\n") == 1
    assert not list(Path(tmp_path).glob("*.npy"))
