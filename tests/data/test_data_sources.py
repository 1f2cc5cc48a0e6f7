"""Each source read from a small set in its own true format."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from lmdb_folders import decode_independently, write_folder
from PIL import Image
from source_files import (
    CIFAR_FOLDER,
    cifar_batches,
    write_celeba,
    write_cifar,
    write_idx,
    write_imagenet,
    write_tar,
)

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import idx, imagenet, lsun
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS

RNG = np.random.default_rng(3)


def split(images, classes, count):
    return images.images.reshape(classes, count, *images.images.shape[1:])


def check_source(config, pixels, labels, wanted):
    """Training images are the first of each class in the source's order, held-out ones the next."""
    config = replace(config, images_per_class=3, held_out_per_class=2)
    training, held_out = data.load_split(config)
    for images, ranks in ((training, slice(3)), (held_out, slice(3, 5))):
        expected = np.concatenate([pixels[labels == label][ranks] for label in wanted])
        np.testing.assert_array_equal(images.images, expected)
        assert images.images.dtype == np.uint8
        assert images.labels.tolist() == sorted(images.labels.tolist())
        assert np.bincount(images.labels).tolist() == [ranks.stop - (ranks.start or 0)] * 2
        assert images.class_names == config.classes
    with pytest.raises(UserError, match=rf"holds \d+ images of .*{re.escape('+')} 20"):
        data.load_split(replace(config, held_out_per_class=20))


# MNIST


def digits(n=40):
    return RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n) % 4


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_from_its_own_files(tmp_path, packed):
    pixels, labels = digits()
    write_idx(tmp_path, pixels, labels.tolist(), packed)
    config = DataConfig("mnist_full", ("3", "1"), image_size=32, data_dir=tmp_path)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[..., None]
    check_source(config, padded, labels, (3, 1))


@pytest.mark.parametrize("place", [".", "raw", "FashionMNIST/raw"])
def test_a_folder_in_the_format_of_mnist_as_torchvision_leaves_it(tmp_path, place):
    pixels, labels = digits()
    write_idx(tmp_path / place, pixels, labels.tolist(), packed=False)
    images = data.load_images(tmp_path)
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(images.images[..., 0], pixels[order])
    np.testing.assert_array_equal(np.array(images.class_names, int)[images.labels], labels[order])
    some = DataConfig(str(tmp_path), ("3", "1"), images_per_class=1, image_size=32)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[..., None]
    first = [np.flatnonzero(labels == digit)[0] for digit in (3, 1)]
    np.testing.assert_array_equal(data.load(some).images, padded[first])


def test_pickles_of_cifar_are_not_read(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"harm")
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(UserError, match=r"pickles, which are never read: get the binary .*tar"):
            data.load_images(folder)


def test_mnist_from_its_own_files_in_the_original_byte_order(tmp_path):
    """The idx header of the published files, as its description spells it out."""
    pixels, labels = digits(4)
    write_idx(tmp_path, pixels, labels.tolist(), packed=False)
    content = (tmp_path / idx.IMAGES).read_bytes()
    assert content[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 28, 0, 0, 0, 28])
    assert content[16 : 16 + 784] == pixels[0].tobytes()
    np.testing.assert_array_equal(idx.load(tmp_path)[0], pixels.reshape(4, 784))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "shorter or longer than the 8 items"),
        (lambda content: content + b"\0", "shorter or longer than the 8 items"),
        (lambda content: content[:3], "unpack requires"),
        (lambda content: b"\0\0\x0d\x03" + content[4:], "its header tells another array"),
        (lambda content: content[:8] + b"\0\0\0\x20" + content[12:], "tells another array"),
        (lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:], "4294967295 images"),
        (lambda content: content[:4] + b"\0\0\0\0" + content[8:16], "tells 0 images"),
    ],
)
def test_damaged_idx_files(tmp_path, damage, message):
    pixels, labels = digits(8)
    write_idx(tmp_path, pixels, labels.tolist(), packed=False)
    path = tmp_path / idx.IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        idx.load(tmp_path)
    assert idx.URL in str(error.value)


def test_a_packed_file_that_is_truncated_or_no_gzip(tmp_path):
    pixels, labels = digits(8)
    write_idx(tmp_path, pixels, labels.tolist())
    path = tmp_path / f"{idx.IMAGES}.gz"
    content = path.read_bytes()
    for damaged in (content[:-100], b"no gzip at all", content[:20] + b"\0" * 40 + content[60:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is no idx file of MNIST"):
            idx.load(tmp_path)


def test_digits_and_labels_that_do_not_belong_together(tmp_path):
    pixels, _ = digits(8)
    write_idx(tmp_path, pixels, [1] * 8)
    write_idx(tmp_path / "other", pixels[:7], [1] * 7)
    (tmp_path / "other" / f"{idx.LABELS}.gz").replace(tmp_path / f"{idx.LABELS}.gz")
    with pytest.raises(UserError, match="8 digits and 7 labels"):
        idx.load(tmp_path)


# CIFAR-10


def colours(n, size, classes, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % classes


@pytest.mark.parametrize("unpacked", [True, False])
def test_cifar_from_its_binary_version(tmp_path, unpacked):
    pixels, labels = colours(60, 32, 10)
    if unpacked:
        (tmp_path / CIFAR_FOLDER).mkdir()
        for name, content in cifar_batches(pixels, labels).items():
            (tmp_path / CIFAR_FOLDER / name).write_bytes(content)
    else:
        write_cifar(tmp_path, pixels, labels)
    config = DataConfig("cifar10", ("horse", "automobile"), image_size=32, data_dir=tmp_path)
    check_source(config, pixels, labels, (7, 1))
    with pytest.raises(UserError, match=r"no class car; its classes are airplane, automobile"):
        data.load(replace(config, classes=("car",), images_per_class=1))
    if not unpacked:
        assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("data_batch_4.bin"), "data_batch_4.bin .* is missing"),
        (lambda found: found.update({"data_batch_2.bin": b"\1" * 3072}), "data_batch_2.bin .* dam"),
        (lambda found: found.update({"data_batch_2.bin": b"\x0a" * 3073}), "a label from 0 to 9"),
        (lambda found: found.update({"data_batch_5.bin": b""}), "data_batch_5.bin .* damaged"),
    ],
)
def test_damaged_cifar(tmp_path, change, message):
    found = cifar_batches(*colours(20, 32, 10))
    change(found)
    members = [(f"{CIFAR_FOLDER}/{name}", content) for name, content in found.items()]
    write_tar(tmp_path / "cifar-10-binary.tar.gz", members)
    with pytest.raises(UserError, match=message):
        data.load(replace(PRESETS["cifar10"].data, images_per_class=1, data_dir=tmp_path))


def test_a_truncated_archive_of_cifar(tmp_path):
    write_cifar(tmp_path, *colours(20, 32, 10))
    path = tmp_path / "cifar-10-binary.tar.gz"
    for content in (path.read_bytes()[:20_000], b"no archive"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            data.load(replace(PRESETS["cifar10"].data, images_per_class=1, data_dir=tmp_path))


# Down-sampled ImageNet


def test_imagenet_classes_are_chosen_by_wordnet():
    """Label k is line k of map_clsloc.txt: 7 is the lesser panda, 367 the seashore."""
    ids = imagenet.wordnet_ids()
    assert len(set(ids)) == 1000
    assert all(re.fullmatch(r"n\d{8}", each) for each in ids)
    assert ids[0] == "n02119789"  # kit fox, the first of the kit's list, not the least of the ids
    assert ids != sorted(ids)
    assert ids[7 - 1] == imagenet.NAMES["lesser_panda"]
    assert ids[367 - 1] == imagenet.NAMES["seashore"]


@pytest.mark.parametrize("memory_gib", [None, 0.0])
@pytest.mark.parametrize("size", [16, 32])
def test_imagenet_from_its_npz_batches(tmp_path, size, memory_gib, monkeypatch):
    monkeypatch.setattr(imagenet, "_ROWS", 3)
    pixels, kinds = colours(73, size, 5)
    labels = np.array([7, 367, 1, 1000, 8])[kinds]
    folder = tmp_path / f"Imagenet{size}_train_npz"
    write_imagenet(folder, pixels, labels)
    config = DataConfig(
        f"imagenet{size}",
        ("seashore", "lesser_panda"),
        image_size=size,
        data_dir=tmp_path,
        memory_gib=memory_gib,
    )
    check_source(config, pixels, labels, (367, 7))
    named = replace(config, classes=("n02119789",), images_per_class=14)
    np.testing.assert_array_equal(data.load(named).images, pixels[labels == 1][:14])
    assert len(list((tmp_path / "prepared").glob("*.npy"))) == (0 if memory_gib is None else 3)
    with pytest.raises(UserError, match=r"no class panda: classes are lesser_panda, seashore or"):
        data.load(replace(config, classes=("panda",)))
    with pytest.raises(UserError, match="one class twice, by its name and by its id"):
        data.load(replace(config, classes=("seashore", "n09428293")))
    with pytest.raises(UserError, match=f"image_size = 8: imagenet{size} has {size} pixels"):
        data.load(replace(config, image_size=8))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"data": np.zeros((4, 3072), np.uint8)},
            r"uint8\(4, 3072\), and uint8\(4, 768\) are 4 images of 16 x 16",
        ),
        ({"data": np.zeros((4, 768))}, "float64"),
        ({"data": np.zeros((5, 768), np.uint8)}, r"uint8\(5, 768\), and uint8\(4, 768\)"),
        ({"labels": np.arange(4)}, r"labels lie in 0..3, not in 1..1000"),
        ({"labels": np.array([1, 2, 3, 1001])}, r"labels lie in 1..1001"),
        ({"labels": np.ones((4, 1), int)}, "its labels are"),
        ({"labels": np.array([1, 2, 3, None])}, "its labels are object"),
        ({"images": np.zeros(3)}, "it holds no array data"),
    ],
)
def test_batches_that_are_not_imagenets(tmp_path, named, message):
    write_imagenet(tmp_path, *colours(40, 16, 5))
    arrays = {"data": np.zeros((4, 768), np.uint8), "labels": np.arange(1, 5)} | named
    if "images" in named:
        del arrays["data"]
    np.savez(tmp_path / "train_data_batch_1.npz", **arrays)
    with pytest.raises(UserError, match=rf"train_data_batch_1.npz cannot be read.*{message}"):
        data.load(replace(PRESETS["imagenet16"].data, data_dir=tmp_path))


def test_a_truncated_batch_of_imagenet(tmp_path):
    pixels, labels = colours(40, 16, 5)
    write_imagenet(tmp_path, pixels, labels + 1)
    path = tmp_path / "train_data_batch_10.npz"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"train_data_batch_10.npz cannot be read"):
        data.load(replace(PRESETS["imagenet16"].data, data_dir=tmp_path))


# CelebA


@pytest.mark.parametrize("packed", [True, False])
def test_celeba_by_the_attribute_male(tmp_path, packed):
    male = np.arange(12) % 2 == 0
    encoded = write_celeba(tmp_path, male, packed=packed)
    faces = []
    for content in encoded.values():
        pixels = Image.open(io.BytesIO(content)).crop((0, 20, 178, 198))
        lossless = io.BytesIO()
        pixels.save(lossless, "PNG")
        faces.append(decode_independently(lossless.getvalue(), 64, crop=178))
    config = DataConfig("celeba", ("male", "female"), image_size=64, data_dir=tmp_path)
    check_source(config, np.array(faces), male, (True, False))
    with pytest.raises(UserError, match="no class men; its classes are female, male"):
        data.load(replace(config, classes=("men",)))
    with pytest.raises(UserError, match="image_size = 200: CelebA's images are 178 pixels wide"):
        data.load(replace(config, image_size=200))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("000003.jpg", "../../3.jpg", "after 2 lines"),
        (" Male", " Man", "after 0 lines"),
        ("000002.jpg -1 -1", "000002.jpg -1  0", "after 1 lines"),
        ("000004.jpg -1 -1 -1", "000004.jpg", "after 3 lines"),
        ("000001.jpg", "000009.jpg", "1 of the 4 images wanted are missing, the first 000009"),
    ],
)
def test_damaged_celeba(tmp_path, old, new, message):
    write_celeba(tmp_path, [True, False, True, False])
    path = tmp_path / "list_attr_celeba.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        data.load(DataConfig("celeba", ("female", "male"), 2, data_dir=tmp_path))


def test_faces_that_are_damaged(tmp_path):
    write_celeba(tmp_path, [True, False], packed=False)
    config = DataConfig("celeba", ("female", "male"), 1, data_dir=tmp_path)
    path = tmp_path / "img_align_celeba" / "000002.jpg"
    content = path.read_bytes()
    Image.new("RGB", (178, 178)).save(tmp_path / "small.jpg")
    for damaged in (content[:2000], b"", (tmp_path / "small.jpg").read_bytes(), b"0" * 2**21):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"000002.jpg of .* is no aligned face of CelebA"):
            data.load(config)
    for path in (tmp_path / "img_align_celeba").iterdir():
        path.unlink()
    (tmp_path / "img_align_celeba").rmdir()
    (tmp_path / "img_align_celeba.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"img_align_celeba.zip cannot be read"):
        data.load(config)


# LSUN


def test_all_categories_of_lsun_and_their_folders(tmp_path):
    assert len(lsun.SCENES) == 10
    assert len(lsun.OBJECTS) == 20
    sizes = [(300, 180), (64, 90), (120, 500), (256, 256), (77, 65)]
    values = {
        folder: write_folder(
            tmp_path / folder, sizes if folder == "cat" else [(256, 300)] * 5, seed
        )
        for seed, folder in enumerate(("cat", "tower_train_lmdb"))
    }
    config = DataConfig("lsun", ("cat", "tower"), 5, data_dir=tmp_path)
    images = split(data.load(config), 2, 5)
    for place, key in enumerate(sorted(values["cat"])):
        content = values["cat"][key]
        side = min(Image.open(io.BytesIO(content)).size)
        expected = decode_independently(content, 64, crop=side)
        np.testing.assert_array_equal(images[0, place], expected)
    for place, key in enumerate(sorted(values["tower_train_lmdb"])):
        expected = decode_independently(values["tower_train_lmdb"][key], 64)
        np.testing.assert_array_equal(images[1, place], expected)
    with pytest.raises(UserError, match=r"number \d\) of the LMDB .*cat cannot.*not enlarged"):
        data.load(replace(config, image_size=65))


def test_a_category_that_is_none_is_named_with_the_list(tmp_path):
    with pytest.raises(UserError) as error:
        data.load(DataConfig("lsun", ("church", "cat"), 5, data_dir=tmp_path))
    assert "LSUN has no category church; its scenes are bedroom, bridge" in str(error.value)
    for name in lsun.SCENES + lsun.OBJECTS:
        assert name in str(error.value)


# All of them


@pytest.mark.parametrize(
    "name", sorted(set(PRESETS) - {"mnist", "sample", "lsun_small", "celeba32_gray"})
)
def test_missing_files_are_named_with_their_source_and_place(name, tmp_path):
    config = replace(PRESETS[name].data, data_dir=tmp_path / "here")
    with pytest.raises(UserError) as error:
        data.load(config)
    wanted = {
        "mnist_full": ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "cvdf-datasets"],
        "cifar10": ["cifar-10-binary.tar.gz", "cs.toronto.edu"],
        "imagenet16": ["Imagenet16_train_npz.zip", "train_data_batch_10.npz", "image-net.org"],
        "imagenet32": ["Imagenet32_train_npz.zip", "not the pickles"],
        "imagenet64": ["Imagenet64_train_part1_npz.zip and Imagenet64_train_part2_npz.zip"],
        "celeba": ["img_align_celeba.zip", "list_attr_celeba.txt", "mmlab.ie.cuhk.edu.hk"],
        "lsun": ["church_outdoor_train_lmdb", "github.com/fyu/lsun"],
    }[name]
    for part in (*wanted, str(tmp_path / "here"), "--data-dir"):
        assert part in str(error.value)


def test_presets_are_the_papers():
    """Table 1 of the paper: n, d; and the collapse run of LSUN."""
    for name, n, d in (
        ("mnist_full", 10_000, 1024),
        ("cifar10", 3000, 3072),
        ("imagenet16", 2000, 768),
        ("imagenet32", 2000, 3072),
        ("lsun", 40_000, 12288),
        ("lsun_small", 200, 12288),
    ):
        config = PRESETS[name]
        channels = 1 if name == "mnist_full" else 3
        assert config.data.images_per_class * len(config.data.classes) == n
        assert config.data.image_size**2 * channels == d
        assert config.training.batch_size == (64 if "lsun" in name else 128)
        assert config.steps == 350_000
        config.model.build(channels).check(config.data.image_size, config.data.image_size, channels)
