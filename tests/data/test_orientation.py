"""Images come as they are seen, whatever their format and wherever their orientation is said."""

import io
import struct
import zlib

import numpy as np
import pytest
from lmdb_folders import decode_independently
from PIL import Image

from diffusion_jax.data import folder
from diffusion_jax.data.pictures import Picture, inspect
from diffusion_jax.errors import UserError

RNG = np.random.default_rng(0)
SEEN = RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)


def as_stored(seen, orientation):
    """The rows and columns of a file, after EXIF's definition of where its first ones are seen."""
    turned = np.swapaxes(seen, 0, 1)
    return {
        1: seen,  # the first row is seen at the top, the first column at the left
        2: seen[:, ::-1],  # top, right
        3: seen[::-1, ::-1],  # bottom, right
        4: seen[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def encoded(pixels, fmt, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, fmt, **options)
    return buffer.getvalue()


def with_exif(fmt, **options):
    return lambda pixels, orientation: encoded(pixels, fmt, exif=exif(orientation), **options)


def late_png(pixels, orientation):
    """A PNG whose EXIF comes after the pixels."""
    content, body = encoded(pixels, "PNG"), b"eXIf" + exif(orientation).tobytes(8)[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:-12] + chunk + content[-12:]


def jpeg_with_xmp(pixels, orientation):
    return encoded(pixels, "JPEG", xmp=f'<x tiff:Orientation="{orientation}"/>'.encode())


def tiff_with_xmp(pixels, orientation):
    return encoded(
        pixels, "TIFF", tiffinfo={700: f'<x tiff:Orientation="{orientation}"/>'.encode()}
    )


WRITERS = {
    "png": with_exif("PNG"),
    "late.png": late_png,
    "webp": with_exif("WEBP", lossless=True),
    "tif": lambda pixels, orientation: encoded(pixels, "TIFF", tiffinfo={274: orientation}),
    "lzw.tif": lambda pixels, orientation: encoded(
        pixels, "TIFF", tiffinfo={274: orientation}, compression="tiff_lzw"
    ),
    "xmp.tif": tiff_with_xmp,
    "jpg": with_exif("JPEG"),
    "xmp.jpg": jpeg_with_xmp,
}


@pytest.mark.parametrize("ending", WRITERS)
def test_all_orientations_of_each_format(tmp_path, ending):
    for orientation in range(1, 9):
        content = WRITERS[ending](as_stored(SEEN, orientation), orientation)
        (tmp_path / f"{orientation}.{ending}").write_bytes(content)
    images = folder.load(tmp_path).images
    assert images.shape == (8, *SEEN.shape)
    for orientation, image in enumerate(images, 1):
        if "jpg" in ending:  # lossy: as stored it is what a decoder that knows no EXIF reads
            stored = np.asarray(Image.open(tmp_path / f"{orientation}.{ending}"))
            np.testing.assert_array_equal(as_stored(image, orientation), stored)
        else:
            np.testing.assert_array_equal(image, SEEN)


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jpg"])
def test_the_size_as_seen_is_in_the_header(ending):
    """So that nothing is allocated for another shape: the pixels are not read for it."""
    content = WRITERS[ending](as_stored(np.repeat(SEEN, 20, 0), 6), 6)
    assert inspect(Picture("it", lambda: io.BytesIO(content))).size == (12, 160)
    if ending in ("png", "jpg"):  # what comes first in these is the header
        cut = io.BytesIO(content[: content.index(b"IDAT" if ending == "png" else b"\xff\xda") + 14])
        assert inspect(Picture("it", lambda: cut)).size == (12, 160)


def test_the_central_square_is_that_of_the_image_as_seen(tmp_path):
    seen = np.asarray(Image.fromarray(SEEN).resize((41, 20), Image.Resampling.BICUBIC))
    (tmp_path / "a.png").write_bytes(WRITERS["png"](as_stored(seen, 7), 7))
    (image,) = folder.load(tmp_path, image_size=10).images
    expected = decode_independently(encoded(seen, "PNG"), 10, crop=20)
    np.testing.assert_array_equal(image, expected)


def test_a_shape_that_is_not_square_is_cut_from_the_middle_as_seen(tmp_path):
    (tmp_path / "a.png").write_bytes(WRITERS["png"](as_stored(SEEN, 5), 5))
    (image,) = folder.load(tmp_path, image_size=(8, 10)).images
    np.testing.assert_array_equal(image, SEEN[:, 1:11])
    with pytest.raises(UserError, match=r"a.png is 12 x 8 pixels, smaller than .* \(12, 8\)"):
        folder.load(tmp_path, image_size=(12, 8))


def test_grey_images_and_palettes_are_turned_too(tmp_path):
    grey = Image.fromarray(as_stored(SEEN[..., 0], 6))
    grey.save(tmp_path / "a.png", exif=exif(6))
    grey.quantize(256).save(tmp_path / "b.png", exif=exif(6))
    for image in folder.load(tmp_path).images:
        np.testing.assert_array_equal(image[..., 0], SEEN[..., 0])


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no EXIF at all",
        b"II*\0\xff\xff\xff\xff",  # its first list lies beyond its end
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0",  # cut within the orientation
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02six\0\0\0\0\0",  # a text
        exif(0).tobytes()[6:],
        exif(9).tobytes()[6:],
    ],
)
def test_damaged_exif_and_what_is_no_orientation_are_passed_over(tmp_path, fmt, damaged, recwarn):
    content = encoded(SEEN, fmt, exif=b"Exif\0\0" + damaged)
    (tmp_path / f"a.{fmt.lower()}").write_bytes(content)
    (image,) = folder.load(tmp_path).images
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(encoded(SEEN, fmt)))))
    assert not recwarn.list
