"""Grids of images, and images as PNGs."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.plots import training
from diffusion_jax.plots.training import save_image_grid, save_images

NONE = np.zeros(1, np.float32)
LEVELS = np.arange(6, dtype=np.float32) / 255


def cells(path, height, width):
    """The images of a grid, each without its enlargement, and by how much it is enlarged."""
    grid = np.asarray(Image.open(path))
    rows = np.flatnonzero((grid != 255).any(axis=1))
    scale = int(np.argmax(np.diff(rows) > 1) + 1 if len(rows) < len(grid) - 8 else len(rows))
    scale //= height
    step = (height * scale + 4, width * scale + 4)
    return [
        grid[top : top + height * scale : scale, left : left + width * scale : scale]
        for top in range(4, grid.shape[0] - 4, step[0])
        for left in range(4, grid.shape[1] - 4, step[1])
    ], scale


@pytest.mark.parametrize(
    ("n", "shape", "scale"),
    [
        (1, (16, 16), 8),
        (64, (16, 16), 8),
        (65, (16, 16), 7),
        (64, (64, 64), 2),
        (64, (16, 24), 5),
        (3, (24, 16), 5),
        (1000, (16, 16), 2),
        (10_000, (16, 16), 1),
    ],
)
def test_images_are_enlarged_as_far_as_the_grid_stays_small(tmp_path, n, shape, scale):
    images = (np.arange(n) % 200 / 255).astype(np.float32)[:, None, None, None]
    save_image_grid(tmp_path / "a.png", np.broadcast_to(images, (n, *shape, 1)), NONE)
    found, enlarged = cells(tmp_path / "a.png", *shape)
    assert enlarged == scale
    expected = [np.full(shape, i % 200) for i in range(n)]
    np.testing.assert_array_equal(found[:n], expected)
    assert all((each == 255).all() for each in found[n:])


def test_no_grid_is_larger_than_pillow_opens(tmp_path, monkeypatch):
    """The first images are shown, as many as there is room for."""
    monkeypatch.setattr(training, "_MOST_PIXELS", 50 * 50)
    images = np.broadcast_to(np.arange(9)[:, None, None, None] / 255, (9, 12, 20, 1))
    save_image_grid(tmp_path / "a.png", images, NONE)
    grid = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.unique(grid).tolist() == [0, 1, 2, 3, 255]
    assert training._MOST_PIXELS < Image.MAX_IMAGE_PIXELS


def test_images_become_pngs_by_the_stated_rule(tmp_path):
    values = np.array([-0.5, 0, 0.49 / 255, 0.51 / 255, 100.4 / 255, 0.999, 1, 7.0], np.float32)
    grey = [0, 0, 0, 1, 100, 255, 255, 255]
    for channels, mode in ((1, "L"), (3, "RGB")):
        images = np.broadcast_to(values[:, None, None, None], (8, 2, 5, channels))
        folder = tmp_path / mode
        for _ in range(2):  # again is the same
            save_images(folder, images)
        assert sorted(path.name for path in folder.iterdir()) == [f"0000{i}.png" for i in range(8)]
        for i, level in enumerate(grey):
            with Image.open(folder / f"0000{i}.png") as image:
                assert (image.mode, image.size) == (mode, (5, 2))
                assert np.unique(np.asarray(image)).tolist() == [level]


def test_pngs_of_others_are_not_mixed_with_these(tmp_path):
    save_images(tmp_path, np.zeros((3, 2, 2, 1)))
    with pytest.raises(UserError, match=r"1 PNGs that are none of these 2 images, such as 00002"):
        save_images(tmp_path, np.ones((2, 2, 2, 1)))
    assert np.asarray(Image.open(tmp_path / "00000.png")).max() == 0
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        save_images(tmp_path / "file", np.ones((2, 2, 2, 1)))
