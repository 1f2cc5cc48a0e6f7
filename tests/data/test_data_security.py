"""Files that mean harm: what lies outside is not touched, and no small file takes all memory."""

import gzip
import io
import os
import resource
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from lmdb_folders import put, write_folder
from PIL import Image
from source_files import CIFAR_FOLDER, cifar_batches, write_celeba, write_idx, write_tar

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import arrays, folder, idx, lsun
from diffusion_jax.data.images import UNREADABLE, open_image
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS


def batches():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    return cifar_batches(pixels, np.arange(20) % 10)


def png(width, height):
    """A PNG whose header claims so many pixels, and next to nothing after it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        crc = zlib.crc32(name + body)
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    return content


def tiff(width, height):
    """A TIFF whose header claims so many grey pixels in one strip."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (279, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 12


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_and_paths_in_an_archive_lead_nowhere(tmp_path, kind):
    """What lies outside is neither read nor written."""
    outside = tmp_path / "data_batch_1.bin"
    found = batches()
    outside.write_bytes(found["data_batch_1.bin"])
    folder = tmp_path / "data"
    members = [(f"{CIFAR_FOLDER}/{name}", found[name]) for name in list(found)[1:]]
    for first in (
        link(f"{CIFAR_FOLDER}/data_batch_1.bin", "../../data_batch_1.bin", kind),
        (f"../{CIFAR_FOLDER}/data_batch_1.bin", found["data_batch_1.bin"]),
        (f"/{CIFAR_FOLDER}/data_batch_1.bin", found["data_batch_1.bin"]),
        ("../../escaped", b"harm"),
    ):
        write_tar(folder / "cifar-10-binary.tar.gz", [first, *members])
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=r"data_batch_1.bin .* is missing"):
            data.load(replace(PRESETS["cifar10"].data, images_per_class=1, data_dir=folder))
        assert sorted(tmp_path.rglob("*")) == before


def test_a_member_larger_than_any_of_cifar_is_not_unpacked(tmp_path, monkeypatch):
    members = [("bomb", b"\0" * 31_000_000), *batches().items()]
    write_tar(tmp_path / "cifar-10-binary.tar.gz", members)
    assert (tmp_path / "cifar-10-binary.tar.gz").stat().st_size < 100_000
    monkeypatch.setattr(tarfile.TarFile, "extractfile", None)
    with pytest.raises(UserError, match="bomb has 31000000 bytes"):
        data.load(replace(PRESETS["cifar10"].data, images_per_class=1, data_dir=tmp_path))


def test_a_member_larger_than_any_face_is_not_unpacked(tmp_path):
    write_celeba(tmp_path, [True, False])
    path = tmp_path / "img_align_celeba.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in (1, 2):
            archive.writestr(f"img_align_celeba/00000{i}.jpg", b"\0" * 2**24)
    with pytest.raises(UserError, match="it has 16777216 bytes"):
        data.load(DataConfig("celeba", ("female", "male"), 1, data_dir=tmp_path))


def test_a_packed_bomb_is_not_unpacked_past_its_header(tmp_path, monkeypatch):
    """A small file that unpacks to 100 MB after a header for eight digits."""
    write_idx(tmp_path, np.zeros((8, 28, 28), np.uint8), [1] * 8)
    content = struct.pack(">4I", 0x803, 8, 28, 28)
    with gzip.open(tmp_path / f"{idx.IMAGES}.gz", "wb") as file:
        file.write(content)
        for _ in range(100):
            file.write(b"\0" * 10**6)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="shorter or longer than the 8 items"):
        idx.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("make", [png, tiff])
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_images_of_absurd_size_are_refused_by_their_header(tmp_path, make, side):
    """Of 10 000 x 10 000 pixels Pillow only warns."""
    path = tmp_path / f"a.{make.__name__}"
    path.write_bytes(make(side, side))
    with pytest.raises(
        UserError, match=r"cannot be read as an image \(Image size .* exceeds limit"
    ):
        folder.load(tmp_path, image_size=32, memory_gib=1e9)
    with pytest.raises(UNREADABLE, match="exceeds limit"):
        open_image(io.BytesIO(path.read_bytes()), ("PNG", "TIFF"))


def test_an_absurd_image_in_an_lmdb_is_refused_by_its_header(tmp_path):
    path = lsun.lmdb_folder(tmp_path, "bedroom")
    write_folder(path, [(256, 256)])
    for value in (png(60_000, 60_000), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n"):
        put(path, {b"00": value})
        with pytest.raises(UserError, match=r"image 00 \(number 0\) of the LMDB"):
            data.load(DataConfig("lsun", ("bedroom",), 1, data_dir=tmp_path))


def npz_with(path, **headers):
    """An .npz whose arrays are nothing but the headers given, (descr, shape)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (descr, shape) in headers.items():
            buffer = io.BytesIO()
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(buffer, header)
            archive.writestr(f"{name}.npy", buffer.getvalue() + b"\0" * 1000)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"images": ("|u1", (10**9, 64, 64))}, "takes 7.63e.03 GiB of memory"),
        (
            {"images": ("|u1", (40, 8, 8)), "labels": ("<U100000000", (40,))},
            "the labels of .* takes 14.9 GiB",
        ),
        ({"images": ("|u1", (-4, 8, 8))}, r"its shape is \(-4, 8, 8\)"),
        ({"images": ("|u1", (2**40, 2**40, 2**40))}, "GiB of memory"),
    ],
)
def test_arrays_declared_huge_are_not_read(tmp_path, headers, message):
    npz_with(tmp_path / "set.npz", **headers)
    with pytest.raises(UserError, match=message):
        arrays.load(tmp_path / "set.npz", memory_gib=4)


def test_links_that_lead_out_of_a_folder_of_images_are_refused(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    root, outside = tmp_path / "root", tmp_path / "outside"
    for place in (root / "a", root / "b", outside):
        place.mkdir(parents=True)
        Image.fromarray(pixels).save(place / "0.png")
    (root / "a" / "1.png").symlink_to("../b/0.png")
    (tmp_path / "link").symlink_to(root)
    assert len(folder.load(root).images) == 3
    assert len(folder.load(tmp_path / "link").images) == 3  # the folder itself may be a link
    for target in ("../../outside/0.png", outside / "0.png"):
        (root / "a" / "2.png").symlink_to(target)
        with pytest.raises(UserError, match=r"2.png leads out of .*outside/0.png: copy it there"):
            folder.load(root)
        (root / "a" / "2.png").unlink()
    (root / "c").symlink_to(outside)
    with pytest.raises(UserError, match=r"root/c leads out of .*outside: copy"):
        folder.load(root)


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe without a writer would block for ever."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png is no file"):
        folder.load(tmp_path)
