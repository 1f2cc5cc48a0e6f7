"""The same set laid out otherwise: as Kaggle, torchvision, Google Drive and unpackers leave it."""

import gzip
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from lmdb_folders import write_folder
from source_files import CIFAR_FOLDER, cifar_batches, write_celeba, write_cifar, write_idx
from source_files import write_imagenet as write_batches

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import idx, layouts
from diffusion_jax.errors import UserError

RNG = np.random.default_rng(8)


def move(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


# CelebA

MALE = [True, False, True, False]
LIST, CSV = "list_attr_celeba.txt", "list_attr_celeba.csv"
FACES, ZIP = "img_align_celeba", "img_align_celeba.zip"


def load_faces(folder):
    return data.load(DataConfig("celeba", ("female", "male"), 2, image_size=32, data_dir=folder))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """CelebA as its site has it, packed and unpacked, and what is read from it."""
    folder = tmp_path_factory.mktemp("celeba")
    write_celeba(folder / "packed", MALE)
    write_celeba(folder / "unpacked", MALE, packed=False)
    return folder, load_faces(folder / "packed").images


def to_csv(folder, zero="-1", end="\n"):
    """Kaggle's list in place of CelebA's own."""
    _, header, *rows = (folder / LIST).read_text().splitlines()
    lines = ["image_id," + ",".join(header.split())]
    lines += [",".join(row.split()).replace("-1", zero) for row in rows]
    (folder / CSV).write_bytes(end.join([*lines, ""]).encode())
    (folder / LIST).unlink()


def kaggle(folder):
    move(folder / FACES, folder / "inner")
    move(folder / "inner", folder / FACES / FACES)
    to_csv(folder)


def kaggle_packed(folder):
    kaggle(folder)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for path in sorted(folder.rglob("*.jpg")):
            archive.write(path, path.relative_to(folder))
            archive.writestr(f"img_celeba/{path.name}", b"the image before it was aligned")
        archive.write(folder / CSV, CSV)
    shutil.rmtree(folder / FACES)
    (folder / CSV).unlink()


def google_drive(folder):
    move(folder / LIST, folder / "Anno" / LIST)
    move(folder / ZIP, folder / "Img" / ZIP)


def torchvision(folder):
    move(folder, folder.with_name("moved"))
    move(folder.with_name("moved"), folder / "celeba")


def without_count(folder):
    lines = (folder / LIST).read_text().splitlines()
    (folder / LIST).write_bytes("\r\n".join([*lines[1:], "", ""]).encode())


def empty_folder(folder):
    (folder / FACES).mkdir()


def half_a_folder(folder):
    """As an unpacking that broke off leaves it: one image whole, one cut short, the others not."""
    (folder / FACES).mkdir()
    with zipfile.ZipFile(folder / ZIP) as archive:
        for name in ("000001.jpg", "000002.jpg"):
            content = archive.read(f"{FACES}/{name}")
            (folder / FACES / name).write_bytes(content[: len(content) // int(name[5])])


def damaged_zip(folder):
    (folder / ZIP).write_bytes(b"PK\3\4 broken off")


def empty_list(folder):
    to_csv(folder)
    (folder / LIST).write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("unpacked", kaggle),
        ("unpacked", kaggle_packed),
        ("packed", google_drive),
        ("unpacked", torchvision),
        ("packed", torchvision),
        ("packed", without_count),
        ("packed", empty_folder),
        ("packed", half_a_folder),
        ("unpacked", damaged_zip),
        ("packed", empty_list),
        ("packed", lambda folder: to_csv(folder, zero="0")),
        ("packed", lambda folder: to_csv(folder, end="\r\n")),
    ],
)
def test_celeba_laid_out_otherwise(tmp_path, faces, kind, change):
    source, expected = faces
    folder = tmp_path / "data"
    shutil.copytree(source / kind, folder)
    change(folder)
    before = sorted(tmp_path.rglob("*"))
    np.testing.assert_array_equal(load_faces(folder).images, expected)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ("000002.jpg",),
            "of the 4 images wanted are missing, the first 000001.jpg; .*holds 1 of",
        ),
        ((), r"4 of the 4 .* it holds img_align_celeba/ \(empty\), list_attr"),
        (("000001.png",), r"000001.png is of the PNG version, .* get img_align_c"),
        (("../img_align_celeba_png.7z",), r"celeba_png.7z is of the PNG version"),
        (("../img_celeba.7z",), r"img_celeba.7z holds the images before they were aligned"),
    ],
)
def test_what_is_there_of_celeba_is_said(tmp_path, faces, names, text):
    source, _ = faces
    shutil.copy(source / "packed" / LIST, tmp_path)
    (tmp_path / FACES).mkdir()
    for name in names:
        (tmp_path / FACES / name).write_bytes(
            (source / "unpacked" / FACES / name).read_bytes() if ".jpg" in name else b"content"
        )
    with pytest.raises(UserError, match=text) as error:
        load_faces(tmp_path)
    assert "again" not in str(error.value)


def test_all_damaged_faces_are_named_at_once(tmp_path, faces):
    source, _ = faces
    shutil.copytree(source / "unpacked", tmp_path, dirs_exist_ok=True)
    for name in ("000001.jpg", "000004.jpg"):
        (tmp_path / FACES / name).write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"2 of 4 images of CelebA cannot .*000004.*000001"
    ) as error:
        load_faces(tmp_path)
    assert "000002" not in str(error.value)


def test_missing_and_damaged_faces_are_told_together(tmp_path, faces):
    source, _ = faces
    shutil.copytree(source / "unpacked", tmp_path, dirs_exist_ok=True)
    (tmp_path / FACES / "000001.jpg").unlink()
    (tmp_path / FACES / "000004.jpg").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        load_faces(tmp_path)
    message = str(error.value)
    assert "1 of the 4 images wanted are missing, the first 000001.jpg; " in message
    reason = "is no aligned face of CelebA, 178 x 218 pixels (it is no JPEG); "
    assert f"; besides, 000004.jpg of {tmp_path / FACES} {reason}" in message
    assert "000002" not in message


# CIFAR-10

PIXELS = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
KINDS = np.arange(20) % 10


def load_objects(folder):
    return data.load(DataConfig("cifar10", ("horse",), 2, image_size=32, data_dir=folder)).images


def write_batch_files(folder, count=5, content=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in list(cifar_batches(PIXELS, KINDS).items())[:count]:
        (folder / name).write_bytes(records if content is None else content)


def unpacked_tar(folder):
    write_cifar(folder, PIXELS, KINDS)
    packed = folder / "cifar-10-binary.tar.gz"
    (folder / "cifar-10-binary.tar").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()


def beside_the_archive(count, content=None):
    def write(folder):
        write_cifar(folder, PIXELS, KINDS)
        write_batch_files(folder / CIFAR_FOLDER, count, content)

    return write


def damaged_archive(folder):
    write_batch_files(folder / CIFAR_FOLDER)
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b broken off")


@pytest.mark.parametrize(
    "write",
    [
        write_batch_files,  # --data-dir names the folder of the batches
        lambda folder: write_batch_files(folder / CIFAR_FOLDER / CIFAR_FOLDER),
        lambda folder: write_batch_files(folder / "cifar10" / CIFAR_FOLDER),
        lambda folder: write_cifar(folder / "downloads", PIXELS, KINDS),
        unpacked_tar,
        beside_the_archive(0),
        beside_the_archive(3),
        beside_the_archive(5, b""),
        beside_the_archive(5, b"\1" * 3072),
        damaged_archive,
    ],
)
def test_cifar_laid_out_otherwise(tmp_path, write):
    folder = tmp_path / "data"
    write(folder)
    np.testing.assert_array_equal(load_objects(folder), PIXELS[KINDS == 7])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifar-10-batches-py/data_batch_1", "batches-py is of the Python version, whose pickles"),
        ("cifar-10-python.tar.gz", "python.tar.gz is of the Python version"),
        ("data_batch_1", "data_batch_1 is of the Python version"),
        ("cifar-100-binary.tar.gz", "cifar-100-binary.tar.gz is CIFAR-100, another set"),
        ("cifar-100-binary/train.bin", "cifar-100-binary is CIFAR-100, another set"),
        ("cifar-10-matlab.tar.gz", "the Matlab version"),
        ("train.7z", "it holds train.7z; get https"),
        ("cifar-10-binary.tar.gz.partial", r"\.partial has come so far: fetch it again"),
    ],
)
def test_what_is_there_of_cifar_is_said(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"content")
    with pytest.raises(UserError, match=rf"CIFAR-10 was not found.*{text}") as error:
        load_objects(tmp_path)
    assert "cifar-10-binary.tar.gz" in str(error.value)


def test_two_copies_of_cifar_that_are_both_damaged(tmp_path):
    write_batch_files(tmp_path / CIFAR_FOLDER, 2)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(
        UserError, match=r"2 of 2 copies of CIFAR-10 .*data_batch_3.bin.*; .*tar.gz"
    ):
        load_objects(tmp_path)


def test_links_in_a_plain_tar_lead_nowhere(tmp_path):
    (tmp_path / "outside.bin").write_bytes(cifar_batches(PIXELS, KINDS)["data_batch_1.bin"])
    write_batch_files(tmp_path / "batches")
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-binary.tar", "w") as tar:
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "../outside.bin"
        tar.addfile(link)
        for i in range(2, 6):
            tar.add(tmp_path / "batches" / f"data_batch_{i}.bin", f"data_batch_{i}.bin")
    with pytest.raises(UserError, match=r"data_batch_1.bin .* is missing"):
        load_objects(folder)


# MNIST

DIGITS = RNG.integers(0, 256, (8, 28, 28), dtype=np.uint8)


def with_dots(folder):
    write_idx(folder, DIGITS, [1, 8] * 4, packed=False)
    for name in (idx.IMAGES, idx.LABELS):
        move(folder / name, folder / name.replace("-idx", ".idx"))


def as_on_kaggle(folder):
    """A folder of each file's name, with the file in it."""
    write_idx(folder / "flat", DIGITS, [1, 8] * 4, packed=False)
    for name in (idx.IMAGES, idx.LABELS):
        move(folder / "flat" / name, folder / name / name)


def empty_beside_packed(folder):
    write_idx(folder, DIGITS, [1, 8] * 4)
    (folder / idx.IMAGES).write_bytes(b"")


def damaged_beside_unpacked(folder):
    write_idx(folder, DIGITS, [1, 8] * 4, packed=False)
    (folder / f"{idx.IMAGES}.gz").write_bytes(b"\x1f\x8b broken off")


def packed_by_name_only(folder):
    write_idx(folder, DIGITS, [1, 8] * 4, packed=False)
    for name in (idx.IMAGES, idx.LABELS):
        move(folder / name, folder / f"{name}.gz")


def torchvisions(folder):
    """Its folder holds sets whose files are called the same."""
    for other in ("FashionMNIST", "KMNIST"):
        write_idx(folder / other / "raw", 255 - DIGITS, [8, 1] * 4)
    write_idx(folder / "MNIST" / "raw", DIGITS, [1, 8] * 4)
    write_idx(folder / "MNIST" / "raw", DIGITS, [1, 8] * 4, packed=False)


def half_a_copy(folder):
    write_idx(folder / "a", 255 - DIGITS, [1, 8] * 4)
    (folder / "a" / f"{idx.LABELS}.gz").unlink()
    write_idx(folder / "b", DIGITS, [1, 8] * 4)


@pytest.mark.parametrize(
    "write",
    [
        with_dots,
        as_on_kaggle,
        empty_beside_packed,
        damaged_beside_unpacked,
        packed_by_name_only,
        torchvisions,
        half_a_copy,
    ],
)
def test_mnist_laid_out_otherwise(tmp_path, write):
    write(tmp_path)
    pixels, labels = idx.load(tmp_path)
    np.testing.assert_array_equal(pixels, DIGITS.reshape(8, 784))
    assert labels.tolist() == [1, 8] * 4


def test_another_set_alone_is_not_taken_for_mnist(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw", DIGITS, [1, 8] * 4)
    with pytest.raises(UserError, match=r"FashionMNIST is another set, whose files are called"):
        idx.load(tmp_path)
    assert len(idx.load(tmp_path / "FashionMNIST" / "raw")[0]) == 8  # where it is named


def test_digits_that_are_still_packed(tmp_path):
    (tmp_path / "my data").mkdir()
    path = tmp_path / "my data" / "archive.zip"
    path.write_bytes(b"")
    with pytest.raises(UserError) as error:
        idx.load(path.parent)
    assert f"is still packed: unzip '{path}' -d '{path.parent}'" in str(error.value)


# Down-sampled ImageNet


def test_imagenet_in_nested_folders_beside_other_sizes(tmp_path):
    pixels = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.array([7, 367] * 10)
    write_batches(tmp_path / "Imagenet16_train_npz", pixels[:, :16, :16], labels)
    write_batches(tmp_path / "Imagenet32_train_npz" / "Imagenet32_train_npz", pixels, labels)
    (tmp_path / "train_data_batch_3.npz").write_bytes(b"")  # an unpacking that broke off
    for size in (16, 32):
        config = DataConfig(
            f"imagenet{size}", ("seashore",), 10, image_size=size, data_dir=tmp_path
        )
        np.testing.assert_array_equal(data.load(config).images, pixels[1::2, :size, :size])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Imagenet32_train_npz.zip", "zip is still packed: unzip {tmp_path}/Imagenet32_train_npz"),
        ("Imagenet32_train.zip", "Imagenet32_train.zip is of the pickled version"),
        ("Imagenet32_train/train_data_batch_1", "train_data_batch_1 is of the pickled version"),
        ("Imagenet32_val_npz.zip", "val_npz.zip is the validation set"),
        ("val_data.npz", "val_data.npz is the validation set"),
    ],
)
def test_what_is_there_of_imagenet_is_said(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"content")
    with pytest.raises(UserError, match=text.format(tmp_path=tmp_path)):
        data.load(DataConfig("imagenet32", ("seashore",), 1, image_size=32, data_dir=tmp_path))


def test_missing_and_damaged_batches_are_told_together(tmp_path):
    pixels = RNG.integers(0, 256, (240, 32, 32, 3), dtype=np.uint8)
    write_batches(tmp_path, pixels, np.array([7, 367] * 120))
    config = DataConfig("imagenet32", ("seashore",), 120, image_size=32, data_dir=tmp_path)
    batches = [tmp_path / f"train_data_batch_{number}.npz" for number in range(1, 11)]
    for batch in (batches[1], batches[8]):  # an image's byte, which the archive's sum tells
        content = bytearray(batch.read_bytes())
        content[70_000] ^= 1
        batch.write_bytes(content)
    with pytest.raises(UserError, match=r"^2 of 10 batches in .*batch_2.npz .*batch_9.npz .*CRC"):
        data.load(config)
    batches[4].write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"^3 of 10 batches .*batch_5.npz .*_2.npz .*_9.npz"):
        data.load(config)
    batches[6].unlink()
    with pytest.raises(
        UserError,
        match=r"of which 1 are missing, the first train_data_batch_7.npz; .*; besides, "
        r"3 of 9 batches .*batch_5.npz .*_2.npz .*_9.npz",
    ):
        data.load(config)


# LSUN


def load_scenes(folder, category, prepared):
    config = DataConfig(
        "lsun", (category,), 2, image_size=16, data_dir=folder, prepared_dir=prepared
    )
    return data.load(config).images


@pytest.mark.parametrize(
    ("category", "inside", "named"),
    [
        ("tower", "tower_train_lmdb/tower_train_lmdb", "."),
        ("tower", "lsun/scenes/tower_train_lmdb", "."),
        ("tower", "tower_train_lmdb", "tower_train_lmdb"),  # --data-dir names the LMDB itself
        ("cat", "lsun/cat/cat", "."),
        ("tv-monitor", "objects/tv-monitor", "."),
    ],
)
def test_lsun_laid_out_otherwise(tmp_path, category, inside, named):
    plain = tmp_path / "plain" / inside.rpartition("/")[2]
    write_folder(plain, [(256, 256)] * 2)
    shutil.copytree(plain, tmp_path / "data" / inside)
    expected = load_scenes(tmp_path / "plain", category, tmp_path / "a")
    found = load_scenes(tmp_path / "data" / named, category, tmp_path / "b")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tower_train_lmdb.zip", r"is still packed: unzip \S*tower_train_lmdb.zip -d"),
        ("tower_val_lmdb/data.mdb", r"tower_val_lmdb is the validation set"),
        ("bridge_train_lmdb/data.mdb", r"it holds bridge_train_lmdb/, tower_train_lmdb/ \(empty\)"),
    ],
)
def test_what_is_there_of_lsun_is_said(tmp_path, name, text):
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    (tmp_path / "data" / name).write_bytes(b"content")
    (tmp_path / "data" / "tower_train_lmdb").mkdir()
    with pytest.raises(UserError, match=rf"LSUN's tower was not found.*, but .*{text}"):
        load_scenes(tmp_path / "data", "tower", tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


# The search itself


def test_a_search_ends_in_a_circle_and_in_a_large_tree(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "prepared" / "c").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "a" / "wanted").write_text("")
    depths = [len(path.relative_to(tmp_path).parts) for path, _ in layouts.folders(tmp_path)]
    assert depths == [0, 1, 2, 3, 4]  # each once more by the link, no deeper than four
    assert layouts.found(tmp_path, "wanted")[0] == tmp_path / "a" / "wanted"
    monkeypatch.setattr(layouts, "_MOST_FOLDERS", 2)
    assert len(list(layouts.folders(tmp_path))) == 2


def test_what_lies_in_a_folder(tmp_path):
    assert layouts.what_lies(tmp_path / "none") == "it does not exist"
    assert layouts.what_lies(tmp_path) == "it is empty"
    for i in range(8):
        (tmp_path / f"{i}.bin").write_text("")
    held = "it holds 0.bin, 1.bin, 2.bin, 3.bin, 4.bin, 5.bin and 2 more"
    assert layouts.what_lies(tmp_path) == held
    assert "is a file" in layouts.what_lies(tmp_path / "0.bin")
