"""Images as they are seen: turned and mirrored as their EXIF says."""

import struct
import warnings
from typing import IO

from PIL import ExifTags, Image

_TAG = ExifTags.Base.Orientation
_TURNED = (5, 6, 7, 8)  # width and height change places
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """The orientation of an image that was opened and not yet loaded, from its header.

    That of its EXIF; without one that of its XMP. What is damaged or no orientation is passed over.

    Returns:
      1 (seen as stored) to 8, as EXIF numbers them.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF
            if image.format == "PNG" and "exif" not in image.info:
                late = _late_exif(image.fp)  # type: ignore[attr-defined]
                if late is not None:
                    image.info["exif"] = late
            # Not PngImageFile's own, which decodes the pixels to find what comes after them.
            value = Image.Image.getexif(image).get(_TAG)
    except Exception:  # whatever a damaged EXIF makes Pillow raise
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSES else 1


def _late_exif(file: IO[bytes]) -> bytes | None:
    """EXIF after the pixels of a PNG, which Pillow sees only once it has decoded them."""
    before = file.tell()
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(length)
            file.seek(length + 4, 1)  # the checksum is four bytes
    finally:
        file.seek(before)
    return None


def size_as_seen(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image, which is not loaded yet, after `upright`."""
    width, height = image.size
    done = image.format == "TIFF" and _TAG in image.tag_v2  # type: ignore[attr-defined]
    return (height, width) if orientation_of(image) in _TURNED and not done else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """An image that was opened and not yet loaded, as it is seen."""
    orientation = orientation_of(image)
    image.load()
    if image.format == "TIFF" or orientation == 1:  # Pillow turns TIFF itself
        return image
    return image.transpose(_TRANSPOSES[orientation])
