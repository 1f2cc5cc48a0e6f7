"""Folders of images, NumPy files, and the checks on any set of images."""

import io
import struct
import zlib

import numpy as np
import pytest
from lmdb_folders import decode_independently, smooth_image
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data import arrays, folder
from diffusion_jax.data.checks import check, require_memory
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 8, 10, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 8, 10), dtype=np.uint8)
FLOATS = RNG.random((12, 8, 10), dtype=np.float32)
LABELS = np.array([3, 1] * 6)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def savez(tmp_path, **named):
    np.savez(tmp_path / "set.npz", **named)
    return tmp_path / "set.npz"


def save_npy(tmp_path, array, **options):
    np.save(tmp_path / "set.npy", array, **options)
    return tmp_path / "set.npy"


# Folders of images


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.PNG", {}),
        ("a.bmp", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.Tiff", {}),
        ("a.webp", {"lossless": True}),
        ("a.ppm", {}),
    ],
)
def test_lossless_formats_come_back_exactly(tmp_path, name, options):
    save(tmp_path / name, COLOUR[0], **options)
    save(tmp_path / "b.png", COLOUR[1])
    images = data.load_images(tmp_path)
    np.testing.assert_array_equal(images.images, COLOUR[:2])
    assert images.images.dtype == np.uint8
    assert images.labels is None
    assert images.class_names == ()
    assert images.notes == ()


def test_a_subfolder_is_a_class(tmp_path):
    for i, name in enumerate(["dogs/2.png", "cats/b.jpg", "dogs/10.png", "cats/a.jpg"]):
        save(tmp_path / name, COLOUR[i])
    for ignored in ("dogs/.hidden.png", "dogs/notes.txt", "index.html"):
        (tmp_path / ignored).write_text("no image")
    (tmp_path / ".git").mkdir()
    images = folder.load(tmp_path)
    assert images.class_names == ("cats", "dogs")
    np.testing.assert_array_equal(images.labels, [0, 0, 1, 1])
    assert images.labels.dtype == np.int64
    np.testing.assert_array_equal(images.images[2:], COLOUR[[2, 0]])  # 10 before 2, as names go
    jpeg = decode_independently((tmp_path / "cats/a.jpg").read_bytes(), 8, crop=8)
    np.testing.assert_array_equal(images.images[0, :, 1:9], jpeg)
    assert len(images.notes) == 1
    assert "2 files of" in images.notes[0]
    assert ".html, .txt" in images.notes[0]
    first = data.load_images(tmp_path, images_per_class=1)
    np.testing.assert_array_equal(first.images, images.images[[0, 2]])
    np.testing.assert_array_equal(first.labels, [0, 1])


def test_one_class_is_a_single_set_of_labels(tmp_path):
    for i in range(3):
        save(tmp_path / "cats" / f"{i}.png", GREY[i])
    images = folder.load(tmp_path)
    np.testing.assert_array_equal(images.labels, [0, 0, 0])
    assert any("one class only, cats: phi is 1" in text for text in check(images))


@pytest.mark.parametrize("size", [16, 24])
def test_sizes_are_made_equal_by_the_central_square(tmp_path, size):
    sides = {"a": (40, 31), "b": (24, 27), "c": (64, 64)}
    encoded = {}
    for name, (width, height) in sides.items():
        path = save(tmp_path / f"{name}.png", smooth_image(RNG, width, height))
        encoded[name] = path.read_bytes()
    images = data.load_images(tmp_path, image_size=size)
    expected = [decode_independently(encoded[k], size, crop=min(sides[k])) for k in sides]
    np.testing.assert_array_equal(images.images, expected)


def palette_image(colours):
    image = Image.fromarray((GREY[0] % len(colours)), "P")
    image.putpalette(np.ravel(colours).tolist())
    return image


def test_grey_images_have_one_channel(tmp_path):
    greys = [[10, 10, 10], [200, 200, 200], [90, 90, 90]]
    save(tmp_path / "a.png", GREY[0])
    save(tmp_path / "b.png", palette_image(greys))
    save(tmp_path / "c.png", Image.fromarray(GREY[0] > 127))
    save(tmp_path / "d.png", Image.merge("LA", [Image.fromarray(GREY[i]) for i in (1, 2)]))
    save(tmp_path / "e.gif", GREY[3])
    images = folder.load(tmp_path)
    indexed = np.array(greys)[GREY[0] % 3][..., 0]
    expected = [GREY[0], indexed, 255 * (GREY[0] > 127), GREY[1], GREY[3]]
    np.testing.assert_array_equal(images.images[..., 0], expected)
    assert images.images.shape == (5, 8, 10, 1)
    assert images.notes == ("1 of 5 images have transparency, which was dropped",)


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    colours = [[10, 20, 30], [200, 200, 200]]
    save(tmp_path / "a.png", GREY[0])
    save(tmp_path / "b.png", palette_image(colours))
    opaque = np.concatenate([COLOUR[0], np.full((8, 10, 1), 255, np.uint8)], axis=2)
    save(tmp_path / "c.png", opaque)
    images = folder.load(tmp_path)
    expected = [np.repeat(GREY[0][..., None], 3, 2), np.array(colours)[GREY[0] % 2], COLOUR[0]]
    np.testing.assert_array_equal(images.images, expected)
    assert images.notes == ()  # nothing was transparent


def test_colours_of_a_palette_count(tmp_path):
    colours = [[10, 20, 30], [200, 200, 200]]
    save(tmp_path / "a.png", palette_image(colours))
    (image,) = folder.load(tmp_path).images
    np.testing.assert_array_equal(image, np.array(colours)[GREY[0] % 2])


def truncated(path):
    content = save(path, COLOUR[0]).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def png_of_size(path, width, height):
    """A header that claims so many pixels, and next to nothing after it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", b"none")):
        crc = zlib.crc32(name + body)
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "b.png cannot be read as an image"),
        (lambda path: path.write_bytes(b""), "b.png cannot be read as an image"),
        (lambda path: path.write_text("hello"), "b.png cannot be read as an image"),
        (lambda path: path.symlink_to("nowhere.png"), "b.png cannot be read as an image"),
        (lambda path: png_of_size(path, 10**6, 10**6), r"b.png cannot be read.*bomb"),
        (lambda path: save(path, GREY[0].astype(np.uint16) * 257), "more than 8 bits per channel"),
        (
            lambda path: save(path, COLOUR[0, :, :9]),
            r"b.png is 9 x 8 pixels, but .*a.png is 10 x 8",
        ),
        (lambda path: save(path, COLOUR[0, :4]), r"--image-size 4 \(or less\)"),
        (
            lambda path: save(
                path, COLOUR[0], save_all=True, append_images=[Image.fromarray(COLOUR[1])]
            ),
            "b.png holds 2 images",
        ),
        (
            lambda path: save(path.parent / "cats" / "b.png", COLOUR[0]),
            "holds images, such as a.png",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, damage, message):
    save(tmp_path / "a.png", COLOUR[0])
    damage(tmp_path / "b.png")
    with pytest.raises(UserError, match=message):
        folder.load(tmp_path)


def test_images_are_not_enlarged(tmp_path):
    save(tmp_path / "a.png", COLOUR[0])
    with pytest.raises(UserError, match=r"a.png is 10 x 8 pixels.*give --image-size 8 or less"):
        folder.load(tmp_path, image_size=9)
    with pytest.raises(UserError, match="image_size = 0 must be at least 1"):
        folder.load(tmp_path, image_size=0)


def test_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=f"{tmp_path} holds no images"):
        folder.load(tmp_path)
    save(tmp_path / "cats" / "a.png", COLOUR[0])
    (tmp_path / "dogs").mkdir()
    with pytest.raises(UserError, match="dogs holds no images"):
        folder.load(tmp_path)
    save(tmp_path / "dogs" / "small" / "a.png", COLOUR[0])
    with pytest.raises(UserError, match=r"2 folders deep, such as dogs/small/a.png, .*--flat"):
        folder.load(tmp_path)
    for flat in (False, True):
        with pytest.raises(UserError, match="missing cannot be read"):
            folder.load(tmp_path / "missing", flat=flat)


def test_a_folder_too_large_for_the_memory(tmp_path):
    png_of_size(tmp_path / "a.png", 8192, 4096)  # 96 MiB of colours
    with pytest.raises(UserError, match=r"0.0938 GiB of memory, more than the 0.09 GiB .*allowed"):
        folder.load(tmp_path, memory_gib=0.09)
    with pytest.raises(UserError, match="cannot be read as an image"):  # on to the pixels
        folder.load(tmp_path, memory_gib=0.1)


# NumPy files


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY[..., None]),
        (COLOUR, COLOUR),
        (COLOUR[..., :1], COLOUR[..., :1]),
        (np.asfortranarray(COLOUR), COLOUR),
        (GREY[:, :, :8].reshape(12, 64), GREY[:, :, :8, None]),  # flattened squares
        (GREY.reshape(12, 80), GREY.reshape(12, 1, 80, 1)),
        (GREY.astype(np.int64), GREY[..., None]),
        (GREY.astype(">u4"), GREY[..., None]),
        (GREY > 127, 255 * (GREY[..., None] > 127)),
        (FLOATS, FLOATS[..., None]),
        (FLOATS.astype(np.float64), FLOATS[..., None]),
        (FLOATS.astype(">f8"), FLOATS[..., None]),
        ((GREY > 127).astype(np.float16), (GREY > 127)[..., None].astype(np.float32)),
    ],
)
@pytest.mark.parametrize("archived", [False, True])
def test_arrays_come_back(tmp_path, array, expected, archived):
    path = savez(tmp_path, whatever=array) if archived else save_npy(tmp_path, array)
    images = data.load_images(path)
    np.testing.assert_array_equal(images.images, expected)
    assert images.images.dtype == (np.float32 if array.dtype.kind == "f" else np.uint8)
    assert images.labels is None
    assert images.notes == ()
    first = data.load_images(path, images_per_class=5)
    np.testing.assert_array_equal(first.images, expected[:5])


@pytest.mark.parametrize(
    ("names", "labels", "class_names"),
    [
        (("images", "labels"), LABELS, ("1", "3")),
        (("x", "y"), LABELS.astype(np.uint8)[:, None], ("1", "3")),
        (("pictures", "labels"), np.array(["a dog", "a cat"] * 6), ("a cat", "a dog")),
        (("images", "y"), np.array([b"dog", b"cat"] * 6), ("cat", "dog")),
        (("images", "y"), LABELS == 3, ("False", "True")),
    ],
)
def test_labels_come_back(tmp_path, names, labels, class_names):
    path = savez(tmp_path, **dict(zip(names, (FLOATS, labels), strict=True)), scale=np.ones(3))
    images = data.load_images(path)
    np.testing.assert_array_equal(images.labels, [1, 0] * 6)
    assert images.labels.dtype == np.int64
    assert images.class_names == class_names
    np.testing.assert_array_equal(images.images[..., 0], FLOATS)


def test_the_first_images_of_each_label(tmp_path):
    labels = np.array([7, 7, 2, 7, 5, 2, 2, 2, 7, 2, 7, 7])
    path = savez(tmp_path, images=GREY, labels=labels)
    images = data.load_images(path, images_per_class=2)
    np.testing.assert_array_equal(images.images[..., 0], GREY[[0, 1, 2, 4, 5]])
    np.testing.assert_array_equal(images.labels, [2, 2, 0, 1, 0])
    assert images.class_names == ("2", "5", "7")


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (changed(FLOATS, (7, 0, 3), np.nan), r"images\[7, 0, 3\] is nan, not a finite number"),
        (changed(FLOATS, (2, 1, 0), -np.inf), r"images\[2, 1, 0\] is -inf"),
        (changed(FLOATS.astype(float), (0, 0, 1), 1e300), r"images\[0, 0, 1\] is 1e\+300"),
        (changed(GREY.astype(int), (5, 2, 9), 256), r"images\[5, 2, 9\] is 256, no grey level"),
        (changed(GREY.astype(int), (5, 2, 9), -1), r"images\[5, 2, 9\] is -1, no grey level"),
        (GREY.astype(np.float32), "floats that look like grey levels"),
        (GREY.astype(complex), "holds complex128"),
        (GREY.astype(str), "holds <U3"),
        (np.zeros(3, [("a", float)]), r"holds \[\('a'"),
        (np.array([GREY, None], object), "Python objects, which are never unpickled"),
        (COLOUR.transpose(0, 3, 1, 2), r"channels come last; give images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 8, 8, 9)), "at most 4 channels"),
        (COLOUR[0], "may be one image with channels"),
        (GREY[0, 0], r"shape \(10,\): images are \(n, height, width\)"),
        (np.float32(3), r"shape \(\): images are"),
        (GREY[:0], "is empty"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, array, message):
    with pytest.raises(UserError, match=message):
        arrays.load(save_npy(tmp_path, array))
    with pytest.raises(UserError, match=message):
        arrays.load(savez(tmp_path, images=array))


def test_bad_values_are_found_wherever_they_are(tmp_path, monkeypatch):
    """In the second of many stretches, and counted in the file where images were left out."""
    monkeypatch.setattr("diffusion_jax.data.checks._CHUNK_BYTES", 160)
    path = savez(tmp_path, x=changed(GREY.astype(np.int16), (9, 1, 2), 300), y=[0] * 8 + [1] * 4)
    with pytest.raises(UserError, match=r"images\[9, 1, 2\] is 300"):
        data.load_images(path, images_per_class=2)
    np.testing.assert_array_equal(
        data.load_images(path, images_per_class=1).images[..., 0], GREY[[0, 8]]
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], r"labels .* have shape \(5,\) .* one label per image, \(12,\)"),
        (np.eye(12, dtype=int), r"have shape \(12, 12\)"),
        (LABELS / 2, "are float64: labels are integers or strings"),
        (LABELS.astype(object), "are object: labels are integers or strings"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        arrays.load(savez(tmp_path, images=GREY, labels=labels))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"x_train": GREY, "x_test": GREY}, r"several arrays .*x_train uint8\(12, 8, 10\)"),
        ({"images": GREY, "x": GREY}, "several arrays"),
        ({"labels": LABELS}, "no array that could be the images"),
        ({}, "it has: nothing"),
    ],
)
def test_an_archive_must_say_which_are_the_images(tmp_path, named, message):
    with pytest.raises(UserError, match=message):
        arrays.load(savez(tmp_path, **named))


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_damaged_numpy_files(tmp_path, kind, damage):
    path = tmp_path / ("set.npy" if kind == "npy" else "set.npz")
    write = {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[kind]
    write(path, FLOATS)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-200], "garbage": b"garbage" * 50}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=f"{path} cannot be read as a NumPy file"):
        arrays.load(path)


def test_damaged_bytes_within_an_archive(tmp_path):
    path = savez(tmp_path, images=FLOATS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="Bad CRC-32"):
        arrays.load(path)


def test_an_array_too_large_for_the_memory_is_not_read(tmp_path):
    path = tmp_path / "large.npy"
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 64, 64, 3)}
    np.lib.format.write_array_header_2_0(buffer, header)
    path.write_bytes(buffer.getvalue())  # 45.8 GiB follow, by the header
    with pytest.raises(UserError, match=r"large.npy takes 45.8 GiB .* the 8 GiB that are allowed"):
        arrays.load(path, memory_gib=8)
    with pytest.raises(UserError, match=r"takes 45.8 GiB|cannot be read as a NumPy file"):
        arrays.load(path)


def test_values_on_another_scale_are_noted(tmp_path):
    (note,) = arrays.load(save_npy(tmp_path, 2 * FLOATS - 1)).notes
    assert "not in [0, 1]" in note
    assert f"between {(2 * FLOATS - 1).min():.4g} and {(2 * FLOATS - 1).max():.4g}" in note
    (note,) = arrays.load(save_npy(tmp_path, 254.5 * FLOATS)).notes
    assert "not in [0, 1]" in note
    (note,) = arrays.load(save_npy(tmp_path, GREY % 17)).notes
    assert "largest grey level" in note
    assert "is 16, taken out of 255" in note


@pytest.mark.parametrize(("channels", "fewer"), [(2, 1), (4, 3)])
def test_channels_that_may_be_transparency_are_noted(tmp_path, channels, fewer):
    pixels = np.stack([GREY] * channels, axis=-1)
    path = save_npy(tmp_path, pixels)
    text = f"is taken as {channels} channels: if the last is transparency, give images[..., "
    for images, name in ((arrays.load(path), path), (arrays.image_set(pixels), "the array of")):
        np.testing.assert_array_equal(images.images, pixels)
        (note,) = images.notes
        assert note.startswith(str(name))
        assert note.endswith(f"{text}:{fewer}]")


def test_other_paths(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        data.load_images(tmp_path / "minst")
    (tmp_path / "set.mat").write_text("")
    with pytest.raises(UserError, match=r"neither a folder of images nor one of .npy, .npz, .csv"):
        data.load_images(tmp_path / "set.mat")
    path = save_npy(tmp_path, GREY)
    with pytest.raises(UserError, match="image_size is for folders"):
        data.load_images(path, image_size=8)
    with pytest.raises(UserError, match="images_per_class = 0"):
        data.load_images(path, images_per_class=0)


# Sets of images


def test_mean_and_rows_are_on_one_scale():
    grey = ImageSet(COLOUR, None, ())
    floats = ImageSet((COLOUR / 255).astype(np.float32), None, ())
    np.testing.assert_allclose(grey.mean, (COLOUR / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(floats.mean, grey.mean, rtol=1e-6)
    assert floats.mean.dtype == grey.mean.dtype == np.float32
    # So many pixels that a sum in float32 has lost the digits.
    large = ImageSet(np.full((2, 1024, 1024, 3), 0.1, np.float32), None, ())
    np.testing.assert_allclose(large.mean, [0.1] * 3, rtol=1e-6)


def labelled(images, labels=None, names=("a", "b")):
    labels = np.arange(len(images)) % len(names) if labels is None else np.array(labels)
    return ImageSet(images, labels, names)


def test_nothing_is_said_of_a_good_set():
    assert check(labelled(COLOUR)) == []
    assert check(ImageSet(FLOATS[..., None], None, ())) == []
    assert check(ImageSet(FLOATS[..., None], None, (), ("as noted",))) == ["as noted"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (COLOUR[:0], "at least two images, not 0"),
        (COLOUR[:1], "at least two images, not 1"),
        (np.repeat(COLOUR[:1], 5, 0), "all 5 images are equal"),
        (np.zeros((3, 4, 4, 1), np.float32), "all 3 images are equal"),
        (changed(FLOATS[..., None], (8, 1, 2, 0), np.nan), r"images\[8, 1, 2, 0\] is nan"),
    ],
)
def test_sets_without_regimes(images, message, monkeypatch):
    monkeypatch.setattr("diffusion_jax.data.checks._CHUNK_BYTES", 1000)
    with pytest.raises(UserError, match=message):
        check(ImageSet(images, None, ()))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_duplicates_and_the_limit_of_phi_c(dtype):
    """phi_C = E[p(mu | x_t)] at small t, from the posterior written out, is what is said."""
    places = [0, 1, 2, 3, 1, 4, 1, 0, 5]
    images = COLOUR[places].astype(dtype)
    if dtype == np.float32:
        images[0, 0, 0, 0], images[7, 0, 0, 0] = 0.0, -0.0  # equal numbers, other bytes
    (text,) = check(ImageSet(images, None, ()))
    assert "5 of 9 images are exact copies of one another, in 2 groups" in text
    assert "the first: images 0 and 7" in text
    points = images.reshape(9, -1) / 255
    delta = 1 - np.exp(-2e-4)
    noise = np.random.default_rng(1).standard_normal(points.shape)
    noisy = np.sqrt(1 - delta) * points + np.sqrt(delta) * noise
    distance = np.sum((noisy[:, None] - np.sqrt(1 - delta) * points) ** 2, axis=2)
    weights = np.exp(-(distance - distance.min(1, keepdims=True)) / (2 * delta))
    limit = np.mean(np.diag(weights) / weights.sum(1))
    np.testing.assert_allclose(limit, 6 / 9, rtol=1e-6)
    assert f"phi_C tends to {limit:.4g} for small t" in text


def test_copies_in_two_classes_are_told():
    images = COLOUR[[0, 1, 2, 3, 0, 1]]
    (text,) = check(labelled(images, [0, 0, 1, 1, 1, 0]))
    assert "1 of the groups have copies in different classes" in text
    (text,) = check(labelled(images, [0, 1, 0, 1, 0, 1]))
    assert "different classes" not in text


def test_constant_images_are_told():
    images = COLOUR.copy()
    images[3], images[7] = [10, 20, 30], 0
    (text,) = check(labelled(images))
    assert "2 of 12 images are constant" in text
    assert "image 3" in text
    levels = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)
    assert check(labelled(levels)) == []  # one pixel is no picture


def test_unbalanced_classes_are_told():
    (text,) = check(labelled(COLOUR, [0] * 9 + [1] * 3))
    assert "from 3 images (b) to 9 (a)" in text
    assert f"phi tends to {0.75**2 + 0.25**2:.4g}" in text
    texts = check(labelled(COLOUR, [0] * 11 + [1]))
    assert any("1 class holds a single image (the first: b)" in text for text in texts)


def test_memory_is_refused_before_it_is_taken():
    require_memory("this", 2**30, memory_gib=1)
    require_memory("this", 1)
    with pytest.raises(UserError, match=r"this takes 1 GiB of memory, more than the 0.5 GiB"):
        require_memory("this", 2**30, memory_gib=0.5)
    with pytest.raises(UserError, match="that are free"):
        require_memory("this", 2**60)
    # What is said to be needed is enough, though it is rounded.
    for num_bytes in (1_234_567_890, 1_235_432_109):
        with pytest.raises(UserError) as refused:
            require_memory("this", num_bytes, memory_gib=1)
        require_memory("this", num_bytes, float(str(refused.value).split()[2]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 1, 0], r"labels\[1\] = -1 is no index of the 2 class name"),
        ([0, 1, 2, 0], r"labels\[2\] = 2 is no index of the 2 class name.*between 0 and 1"),
        ([0.0, 1.0, 0.0, 1.0], "integers, not float64"),
        ([True, False, True, False], "integers, not bool"),
        (["a", "b", "a", "b"], "integers, not <U1"),
    ],
)
def test_labels_of_a_set_are_indices_of_its_classes(labels, message):
    with pytest.raises(UserError, match=message):
        labelled(GREY[:4, ..., None], labels)


def test_negative_labels_of_a_file_are_names_like_others(tmp_path):
    """As of two classes -1 and 1."""
    found = arrays.load(savez(tmp_path, images=GREY, labels=np.array([1, -1] * 6)))
    assert found.class_names == ("-1", "1")
    np.testing.assert_array_equal(found.labels, [1, 0] * 6)
