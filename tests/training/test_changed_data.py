"""Data that change between two starts of a run, or under it."""

import numpy as np
import pytest
from two_convolutions import TwoConvolutions

from diffusion_jax.errors import UserError
from diffusion_jax.training import loop
from diffusion_jax.training.metrics import read_metrics
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)


def swapped(images):
    """The same images in another order: shape, number and mean are as before."""
    return images[[1, 0, *range(2, 24)]]


def one_pixel(images):
    """Two pixels change places: the mean is as before."""
    changed = images.copy()
    changed[5, 0, 0], changed[5, 7, 7] = images[5, 7, 7], images[5, 0, 0]
    assert np.sum(changed != images) == 2
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, "the data changed since the last checkpoint: their shape, number and mean"),
        (one_pixel, "the data changed since the last checkpoint: their shape, number and mean"),
        (lambda images: images[:-1], "its num_images was 24 and is 23"),
    ],
)
def test_a_resumed_run_notices(tmp_path, change, message):
    path, run_dir = tmp_path / "images.npy", tmp_path / "run"

    def train(steps):
        words = ["--data", path, "--image-size", None, "--images-per-class", None, "--classes"]
        words += ["--batch-size", 8, "--log-every", 1, "--checkpoint-every", 2, "--num-samples", 1]
        words += ["--diffusion-steps", 25, "--steps", steps, "--run-dir", run_dir]
        loop.train(parse([str(word) for word in words]), TwoConvolutions(1))

    np.save(path, IMAGES)
    train(2)
    np.save(path, change(IMAGES))
    with pytest.raises(UserError, match=message):
        train(4)
    assert not (run_dir / "checkpoints" / "4").exists()
    np.save(path, IMAGES)
    train(4)
    logged = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")]
    assert logged == [1, 2, 3, 4]
