"""Grey levels of colour images, images that are skipped, and where those held out begin."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.config import DataConfig
from diffusion_jax.data.images import ImageSet, in_grey
from diffusion_jax.errors import UserError


def test_grey_is_pillows():
    """Of every red and green with some blues, to the last bit."""
    red, green, blue = np.meshgrid(np.arange(256), np.arange(256), [0, 1, 77, 128, 255])
    pixels = np.stack([red, green, blue], -1).astype(np.uint8).reshape(1280, 16, 16, 3)
    grey = in_grey(ImageSet(pixels, None, ()))
    whole = Image.fromarray(pixels.reshape(-1, 16, 3)).convert("L")
    np.testing.assert_array_equal(grey.images.reshape(-1, 16), np.asarray(whole))
    assert in_grey(grey) is grey
    with pytest.raises(UserError, match="these have 2"):
        in_grey(ImageSet(pixels[..., :2], None, ()))


@pytest.fixture
def path(tmp_path):
    """Twelve images of each of two classes, of which each tells its class and rank."""
    labels = np.tile(["a", "b"], 12)
    images = np.zeros((24, 8, 8, 3), np.uint8)
    for i in range(24):
        images[i] = 100 * (i % 2) + i // 2
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    return tmp_path / "own.npz"


def ranks(images):
    return sorted((images.images[:, 0, 0, 0] % 100).tolist())


def test_replicas_share_no_image_and_one_held_out_set(path):
    sets = []
    for replica in range(2):
        config = DataConfig(
            str(path),
            (),
            3,
            held_out_per_class=2,
            skip_per_class=3 * replica,
            held_out_after=9,
            image_size=None,
        )
        training, held_out = data.load_split(config)
        sets.append(ranks(training))
        assert ranks(held_out) == [9, 9, 10, 10]
    assert sets == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]]
    grey, _ = data.load_split(replace(config, grey=True))
    assert grey.images.shape == (6, 8, 8, 1)
    assert ranks(grey) == sets[1]
    follow = replace(config, held_out_after=None)
    assert ranks(data.load_split(follow)[1]) == [6, 6, 7, 7]


def test_what_there_is_no_room_for(path):
    config = DataConfig(str(path), (), 3, held_out_per_class=2, image_size=None)
    for changes, part in (
        ({"held_out_after": 2}, "must come after them"),
        ({"held_out_after": 11}, "fewer than"),
        ({"skip_per_class": 10}, "fewer than"),
        ({"skip_per_class": -1}, "skip_per_class = -1 must not be negative"),
        ({"held_out_after": -1}, "held_out_after = -1 must not be negative"),
        ({"skip_per_class": 1.5}, "must be a whole number"),
    ):
        with pytest.raises(UserError, match=part):
            data.load_split(replace(config, **changes))
