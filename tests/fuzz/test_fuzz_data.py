"""Every reader of images, on damaged files of its format."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import EDITS, JSON_EDITS, changed_json, damaged, fuzz, with_checksums
from PIL import Image
from source_files import cifar_batches, write_celeba, write_cifar, write_idx, write_imagenet

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import idx
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.lmdb_reader import read_lmdb

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


class Case(NamedTuple):
    """How a reader is fuzzed."""

    whole: Any  # a good input
    put: Callable[[Any], None]  # writes an input where the reader finds it
    read: Callable[[], Any]
    edits: Any = EDITS
    damage: Callable[[Any, Any], Any] = damaged


def is_image_set(value):
    assert isinstance(value, ImageSet)
    assert value.images.dtype in (np.uint8, np.float32)
    assert value.images.ndim == 4
    assert len(value.images) >= 1
    assert np.isfinite(value.images[-1].max())


def own(path):
    return lambda: data.load_images(path, memory_gib=0.25)


def source(name, folder, classes, size=32):
    return lambda: data.load(DataConfig(name, classes, 1, image_size=size, data_dir=folder))


def digits(folder, name, ending=""):
    write_idx(folder, RNG.integers(0, 256, (8, 28, 28), dtype=np.uint8), range(8), packed=False)
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    return whole, folder / f"{name}{ending}", source("mnist_full", folder, ("1", "3"))


def idx_plain(name):
    def case(folder):
        whole, path, read = digits(folder, name)
        return Case(whole, path.write_bytes, read)

    return case


def idx_in_gzip(folder):
    whole, path, read = digits(folder, idx.IMAGES, ".gz")
    return Case(whole, lambda content: path.write_bytes(gzip.compress(content, 1)), read)


def gzip_of_idx(folder):
    whole, path, read = digits(folder, idx.IMAGES, ".gz")
    return Case(gzip.compress(whole), path.write_bytes, read)


def cifar_batch(folder):
    pixels = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    inner = folder / "cifar-10-batches-bin"
    inner.mkdir()
    for name, content in cifar_batches(pixels, np.arange(20) % 10).items():
        (inner / name).write_bytes(content)
    path = inner / "data_batch_3.bin"
    return Case(path.read_bytes(), path.write_bytes, source("cifar10", folder, ("frog", "cat")))


def cifar_archive(folder):
    write_cifar(folder, RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10)
    path = folder / "cifar-10-binary.tar.gz"
    return path, source("cifar10", folder, ("frog", "cat"))


def cifar_tar(folder):
    path, read = cifar_archive(folder)
    whole = gzip.decompress(path.read_bytes())
    return Case(whole, lambda content: path.write_bytes(gzip.compress(content, 1)), read)


def cifar_gzip(folder):
    path, read = cifar_archive(folder)
    return Case(path.read_bytes(), path.write_bytes, read)


def npy(folder):
    np.save(folder / "a.npy", PIXELS)
    path = folder / "a.npy"
    return Case(path.read_bytes(), path.write_bytes, own(path))


def npz(folder):
    np.savez_compressed(folder / "a.npz", images=PIXELS, labels=np.arange(4) % 2)
    path = folder / "a.npz"
    return Case(path.read_bytes(), path.write_bytes, own(path))


def npz_member(name, array):
    def case(folder):
        path, buffer = folder / "a.npz", io.BytesIO()
        np.save(buffer, array)
        others = {"images": PIXELS, "labels": np.arange(4) % 2}
        del others[name]

        def put(content):
            np.savez(path, **others)
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(f"{name}.npy", content)

        return Case(buffer.getvalue(), put, own(path))

    return case


def imagenet(folder):
    pixels = RNG.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    write_imagenet(folder, pixels, np.repeat([1, 2], 10))
    path = folder / "train_data_batch_2.npz"
    read = source("imagenet16", folder, ("n02119789",), 16)
    return Case(path.read_bytes(), path.write_bytes, read)


def celeba_list(folder):
    write_celeba(folder, [True, False, True], packed=False)
    path = folder / "list_attr_celeba.txt"
    return Case(path.read_bytes(), path.write_bytes, source("celeba", folder, ("female", "male")))


def celeba_zip(folder):
    write_celeba(folder, [True, False])
    path = folder / "img_align_celeba.zip"
    return Case(path.read_bytes(), path.write_bytes, source("celeba", folder, ("female", "male")))


def encoded(kind, pixels=PIXELS[0], **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def image(kind, repair=lambda content: content, **options):
    def case(folder):
        path = folder / f"a.{kind.lower()}"
        whole = encoded(kind, **options)
        return Case(whole, lambda content: path.write_bytes(repair(content)), own(folder))

    return case


def lmdb_value(folder):
    def put(content):
        env = lmdb.open(str(folder / "lmdb"), map_size=2**24, sync=False)
        with env, env.begin(write=True) as transaction:
            transaction.put(b"00", content or b"-")

    def read():
        (pixels,) = read_lmdb(folder / "lmdb", 0, 1, 8, is_object=True)
        return ImageSet(pixels[None], None, ())

    return Case(encoded("WEBP", np.kron(PIXELS[0], np.ones((2, 2, 1), np.uint8))), put, read)


def table(ending, content):
    def case(folder):
        for i, pixels in enumerate(PIXELS):
            Image.fromarray(pixels).save(folder / f"{i}.png")
        path = folder / f"metadata.{ending}"
        return Case(content, path.write_bytes, own(folder))

    return case


ROWS = [{"file_name": f"{i}.png", "label": "ab"[i % 2], "text": "ä, \n"} for i in range(4)]


def json_lines(folder):
    case = table("jsonl", ROWS)(folder)

    def damage(rows, edits):
        return "\n".join(changed_json(row, edits[i::2]) for i, row in enumerate(rows)).encode()

    return case._replace(edits=JSON_EDITS, damage=damage)


NAMES = {"info": {"features": {"image": {"_type": "Image"},
                               "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}  # fmt: skip


def columns(names=NAMES, label=(0, 1, 1, 0)):
    images = [{"bytes": encoded("PNG", each), "path": f"{i}.png"} for i, each in enumerate(PIXELS)]
    columns = pa.table({"image": images, "label": label})
    text = names if isinstance(names, str) else json.dumps(names)
    return columns.replace_schema_metadata({"huggingface": text})


def parquet(**options):
    def case(folder):
        path = folder / "a.parquet"
        pq.write_table(columns(), path, row_group_size=3, **options)
        return Case(path.read_bytes(), path.write_bytes, own(path))

    return case


def parquet_names(folder):
    path = folder / "a.parquet"
    return Case(
        NAMES,
        lambda text: pq.write_table(columns(text.encode(errors="replace").decode()), path),
        own(path),
        JSON_EDITS,
        changed_json,
    )


CSV = b"file_name,label\r\n0.png,a\r\n" + b'1.png,"b"\n2,a\n3.png,b\n'
CASES: dict[str, Callable[[Path], Case]] = {
    "idx images": idx_plain(idx.IMAGES),
    "idx labels": idx_plain(idx.LABELS),
    "idx in gzip": idx_in_gzip,
    "gzip of idx": gzip_of_idx,
    "CIFAR batch": cifar_batch,
    "CIFAR tar": cifar_tar,
    "CIFAR tar.gz": cifar_gzip,
    "npy": npy,
    "npz": npz,
    "npz images": npz_member("images", PIXELS),
    "npz labels": npz_member("labels", np.array(["a", "b", "a", "c"])),
    "ImageNet npz": imagenet,
    "CelebA list": celeba_list,
    "CelebA zip": celeba_zip,
    "PNG": image("PNG", with_checksums),
    "PNG grey": image("PNG", with_checksums, pixels=PIXELS[0, :, :, 0]),
    "JPEG": image("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    "WebP": image("WEBP"),
    "WebP lossless": image("WEBP", lossless=True),
    "TIFF": image("TIFF"),
    "TIFF deflate": image("TIFF", compression="tiff_adobe_deflate"),
    "BMP": image("BMP"),
    "GIF": image("GIF"),
    "PPM": image("PPM"),
    "LMDB value": lmdb_value,
    "metadata.csv": table("csv", CSV),
    "metadata.jsonl, bytes": table("jsonl", b"\n".join(json.dumps(row).encode() for row in ROWS)),
    "metadata.jsonl, values": json_lines,
    "Parquet": parquet(),
    "Parquet plain": parquet(compression="none", use_dictionary=False),
    "Parquet with checksums": parquet(write_page_checksum=True, data_page_version="2.0"),
    "Parquet's names of classes": parquet_names,
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what it passes over
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    case = CASES[name](tmp_path)

    def read(edits):
        case.put(case.damage(case.whole, edits))
        return case.read()

    case.put(case.damage(case.whole, []))
    is_image_set(case.read())  # a good file is read, so that what is damaged is the file
    fuzz(name, case.edits, read, is_image_set)
