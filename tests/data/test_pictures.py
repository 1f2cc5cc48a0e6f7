"""What is taken of people's image files, what is refused, and that all bad ones are named."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from source_files import write_idx

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data import checks, folder, pictures
from diffusion_jax.data.faults import Faults
from diffusion_jax.data.pictures import Picture
from diffusion_jax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
LEVELS = np.full((4, 6), 4095, np.uint16)  # of 65535: 15 of 255 in the upper half
GREY, LA, RGB, RGBA = 0, 4, 2, 6  # PNG's types of colour


def png(colour, bits, rows):
    """A PNG of packed rows (height, bytes), written out here."""
    channels = {GREY: 1, LA: 2, RGB: 3, RGBA: 4}[colour]
    width = rows.shape[1] * 8 // (bits * channels)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", lines), (b"IEND", b"")):
        crc = zlib.crc32(name + body)
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    return content


def png16(colour, channels):
    rows = np.repeat(LEVELS, channels, axis=1).astype(">u2").view(np.uint8)
    return png(colour, 16, rows)


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def jpeg12():
    """A JPEG whose header says 12 bits."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "JPEG")
    content = buffer.getvalue()
    place = content.index(b"\xff\xc0") + 4
    return content[:place] + b"\x0c" + content[place + 1 :]


THREE = np.stack([LEVELS] * 3, axis=-1)
BIG = LEVELS.astype(">u2").tobytes()
DEEP = {
    "grey.png": (png16(GREY, 1), "16"),
    "la.png": (png16(LA, 2), "16"),
    "rgb.png": (png16(RGB, 3), "16"),
    "rgba.png": (png16(RGBA, 4), "16"),
    "grey.tif": (tiff(LEVELS), "16"),
    "big.tif": (tiff(LEVELS, byteorder=">"), "16"),
    "rgb.tif": (tiff(THREE, photometric="rgb"), "16"),
    "zip.tif": (tiff(THREE, photometric="rgb", compression="deflate"), "16"),
    "planar.tif": (
        tiff(THREE.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        "16",
    ),
    "float.tif": (tiff(LEVELS / np.float32(65535)), "32"),
    "grey.pgm": (b"P5 6 4 65535\n" + BIG, "16"),
    "ten.pgm": (b"P5 6 4 1023\n" + (LEVELS // 64).astype(">u2").tobytes(), "10"),
    "rgb.ppm": (b"P6 2 4 65535\n" + BIG, "16"),
    "plain.pgm": (b"P2 2 2 4095\n" + b"1 2 3 4095", "12"),
    "plain.ppm": (b"P3 1 1 4095\n" + b"1 2 4095", "12"),
    "float.pfm": (b"Pf\n6 4\n-1.0\n" + LEVELS.astype("<f4").tobytes(), "32"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused_in_every_format(tmp_path, name):
    content, bits = DEEP[name]
    (tmp_path / name).write_bytes(content)
    message = (
        rf"{name} has more than 8 bits per channel \({bits}\): convert to 8 bits, or save .*npy"
    )
    with pytest.raises(UserError, match=message):
        folder.load(tmp_path)


def test_why_a_file_is_no_image_is_said(tmp_path):
    for name, content, reason in (
        ("a.jpg", jpeg12(), r"JPEG: cannot handle 12-bit layers"),
        ("a.tif", tiff(THREE / np.float32(65535), photometric="rgb"), "TIFF: unknown pixel mode"),
        ("a.png", b"<html>", "it is none of PNG, JPEG, WEBP, TIFF, BMP, GIF, PPM"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} cannot be read as an image \({reason}\)"):
            folder.load(tmp_path)
        path.unlink()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_fewer_bits_are_spread_over_all_grey_levels(tmp_path, bits):
    """Level k of 2^b - 1 is 255 k/(2^b - 1), whole for b = 1, 2, 4, 8."""
    levels = np.arange(16).reshape(2, 8) % 2**bits
    places = (levels[..., None] >> np.arange(bits)[::-1]) & 1
    packed = np.packbits(places.reshape(2, -1).astype(np.uint8), axis=1)
    (tmp_path / "a.png").write_bytes(png(GREY, bits, packed))
    most = 2**bits - 1
    plain = " ".join(map(str, levels.ravel()))
    (tmp_path / "b.pgm").write_text(f"P2 8 2 {most} {plain}")
    (tmp_path / "c.pgm").write_bytes(f"P5 8 2 {most} ".encode() + levels.astype("u1").tobytes())
    images = folder.load(tmp_path).images
    np.testing.assert_array_equal(images, np.stack([levels * 255 // most] * 3)[..., None])


# Several bad files


def write_jpegs(path, count=20):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(PIXELS[i % 20]).save(path / f"{i:02}.jpg")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("memory_gib", [None, 0.0])
def test_all_truncated_files_are_named_at_once(tmp_path, memory_gib):
    write_jpegs(tmp_path / "imgs")
    for i in (3, 7, 11):
        cut(tmp_path / "imgs" / f"{i:02}.jpg")
    config = DataConfig(
        str(tmp_path / "imgs"), (), None, image_size=None, data_dir=tmp_path, memory_gib=memory_gib
    )
    with pytest.raises(UserError) as error:
        data.load(config)
    text = str(error.value)
    assert text.startswith(f"3 of 20 images of {tmp_path / 'imgs'} cannot be used: ")
    assert [name in text for name in ("03.jpg", "07.jpg", "11.jpg", "00.jpg")] == [True] * 3 + [
        False
    ]
    assert text.endswith("; repair it or take it out")
    assert text.count("repair it") == 1
    assert not list(tmp_path.glob("prepared/images-*"))


def test_faults_of_all_kinds_are_named_together(tmp_path, monkeypatch):
    """Of headers, of pixels, and of a file that went away between the list and the reading."""
    write_jpegs(tmp_path, 6)
    cut(tmp_path / "01.jpg")
    (tmp_path / "02.jpg").write_bytes(b"")
    (tmp_path / "03.png").write_bytes(png16(RGB, 3))
    gone = tmp_path / "04.jpg"
    inspect = pictures.inspect

    def vanishing(picture):
        if picture.name == str(gone):
            gone.unlink()
        return inspect(picture)

    monkeypatch.setattr(pictures, "inspect", vanishing)
    with pytest.raises(UserError, match=r"4 of 7 images") as error:
        folder.load(tmp_path)
    for part in ("01.jpg cannot", "02.jpg cannot", "03.png has more", "04.jpg cannot .*No such fi"):
        assert error.match(part)


def test_a_wrong_size_is_named_beside_a_damaged_file(tmp_path):
    write_jpegs(tmp_path, 3)
    (tmp_path / "01.jpg").write_bytes(b"")
    Image.fromarray(PIXELS[0, :7, :9]).save(tmp_path / "03.png")
    with pytest.raises(UserError, match=r"2 of 4 images .*01.jpg cannot .*; .*03.png is 9 x 7 pix"):
        folder.load(tmp_path)
    with pytest.raises(UserError, match=r"2 of 4 .*01.jpg cannot .*03.png is 9 x 7 .* enlarged"):
        folder.load(tmp_path, 8)


def test_a_file_that_goes_away_after_its_header_is_named(tmp_path, monkeypatch):
    write_jpegs(tmp_path / "imgs", 3)
    headers = pictures._headers

    def vanishing(*arguments):
        found = headers(*arguments)
        (tmp_path / "imgs" / "01.jpg").unlink()
        return found

    monkeypatch.setattr(pictures, "_headers", vanishing)
    config = DataConfig(
        str(tmp_path / "imgs"), (), None, image_size=None, data_dir=tmp_path, memory_gib=0
    )
    for load in (lambda: folder.load(tmp_path / "imgs"), lambda: data.load(config)):
        write_jpegs(tmp_path / "imgs", 3)
        with pytest.raises(UserError, match=r"01.jpg cannot be read .*No such file"):
            load()


def test_the_first_ten_and_the_number_of_all(tmp_path):
    write_jpegs(tmp_path, 14)
    for i in range(1, 13):
        (tmp_path / f"{i:02}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"^12 of 14 images .*10.jpg cannot .*; and 2 more; repair"):
        folder.load(tmp_path)


def test_files_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    write_jpegs(tmp_path, 4)
    opened = Path.open

    def denied(path, *arguments):
        if path.name in ("01.jpg", "03.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"^2 of 4 .*01.jpg .*Permission denied.*03.jpg"):
        folder.load(tmp_path)


def test_advice_that_faults_share_is_given_once():
    faults = Faults()
    for text in ("a is red: paint it; twice", "b is blue: paint it; twice"):
        with faults.collected():
            raise UserError(text)
    with pytest.raises(UserError) as error:
        faults.refuse("things", 3)
    assert str(error.value) == (
        "2 of 3 things cannot be used: a is red; b is blue: paint it; twice"
    )


def test_the_odd_sizes_are_counted_against_the_common_one(tmp_path):
    for i, side in enumerate((9, 8, 8, 7, 8)):
        Image.fromarray(PIXELS[i, :side, :12]).save(tmp_path / f"{i}.png")
    with pytest.raises(
        UserError,
        match=r"0.png is 12 x 9 pixels, but .*1.png is 12 x 8, and 2 of 5 images are not: "
        r"--image-size 7 \(or less\)",
    ):
        folder.load(tmp_path)


# Dark images


@pytest.mark.parametrize("largest", [0, 1, 127, 128])
def test_images_on_another_scale_are_noted_from_wherever_they_come(tmp_path, largest, monkeypatch):
    """In PNG, bytes, idx files and arrays; in memory, mapped, and mapped from a former start."""
    levels = np.zeros((4, 28, 28), np.uint8)
    levels[2, 3, 4] = largest
    imgs = tmp_path / "imgs"
    imgs.mkdir()
    for i, image in enumerate(levels):
        Image.fromarray(image).save(imgs / f"{i}.png")
    files = sorted(imgs.iterdir())
    rows = [{"image": {"bytes": path.read_bytes()}, "label": "a"} for path in files]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    write_idx(tmp_path / "idx", levels, [0, 0, 0, 0])
    np.save(tmp_path / "images.npy", levels)
    monkeypatch.setattr(checks, "_CHUNK_BYTES", 28 * 28)  # an image at a time
    for name in ("imgs", "rows.parquet", "idx", "images.npy"):
        what = tmp_path / name
        text = (
            f"the largest grey level of {what} is {largest}, taken out of 255: if that is not its "
            f"scale, multiply the levels so that white is 255"
        )
        expected = (text,) if largest < 128 else ()
        config = DataConfig(
            str(what), (), None, image_size=None, data_dir=tmp_path / f"{name} data"
        )
        assert data.load(config).notes == expected
        for _ in range(2):
            mapped = data.load(replace(config, memory_gib=0))
            assert mapped.notes == expected
            assert isinstance(mapped.images, np.memmap) == (name != "idx")
            np.testing.assert_array_equal(mapped.images[..., 0], levels)


# Transparency


def write_transparent(path):
    """Six images: two with transparent pixels, one wholly so, one with nothing but opaque ones."""
    path.mkdir()
    alpha = np.full((6, 16, 16), 255, np.uint8)
    alpha[1, 3, 4], alpha[2, :8], alpha[3] = 254, 0, 0
    for i in range(6):
        pixels = PIXELS[i] if i == 5 else np.dstack([PIXELS[i], alpha[i]])
        Image.fromarray(pixels).save(path / f"{i}.png")


NOTE = "3 of 6 images have transparency, which was dropped"


def test_transparency_is_noted_at_every_start(tmp_path, monkeypatch):
    """From a prepared file too; and where its count is gone, it is taken again."""
    write_transparent(tmp_path / "imgs")
    config = DataConfig(
        str(tmp_path / "imgs"), (), None, image_size=None, data_dir=tmp_path, memory_gib=0
    )
    assert data.load(replace(config, memory_gib=1)).notes == (NOTE,)
    first = data.load(config)
    assert first.notes == (NOTE,)
    np.testing.assert_array_equal(first.images, PIXELS[:6])
    read = pictures._read
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_read", None)  # no pixels are read again
        again = data.load(config)
    assert again.file == first.file
    assert again.notes == (NOTE,)
    for memo in (tmp_path / "prepared").glob("*.json"):
        memo.unlink()
    seen = []
    monkeypatch.setattr(pictures, "_read", lambda *each: seen.append(each[0]) or read(*each))
    assert data.load(config).notes == (NOTE,)
    assert len(seen) == 5  # those that have an alpha channel


@pytest.mark.parametrize("ending", ["png", "gif", "webp"])
def test_a_transparent_colour_counts(tmp_path, ending):
    image = Image.fromarray(PIXELS[0]).quantize(16)
    if ending == "webp":
        image = Image.fromarray(np.dstack([PIXELS[0], PIXELS[1, ..., 0]]))
        image.save(tmp_path / "a.webp", lossless=True, exact=True)
    else:
        image.save(tmp_path / f"a.{ending}", transparency=int(np.asarray(image)[0, 0]))
    images = folder.load(tmp_path)
    np.testing.assert_array_equal(images.images[0], np.asarray(image.convert("RGB")))
    assert images.notes == ("1 of 1 images have transparency, which was dropped",)


def test_pictures_from_bytes_are_held_to_the_same_rules(tmp_path):
    """As a table's rows are: nothing of it is a file."""
    buffers = []
    for image in PIXELS[:3]:
        buffers.append(io.BytesIO())
        Image.fromarray(image).save(buffers[-1], "PNG")
    entries = [
        Picture(f"row {i}", lambda buffer=buffer: io.BytesIO(buffer.getvalue()))
        for i, buffer in enumerate(buffers)
    ]
    images, file, notes = pictures.load("the table", entries)
    np.testing.assert_array_equal(images, PIXELS[:3])
    assert file is None
    assert notes == ()
    bad = [*entries, Picture("row 3", lambda: io.BytesIO(png16(RGB, 3)))]
    with pytest.raises(UserError, match=r"^row 3 has more than 8 bits"):
        pictures.load("the table", bad)
