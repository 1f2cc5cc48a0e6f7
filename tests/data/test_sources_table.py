"""SOURCES: one value says what a data set is, and commands, checks, help and docs follow it."""

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import two_convolutions
from lmdb_folders import write_folder

from diffusion_jax import data
from diffusion_jax.config import Config, DataConfig, ModelConfig
from diffusion_jax.data import SOURCES, Defaults, Source, lsun
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS, data_defaults, preset_of
from diffusion_jax.runtime import backend
from experiments import regimes, train_lsun
from experiments.tools import data_table

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def squares(monkeypatch):
    """The source that docs/data.md adds from outside the package."""
    for name in SOURCES:  # monkeypatch removes what the page adds
        monkeypatch.setitem(SOURCES, name, SOURCES[name])
    monkeypatch.setitem(SOURCES, "squares", SOURCES["mnist"])
    (block,) = re.findall(r"```python\n(.*?SOURCES.*?)```", PAGE.read_text(), re.DOTALL)
    exec(block, {})
    assert SOURCES["squares"] is not SOURCES["mnist"]


@pytest.fixture
def command(monkeypatch, capsys):
    """A command in this process: its status, stdout and stderr."""
    monkeypatch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)

    def run(module, *words):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        code = 0
        try:
            module.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


# From outside the package


def test_a_source_from_outside_is_loaded_and_checked(squares):
    config = DataConfig("squares", ("light", "dark"), 3, held_out_per_class=2, image_size=4)
    training, held_out = data.load_split(config)
    assert training.images.shape == (6, 4, 4, 1)
    assert training.class_names == ("light", "dark")
    assert training.images[:3].min() >= 127 >= training.images[3:].max()
    everything = data.load(replace(config, images_per_class=5)).images.reshape(2, 5, 4, 4, 1)
    np.testing.assert_array_equal(held_out.images, everything[:, 3:].reshape(4, 4, 4, 1))
    assert data.load(data_defaults("squares")).images.shape == (100, 8, 8, 1)
    with pytest.raises(UserError, match="squares has no class grey; its classes are dark, light"):
        data.load(replace(config, classes=("grey",)))
    with pytest.raises(UserError, match=r"squares needs at least one .* its classes are dark, lig"):
        data.load(replace(config, classes=()))
    with pytest.raises(UserError, match=r"does not exist: data are .*, squares, or"):
        data.load(DataConfig("square"))
    SOURCES["squares"] = replace(SOURCES["squares"], sizes=(8, 16))
    with pytest.raises(UserError, match="image_size = 4: squares has 8 or 16 pixels per side"):
        data.load(config)


@pytest.mark.usefixtures("compiled_for_few_calls")
def test_the_commands_take_a_source_from_outside(squares, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(
        *(train_lsun, "--preset", "sample", "--data", "squares", "--run-dir", "run"),
        *("--steps", 1, "--batch-size", 8, "--num-samples", 8, "--diffusion-steps", 40),
    )
    assert code == 0, err
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert (saved["data"], saved["classes"]) == ("squares", ["dark", "light"])
    code, out, err = command(regimes, "--data", "squares", "--accuracy", "0.05")
    assert code == 0, err
    assert "100 images of 64 values in 2 classes" in out
    result = json.loads((tmp_path / "runs" / "regimes" / "squares" / "result.json").read_text())
    assert set(result["per_class"]) == {"dark", "light"}
    for module in (train_lsun, regimes):
        code, out, err = command(module, "--help")
        assert "squares      dark and light squares of noise" in out
    SOURCES["squares"] = replace(SOURCES["squares"], has_folder=False)
    code, out, err = command(regimes, "--data", "squares", "--data-dir", "x")
    assert (code, "squares comes with a package: it has no --data-dir" in err) == (1, True)


def test_floats_of_a_source_are_refused(monkeypatch):
    floats = ImageSet(np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, int), ("a",))
    source = Source("floats", lambda *_: floats, Defaults(("a",), 2, 8), ("a",))
    monkeypatch.setitem(SOURCES, "floats", source)
    with pytest.raises(UserError, match="floats holds floats: training takes grey levels"):
        data.load(data_defaults("floats"))


# What is made of them


def test_the_tables_of_the_page_are_those_of_the_sources():
    """Where this fails, run: python -m experiments.tools.data_table."""
    page = PAGE.read_text()
    assert data_table.updated(page) == page, "run: python -m experiments.tools.data_table"
    for name in SOURCES:
        assert page.count(f"\n| `{name}` |") == 2
    with pytest.raises(UserError, match=r"one mark <!-- use: \.\.\. -->, not 0"):
        data_table.updated(page.replace("<!-- use:", "<!-- used:"))


def test_the_listing_names_every_source_in_a_line():
    lines = data.listing().splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(SOURCES)
    assert max(map(len, lines)) < 80


def test_what_a_name_means():
    """Each data set's images by default: those of the paper, and of its presets."""
    meant = {
        "lsun": (("church_outdoor", "conference_room"), 20_000, 64),
        "mnist": (("1", "8"), 500, 32),
        "mnist_full": (("1", "8"), 5000, 32),
        "cifar10": (("automobile", "horse"), 1500, 32),
        "imagenet16": (("lesser_panda", "seashore"), 1000, 16),
        "imagenet32": (("lesser_panda", "seashore"), 1000, 32),
        "imagenet64": (("lesser_panda", "seashore"), 1000, 64),
        "celeba": (("female", "male"), 10_000, 64),
        "photographs": (("everyday", "medical"), 500, 16),
    }
    assert list(meant) == list(SOURCES)
    for name, (classes, count, size) in meant.items():
        expected = DataConfig(name, classes, count, image_size=size)
        assert data_defaults(name) == expected
        assert PRESETS["sample" if name == "photographs" else name].data == expected
    assert data_defaults("lsun") == DataConfig()
    assert PRESETS["lsun"] == Config()


def test_the_preset_of_a_data_set(squares):
    for name in SOURCES:
        assert preset_of(name).data == data_defaults(name)
    assert preset_of("lsun") is PRESETS["lsun"]
    assert preset_of("photographs") is PRESETS["sample"]
    assert preset_of("mnist") is PRESETS["mnist"]
    assert preset_of("squares").training == PRESETS["mnist"].training
    assert preset_of("squares").output.run_dir == Path("runs/squares")
    assert preset_of("./mnist") is None
    assert preset_of("images.npy") is None


# What is read


def test_a_preparation_says_nothing_on_the_log(tmp_path, caplog):
    """As a library, at the level that absl has by itself: neither new nor prepared images do."""
    write_folder(lsun.lmdb_folder(tmp_path, "tower"), [(256, 256)] * 3)
    config = DataConfig("lsun", ("tower",), 3, image_size=8, data_dir=tmp_path)
    with caplog.at_level(logging.WARNING, "absl"):
        for _ in range(2):
            data.load(config)
    assert not caplog.messages


@pytest.mark.parametrize("field", ["images_per_class", "image_size", "held_out_per_class"])
@pytest.mark.parametrize("value", [2.5, "3", float("nan")])
def test_numbers_are_whole(field, value):
    config = replace(data_defaults("mnist"), **{field: value})
    with pytest.raises(UserError, match=rf"{field} = '?{value}'? must be a whole number"):
        data.load(config)


def test_classes_are_names():
    with pytest.raises(UserError, match="classes = 'cats' must be a tuple of names"):
        DataConfig(classes="cats")
    listed = DataConfig("mnist", ["1", "8"], 2, image_size=28)
    assert listed == DataConfig("mnist", ("1", "8"), 2, image_size=28)
    assert data.load(listed).class_names == ("1", "8")
