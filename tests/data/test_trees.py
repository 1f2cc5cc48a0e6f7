"""What lies in a folder of images, at any depth and whoever put it there."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import folder
from diffusion_jax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)


def save(root, *names):
    """Image i of PIXELS under name i."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i]).save(root / name)


def exported(root, count=6):
    """Images as LSUN's exporter lays them out: six folders deep, by the key's first characters."""
    keys = [hashlib.sha1(bytes([i])).hexdigest() for i in range(count)]
    for i, key in enumerate(keys):
        path = root.joinpath(*key[:6], f"{key}.webp")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i]).save(path, lossless=True)
    return PIXELS[np.argsort(keys)]


def own(path, **options):
    return DataConfig(
        str(path), **{"classes": (), "images_per_class": None, "image_size": None} | options
    )


def test_a_deep_folder_is_refused_in_one_sentence_and_taken_flat(tmp_path):
    expected = exported(tmp_path / "lsun")
    for load in (data.load_images, lambda path: data.load(own(path))):
        with pytest.raises(UserError) as error:
            load(tmp_path / "lsun")
        assert f"{tmp_path / 'lsun'} holds images 6 folders deep, such as " in str(error.value)
        assert "--flat takes the images at every depth as one class" in str(error.value)
    for images in (
        data.load_images(tmp_path / "lsun", flat=True),
        data.load(own(tmp_path / "lsun", flat=True)),
        data.load(own(tmp_path / "lsun", flat=True, memory_gib=0, data_dir=tmp_path)),
    ):
        np.testing.assert_array_equal(images.images, expected)
        assert images.labels is None
        assert images.class_names == ()
        assert images.notes == ()
    training, held_out = data.load_split(
        own(tmp_path / "lsun", flat=True, images_per_class=4, held_out_per_class=2)
    )
    np.testing.assert_array_equal(training.images, expected[:4])
    np.testing.assert_array_equal(held_out.images, expected[4:])


def test_flat_takes_every_depth_in_the_order_of_the_paths(tmp_path):
    """Name by name: so a/ comes before a.png, and b/2.png after b/10.png."""
    save(tmp_path, "a/z/0.png", "a.png", "b/10.png", "b/2.png", "b/c/d/e/1.JPG", "c.PNG")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "empty" / "er").mkdir(parents=True)
    images = folder.load(tmp_path, flat=True)
    np.testing.assert_array_equal(images.images[[0, 1, 2, 3, 5]], PIXELS[[0, 1, 2, 3, 5]])
    assert len(images.images) == 6
    (note,) = images.notes
    assert note == f"1 files of {tmp_path} are no images by their names (.txt)"
    with pytest.raises(UserError, match="has no class a; it has no classes"):
        data.load_images(tmp_path, flat=True, classes=("a",))
    with pytest.raises(UserError, match=r"beside subfolders of images, such as a: .*--flat"):
        folder.load(tmp_path)


def test_flat_is_for_folders_of_images(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    for load in (
        lambda: data.load_images(tmp_path / "a.npy", flat=True),
        lambda: data.load(own(tmp_path / "a.npy", flat=True)),
    ):
        with pytest.raises(UserError, match="flat is for folders of images"):
            load()
    with pytest.raises(UserError, match="flat is for folders of your own images, not for mnist"):
        data.load(DataConfig("mnist", ("1",), 2, image_size=32, flat=True))
    (tmp_path / "none" / "at" / "all").mkdir(parents=True)
    with pytest.raises(UserError, match=r"none holds no images .*, at any depth"):
        folder.load(tmp_path / "none", flat=True)


def test_classes_whose_images_lie_deeper_are_never_taken_in_part(tmp_path):
    save(tmp_path, "cats/0.png", "cats/old/1.png", "dogs/2.png")
    with pytest.raises(UserError, match=r"2 folders deep, such as cats/old/1.png"):
        folder.load(tmp_path)
    images = data.load_images(tmp_path, classes=("dogs",))  # which has no deeper ones
    np.testing.assert_array_equal(images.images, PIXELS[2:3])


def test_subfolders_without_images_are_no_obstacle(tmp_path):
    save(tmp_path, "cats/0.png", "dogs/1.png")
    (tmp_path / "cats" / "boxes" / "xml").mkdir(parents=True)
    (tmp_path / "cats" / "boxes" / "xml" / "0.xml").write_text("<box/>")
    images = folder.load(tmp_path)
    np.testing.assert_array_equal(images.images, PIXELS[:2])
    assert images.notes == (f"1 files of {tmp_path} are no images by their names (.xml)",)
    alone = folder.load(tmp_path / "cats")  # images with a subfolder beside them
    np.testing.assert_array_equal(alone.images, PIXELS[:1])
    assert alone.labels is None


def test_all_classes_without_images_are_named(tmp_path):
    save(tmp_path, "cats/0.png")
    (tmp_path / "cows").mkdir()
    (tmp_path / "dogs").mkdir()
    with pytest.raises(UserError) as error:
        folder.load(tmp_path)
    assert str(error.value).startswith(f"2 of 3 subfolders of {tmp_path} cannot be used: ")
    for part in ("cows holds no images", "dogs holds no images", "--classes can leave it out"):
        assert part in str(error.value)
    assert data.load_images(tmp_path, classes=("cats",)).class_names == ("cats",)


LEFTOVERS = [
    "__MACOSX/cats/._0.png",
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.png",
    "@tmp/0.png",
    "#recycle/0.png",
    "lost+found/0.png",
    "LOST.DIR/0.png",
    "found.000/0.png",
    "FOUND.012/0.png",
    "@SynoResource/0.png",
    "0.png@SynoEAStream",
    "$RECYCLE.BIN/0.png",
    "$Recycle.Bin/S-1-5-21/0.png",
    "System Volume Information/0.png",
    "__pycache__/0.png",
    ".Trash-1000/files/0.png",
    ".ipynb_checkpoints/0-checkpoint.png",
    ".git/0.png",
    ".snapshot/0.png",
    ".thumbnails/0.png",
    ".AppleDouble/0.png",
    "._0.png",
    ".DS_Store",
    "Thumbs.db",
    "thumbs.db",
    "desktop.ini",
    "Desktop.ini",
]


@pytest.mark.parametrize("place", ["", "cats", "dogs/deeper"])
def test_what_systems_leave_behind_is_passed_over(tmp_path, place):
    save(tmp_path, "cats/0.png", "dogs/1.png")
    for name in LEFTOVERS:
        path = tmp_path / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    for options in ({}, {"classes": ("cats", "dogs")}):
        images = data.load_images(tmp_path, **options)
        np.testing.assert_array_equal(images.images, PIXELS[:2])
        assert images.class_names == ("cats", "dogs")
        assert images.notes == ()
    flat = folder.load(tmp_path, flat=True)
    np.testing.assert_array_equal(flat.images, PIXELS[:2])
    assert flat.notes == ()
    with pytest.raises(UserError, match="no class __MACOSX; its classes are cats, dogs"):
        data.load_images(tmp_path, classes=("__MACOSX",))


def test_a_leftover_that_may_not_be_read_is_not_looked_into(tmp_path, monkeypatch):
    save(tmp_path, "cats/0.png", "lost+found/1.png")
    scan = os.scandir

    def denied(path):
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    for flat in (False, True):
        assert len(folder.load(tmp_path, flat=flat).images) == 1


def test_files_without_an_ending_are_counted(tmp_path):
    save(tmp_path, "0.png", "1.jfif", "2.jpe", "3.TIF", "4.JPG")
    (tmp_path / "README").write_text("no image")
    (tmp_path / "5.heic").write_text("no image that is read")
    images = folder.load(tmp_path)
    assert len(images.images) == 5
    assert images.notes == (f"2 files of {tmp_path} are no images by their names (.heic, README)",)


@pytest.mark.parametrize("flat", [False, True])
def test_prepared_images_in_the_folder_of_the_images_are_no_class(tmp_path, flat):
    """There they lie by default, for images in data/NAME."""
    save(tmp_path, "cats/0.png", "dogs/1.png")
    config = own(tmp_path, data_dir=tmp_path, memory_gib=0, flat=flat)
    first = data.load(config)
    assert first.file.path.parent == tmp_path / "prepared"
    second = data.load(config)
    assert second.file == first.file
    assert second.notes == first.notes == ()
    assert data.load_images(tmp_path).class_names == ("cats", "dogs")
    (tmp_path / "cats" / "0.png").rename(tmp_path / "kept")
    (tmp_path / "cats" / "0.png").write_bytes(b"")
    first.file.path.unlink()
    with pytest.raises(UserError, match=r"0.png cannot be read as an image"):
        data.load(config)
    (tmp_path / "kept").replace(tmp_path / "cats" / "0.png")
    assert data.load(config).notes == ()  # what the failure left is none either
    save(tmp_path / "prepared", "images-0.png")  # a class of that name
    assert data.load_images(tmp_path).class_names == ("cats", "dogs", "prepared")


def test_links_in_a_circle_end(tmp_path):
    save(tmp_path, "a/0.png", "a/b/1.png")
    (tmp_path / "a" / "b" / "up").symlink_to("../..")
    (tmp_path / "itself").symlink_to("itself")
    for i in range(30):  # each leads to the same folder twice: 2^30 ways
        (tmp_path / f"d{i}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    save(tmp_path / "d30", "2.png")
    images = folder.load(tmp_path, flat=True)
    np.testing.assert_array_equal(images.images, PIXELS[[0, 1, 0]])


def test_links_out_of_a_deep_folder_are_refused(tmp_path):
    save(tmp_path / "root", "a/b/0.png")
    save(tmp_path / "outside", "0.png")
    for name, target in (("a/b/1.png", "outside/0.png"), ("a/b/c", "outside")):
        link = tmp_path / "root" / name
        link.symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=rf"root/{name} leads out of .*root, to .*{target}: co"):
            folder.load(tmp_path / "root", flat=True)
        link.unlink()
    assert len(folder.load(tmp_path / "root", flat=True).images) == 1


def test_all_links_out_of_a_folder_are_named_at_once(tmp_path):
    save(tmp_path / "outside", "0.png")
    save(tmp_path / "root", "0.png")
    for i in (1, 2):
        (tmp_path / "root" / f"{i}.png").symlink_to(tmp_path / "outside" / "0.png")
    with pytest.raises(UserError, match=r"^2 of 3 files of .*1.png leads out.*2.png leads out"):
        folder.load(tmp_path / "root")


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    save(tmp_path, f"{name}/0.png", f"{name}/{name}.png", "zoo/1.png")
    images = folder.load(tmp_path)
    assert images.class_names == (name, "zoo")
    assert len(folder.load(tmp_path, flat=True).images) == 3
    for given in (name, r"caf\xe9"):  # as it is, and as it is shown
        assert data.load_images(tmp_path, classes=("zoo", given)).class_names == ("zoo", name)
    with pytest.raises(UserError, match="must name each class once"):
        data.load_images(tmp_path, classes=(name, r"caf\xe9"))
    save(tmp_path, "caf\\xe9/0.png")  # whose own name is what the other is shown as
    assert data.load_images(tmp_path, classes=(r"caf\xe9",)).class_names == (r"caf\xe9",)
    (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"0.png cannot be read as an image"):
        folder.load(tmp_path)


def test_a_tree_is_read_once_and_its_files_are_looked_at_once(tmp_path, monkeypatch):
    """Each folder is scanned once, and the walk asks the system nothing about each file."""
    exported(tmp_path)
    scanned, looked = [], []
    scan, stat = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scan(path))
    monkeypatch.setattr(os, "stat", lambda path, **k: looked.append(path) or stat(path, **k))
    folder.load(tmp_path, flat=True)
    assert len(set(scanned)) == len(scanned)
    assert not [path for path in looked if str(path).endswith(".webp")]
