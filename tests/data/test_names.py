"""What data sets are called, and homes in their paths."""

import os
from dataclasses import replace

import numpy as np
import pytest
from lmdb_folders import write_folder
from PIL import Image

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import arrays, lsun
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.names import name_of
from diffusion_jax.errors import UserError
from diffusion_jax.presets import data_defaults
from diffusion_jax.training import run
from experiments.train_lsun import parse

PIXELS = np.random.default_rng(1).integers(0, 256, (12, 6, 6), dtype=np.uint8)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("mnist", "mnist"),
        ("set_v1.0", "set_v1.0"),
        ("some/set_v1.1/", "set_v1.1"),
        ("a/images.npy", "images"),
        ("b/images.NPZ", "images"),
        ("v1.0.npz", "v1.0"),
        ("images.tar.gz", "images.tar.gz"),
        ("a/b/..", "a"),
        (".", "here.d"),
        ("folder.npz", "folder.npz"),
        ("/", "data"),
        ("~/x.y", "x.y"),
        (os.fsdecode(b"a/$x$ caf\xe9\x1b.npy"), r"$x$ caf\xe9\x1b"),
    ],
)
def test_only_the_ending_of_a_file_is_cut(path, name, tmp_path, monkeypatch):
    (tmp_path / "here.d" / "folder.npz").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here.d")
    assert name_of(path) == name


def test_runs_of_names_with_dots_do_not_share_a_folder():
    folders = {str(parse(["--data", f"set_v1.{k}"]).output.run_dir) for k in range(2)}
    assert len(folders) == 2
    assert all(folder.endswith(("set_v1.0", "set_v1.1")) for folder in folders)


# The home folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "faces").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "home" / "faces" / f"{i:02d}.png")
    np.savez(tmp_path / "home" / "a.npz", images=PIXELS)
    np.save(tmp_path / "home" / "a.npy", PIXELS)
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["faces", "a.npz", "a.npy"])
@pytest.mark.parametrize("memory_gib", [None, 0])
def test_own_images_in_the_home_folder(home, name, memory_gib):
    config = replace(data_defaults(f"~/{name}"), memory_gib=memory_gib, prepared_dir="~/kept")
    images = data.load(config)
    np.testing.assert_array_equal(images.images[..., 0], PIXELS)
    mapped = {"faces": home / "kept", "a.npy": home}.get(name) if memory_gib == 0 else None
    assert (images.file and images.file.path.parent) == mapped
    np.testing.assert_array_equal(data.load_images(f"~/{name}").images[..., 0], PIXELS)
    assert not list((home.parent / "work").rglob("~*"))


def test_a_data_sets_files_in_the_home_folder(home):
    write_folder(lsun.lmdb_folder(home / "lsun", "tower"), [(256, 256)] * 2)
    config = DataConfig(
        "lsun", ("tower",), 2, image_size=8, data_dir="~/lsun", prepared_dir="~/prepared"
    )
    assert (config.data_dir, config.prepared_dir) == (home / "lsun", home / "prepared")
    assert data.load(config).images.shape == (2, 8, 8, 3)
    assert list((home / "prepared").rglob("*.array_record*"))
    assert parse(["--data-dir", "~/lsun"]).data.data_dir == home / "lsun"
    assert not list((home.parent / "work").rglob("~*"))


def test_a_home_that_is_nobodys():
    for make in (
        lambda path: DataConfig(data_dir=path),
        lambda path: DataConfig(prepared_dir=path),
        lambda path: data.load(data_defaults(path)),
        data.load_images,
        name_of,
    ):
        with pytest.raises(UserError, match="~nobody_of_that_name/x is no path"):
            make("~nobody_of_that_name/x")


# Names that are no text


def test_names_of_classes_are_those_of_the_files_whatever_their_bytes(tmp_path):
    names = [b"$5 to $10", b"_a", b"a\nb", b"caf\xe9"]
    for name in names:
        (tmp_path / os.fsdecode(name)).mkdir()
        Image.fromarray(PIXELS[0]).save(tmp_path / os.fsdecode(name) / "0.png")
    images = data.load_images(tmp_path)
    assert [os.fsencode(name) for name in images.class_names] == names
    labelled = arrays.image_set(PIXELS[:4], np.array(names))
    assert labelled.class_names == images.class_names
    # Of names that are text, as it was before others were thought of.
    text = ImageSet(PIXELS[:2, ..., None], np.arange(2), ("a", "é"))
    assert fingerprint(text) == ("11ff00bd40758ca6545c39be9dd0ca0615cdb49d5fa8ddf865a510eb0db919c9")
    assert fingerprint(images) != fingerprint(replace(images, class_names=("a", "b", "c", "d")))


def test_a_run_is_not_begun_where_no_checkpoint_can_be_kept(tmp_path):
    folder = tmp_path / os.fsdecode(b"run\xe9")
    with pytest.raises(UserError, match="checkpoints cannot be kept there; give another --run-dir"):
        run.claim(parse(["--run-dir", str(folder)]))
    assert not folder.exists()
