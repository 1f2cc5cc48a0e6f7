"""A user's own images for training, and sets larger than the memory that they may take."""

import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lmdb_folders import write_folder
from PIL import Image
from source_files import write_celeba

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import lsun, pictures, storage
from diffusion_jax.data.batches import batch_indices, device_batches
from diffusion_jax.data.fingerprint import changed, fingerprint
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS, data_defaults
from diffusion_jax.runtime import memory
from diffusion_jax.training.saved_config import differences, from_dict, to_dict
from experiments.train_lsun import parse

PIXELS = np.random.default_rng(1).integers(0, 256, (18, 8, 10, 3), dtype=np.uint8)


def write_images(root, classes=("cats", "dogs", "owls")):
    """Six images a class; those of class c are PIXELS[c::3], in the order of their names."""
    for i, pixels in enumerate(PIXELS):
        path = root / (classes[i % len(classes)] if classes else "") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def write_npy(path):
    np.save(path, PIXELS)
    return path


def write_npz(path):
    names = np.array(["cats", "dogs", "owls"] * 6)
    np.savez(path, images=PIXELS, labels=names)
    return path


def own(path, **fields):
    return replace(data_defaults(str(path)), **fields)


def test_a_path_means_all_its_images_as_they_are(tmp_path):
    images = data.load(own(write_images(tmp_path / "mine")))
    np.testing.assert_array_equal(images.images, np.concatenate([PIXELS[c::3] for c in range(3)]))
    assert images.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert images.class_names == ("cats", "dogs", "owls")
    np.testing.assert_array_equal(data.load(own(write_npy(tmp_path / "a.npy"))).images, PIXELS)
    images = data.load(own(write_npz(tmp_path / "a.npz")))
    np.testing.assert_array_equal(images.images, PIXELS)
    assert images.labels.tolist() == [0, 1, 2] * 6


@pytest.mark.parametrize("write", [write_images, write_npz])
def test_classes_and_held_out_images_of_ones_own(tmp_path, write):
    path = write(tmp_path / "mine.npz")
    config = own(path, classes=("owls", "cats"), images_per_class=3, held_out_per_class=2)
    for images, ranks in ((data.load(config), slice(3)), (data.load_split(config)[1], slice(3, 5))):
        assert images.class_names == ("owls", "cats")
        for label, place in ((0, 2), (1, 0)):
            np.testing.assert_array_equal(
                images.images[images.labels == label], PIXELS[place::3][ranks]
            )
        assert len(images.images) == 2 * (ranks.stop - (ranks.start or 0))
    with pytest.raises(UserError, match=r"holds 6 images.* = 3 \+ 4"):
        data.load_split(replace(config, held_out_per_class=4))
    with pytest.raises(UserError, match=r"has no class cows; its classes are cats, dogs, owls"):
        data.load(replace(config, classes=("cows",)))
    with pytest.raises(UserError, match=r"classes = \('cats', 'cats'\) must name each class once"):
        data.load(replace(config, classes=("cats", "cats")))


@pytest.mark.parametrize("write", [lambda path: write_images(path, ()), write_npy])
def test_images_without_classes_for_training(tmp_path, write):
    config = own(write(tmp_path / "mine.npy"), images_per_class=10, held_out_per_class=8)
    np.testing.assert_array_equal(data.load(config).images, PIXELS[:10])
    np.testing.assert_array_equal(data.load_split(config)[1].images, PIXELS[10:])
    assert data.load(config).labels is None
    with pytest.raises(UserError, match=r"holds 18 images, fewer than .* = 10 \+ 9"):
        data.load_split(replace(config, held_out_per_class=9))
    with pytest.raises(UserError, match="has no class cats; it has no classes"):
        data.load(replace(config, classes=("cats",)))
    with pytest.raises(UserError, match="give images_per_class too"):
        data.load_split(replace(config, images_per_class=None))


def test_what_training_cannot_take(tmp_path):
    np.save(tmp_path / "floats.npy", PIXELS / 255)
    with pytest.raises(UserError, match=r"floats.npy holds floats: training takes grey levels"):
        data.load(own(tmp_path / "floats.npy"))
    with pytest.raises(UserError, match="image_size is for folders"):
        data.load(own(write_npy(tmp_path / "a.npy"), image_size=8))
    with pytest.raises(UserError, match=r"minst does not exist: data are lsun, mnist, mnist_full"):
        data.load(own("minst"))
    with pytest.raises(UserError, match="image_size = 0 must be at least 1"):
        data.load(own(tmp_path, image_size=0))
    with pytest.raises(UserError, match=r"mnist needs .* images_per_class and image_size, not"):
        data.load(replace(PRESETS["mnist"].data, images_per_class=None))
    with pytest.raises(UserError, match="lsun needs at least one class"):
        data.load(DataConfig(classes=()))


def test_the_command_takes_names_and_paths():
    assert parse(["--data", "cifar10"]).data == PRESETS["cifar10"].data
    config = parse(["--preset", "sample", "--data", "some/faces.npy", "--images-per-class", "7"])
    assert config.data == DataConfig("some/faces.npy", (), 7, image_size=None)
    assert config.output.run_dir == Path("runs/sample_faces")
    assert config.model == PRESETS["sample"].model
    assert parse(["--preset", "imagenet16"]) == PRESETS["imagenet16"]
    config = parse(["--data", "photos", "--classes", "cats", "dogs", "--memory-gib", "3"])
    assert config.data == DataConfig(
        "photos", ("cats", "dogs"), None, image_size=None, memory_gib=3
    )
    again = from_dict(to_dict(config))
    assert again == config
    elsewhere = replace(config, data=replace(config.data, memory_gib=None))
    assert differences(config, elsewhere) == []


# Larger than the memory


def sources(tmp_path):
    """A configuration of each kind of source that can be mapped."""
    for category in ("cat", "tower"):
        write_folder(lsun.lmdb_folder(tmp_path / "lsun", category), [(256, 256)] * 4)
    write_celeba(tmp_path / "celeba", [True, False] * 4)
    return {
        "lsun": DataConfig("lsun", ("cat", "tower"), 4, image_size=8, data_dir=tmp_path / "lsun"),
        "celeba": DataConfig(
            "celeba", ("male", "female"), 4, image_size=8, data_dir=tmp_path / "celeba"
        ),
        "folder": own(write_images(tmp_path / "own"), data_dir=tmp_path),
        "npy": own(write_npy(tmp_path / "a.npy"), images_per_class=16),
    }


@pytest.mark.parametrize("name", ["lsun", "celeba", "folder", "npy"])
def test_mapped_images_are_those_in_memory(tmp_path, name):
    config = sources(tmp_path)[name]
    inside = data.load(config)
    mapped = data.load(replace(config, memory_gib=0))
    assert inside.file is None
    assert not isinstance(inside.images, np.memmap)
    assert isinstance(mapped.images, np.memmap)
    assert not mapped.images.flags.writeable
    assert changed(mapped) is None
    np.testing.assert_array_equal(mapped.images, inside.images)
    np.testing.assert_array_equal(mapped.mean, inside.mean)
    assert fingerprint(mapped) == fingerprint(inside)
    assert mapped.class_names == inside.class_names
    n = len(inside.images)
    pairs = zip(
        device_batches(mapped.images, 3, 5, 16, updates=[1, 2, 1]),
        device_batches(inside.images, 3, 5, 16, updates=[1, 2, 1]),
        strict=True,
    )
    for step, (ours, theirs) in zip((5, 6, 8), pairs, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        first = np.asarray(theirs).reshape(8, -1, 2, *inside.images.shape[1:])[:, 0]
        expected = inside.images[batch_indices(3, step, 16, n)]
        np.testing.assert_array_equal(first.reshape(expected.shape), expected)


def test_a_mapped_file_is_made_once_and_anew_where_the_source_changed(tmp_path):
    config = own(write_images(tmp_path / "own"), data_dir=tmp_path, memory_gib=0)
    first = data.load(config)
    assert first.file.path.parent == tmp_path / "prepared"
    assert data.load(config).file == first.file
    assert data.load(replace(config, classes=("cats",))).file.path != first.file.path
    Image.fromarray(PIXELS[0, ::-1]).save(tmp_path / "own" / "cats" / "00.png")
    second = data.load(config)
    assert second.file.path != first.file.path
    np.testing.assert_array_equal(second.images[0], PIXELS[0, ::-1])
    np.testing.assert_array_equal(first.images[0], PIXELS[0])
    assert not list((tmp_path / "prepared").glob("*.partial"))


def test_a_mapped_file_that_is_damaged_is_named(tmp_path):
    config = own(write_images(tmp_path / "own"), data_dir=tmp_path, memory_gib=0)
    path = data.load(config).file.path
    content = path.read_bytes()
    for damaged in (content[:-1], content[:50], b"", content.replace(b"18, 8", b"08, 8")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path} is damaged.*remove it"):
            data.load(config)
    path.unlink()
    np.testing.assert_array_equal(data.load(config).images[0], PIXELS[0])


def test_a_full_disk_and_a_failure_in_the_middle_leave_nothing(tmp_path, monkeypatch):
    config = own(write_images(tmp_path / "own"), data_dir=tmp_path, memory_gib=0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"cannot keep .* No space left .*--prepared-dir"):
            data.load(config)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data.load(config)
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [".lock"]
    np.testing.assert_array_equal(data.load(config).images[0], PIXELS[0])
    with pytest.raises(UserError, match="memory_gib = -1 must be a number"):
        data.load(replace(config, memory_gib=-1))


def test_half_of_the_free_memory_is_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: memory.Available(2000))
    store = storage.Store(tmp_path)
    assert store.fits(1000)
    assert not store.fits(1001)
    assert storage.Store(tmp_path, 1).fits(2**30)
    assert not storage.Store(tmp_path, 1).fits(2**30 + 1)


# Anonymous memory at its peak, above that before loading: pages of a mapped file are the system's
# cache, which it takes back where memory is short.
LARGE = """
    import sys, threading, time
    import numpy as np
    from diffusion_jax import covariance, data
    from diffusion_jax.config import DataConfig
    from diffusion_jax.data.batches import device_batches
    from diffusion_jax.data.fingerprint import fingerprint
    from diffusion_jax.regimes import neighbours, spectrum
    from diffusion_jax.training import evaluation

    def anonymous():
        with open("/proc/self/status") as status:
            kilobytes = (line.split()[1] for line in status if line.startswith("RssAnon"))
            return int(next(kilobytes)) / 2**10

    def watch():
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)

    def use(images):
        spectrum.largest_eigenvalue(images)
        evaluation.memorisation(np.zeros((2, 64, 64, 3), np.float32), images)
        for _, batch in zip(range(20), device_batches(images, 0, 0, 64)):
            batch.block_until_ready()

    # What takes some hundred megabytes at most, whatever the data.
    covariance._BLOCK_BYTES = covariance._KEPT_BYTES = 2**22
    neighbours._POINTS = 32
    use(np.arange(256 * 64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(-1, 64, 64, 3))
    peak = [0.0]
    threading.Thread(target=watch, daemon=True).start()
    before = anonymous()
    images = data.load(DataConfig(sys.argv[1], (), None, image_size=None, memory_gib=0.05))
    images.mean
    fingerprint(images)
    use(images.images)
    print(peak[0] - before)
    copied = np.array(images.images)
    time.sleep(0.1)
    print(peak[0] - before)
"""


def test_images_larger_than_the_memory_are_used_in_bounded_memory(tmp_path):
    path = tmp_path / "large.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (12_288, 64, 64, 3))  # 144 MiB
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 100, (1024, 64, 64, 3), dtype=np.uint8)
    for part in np.split(images, 12):  # one mode stands out, which is soon found
        part[:] = noise + rng.integers(0, 150, (1024, 1, 1, 1), dtype=np.uint8)
    images.flush()
    words = [sys.executable, "-c", textwrap.dedent(LARGE), str(path)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    used, with_a_copy = map(float, result.stdout.split())
    assert used < 72
    assert with_a_copy > 144  # the measurement would tell
