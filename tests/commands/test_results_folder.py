"""The folder that experiments.regimes writes to by default: one data set's, and always the same."""

import json
import os
import sys

import numpy as np
import pytest

from experiments import regimes

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

PIXELS = np.random.default_rng(1).integers(0, 256, (12, 6, 6), dtype=np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a.npy and faces, and an empty current folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "faces").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    np.save(tmp_path / "home" / "a.npy", PIXELS)
    return tmp_path / "home"


def record(options):
    """Writes what the command writes of its data into the folder that it takes; the folder."""
    folder = regimes.default_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"data": options.data, "data_dir": options.data_dir}
    (folder / "result.json").write_text(json.dumps({"settings": settings}))
    return str(folder.relative_to("runs/regimes"))


def test_results_of_different_data_are_kept_apart(home):
    def of(path, **fields):
        return record(regimes.Options(str(path), **fields))

    assert of("~/faces") == "faces"
    paths = ("a/images.npy", "b/images.npz", "a/images.npz", "images", "../images")
    folders = [of(path) for path in paths]
    assert len(set(folders)) == 5
    assert folders[0] == "images"
    assert all(folder.startswith("images-") for folder in folders[1:])
    for path, folder in zip(paths, folders, strict=True):  # in another spelling too
        assert of(path) == of(f"./{path}") == of(home.parent / "work" / path) == folder
    assert of("set_v1.0") == "set_v1.0"
    assert of("set_v1.1") == "set_v1.1"
    assert of(home / "faces") == "faces"
    # A folder of a data set's name is not that data set, nor are files of its format elsewhere.
    assert of("mnist") == "mnist"
    assert of("./mnist") != "mnist"
    assert of("mnist_full") == of("mnist_full", data_dir="data/mnist_full") == "mnist_full"
    assert of("mnist_full", data_dir="fashion") != "mnist_full"
    os.symlink("a", "link")
    assert of("link/images.npy") == "images"
    # The same data keep their folder where the other's was removed.
    (home.parent / "work" / "runs" / "regimes" / "images" / "result.json").unlink()
    assert of("b/images.npz") == folders[1]


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {"accuracy": 1}}', "\xff"])
def test_results_that_the_command_did_not_write_are_left(content, home):
    folder = home.parent / "work" / "runs" / "regimes" / "a"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content, encoding="latin-1")
    assert regimes.default_folder(regimes.Options("~/a.npy")).name.startswith("a-")
    (folder / "result.json").unlink()
    assert regimes.default_folder(regimes.Options("~/a.npy")).name == "a"


def test_the_command_says_whose_results_they_are(home, monkeypatch, capsys):
    words = ["regimes", "--data", "~/a.npy", "--accuracy", "0.1", "--max-draws", "100"]
    monkeypatch.setattr(sys, "argv", words)
    regimes.main()
    assert "Wrote runs/regimes/a/result.json" in capsys.readouterr().out
    assert regimes.default_folder(regimes.Options(str(home / "a.npy"))).name == "a"
    assert regimes.default_folder(regimes.Options("~/b/a.npz")).name.startswith("a-")
    monkeypatch.setattr(sys, "argv", [*words, "--out", "~/a.npy/out_v1.0"])
    with pytest.raises(SystemExit):
        regimes.main()
    assert f"--out {home}/a.npy/out_v1.0 cannot be made a folder" in capsys.readouterr().err
    assert not list((home.parent / "work").rglob("~*"))
