"""Training on an array, without a folder: the same updates as a run's."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from two_convolutions import TwoConvolutions

import diffusion_jax as dj
from diffusion_jax.training import loop
from diffusion_jax.training.run import load_model
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

IMAGES = Path(__file__).parents[1] / "reference" / "run" / "images.npz"
SETTINGS = dj.TrainingConfig(batch_size=8, learning_rate=1e-2, warmup_steps=2)


def losses(images, seed=3):
    schedule = dj.linear_schedule(40)
    found = [
        (float(metrics["loss"]), float(metrics["grad_norm"]), jax.tree.map(np.array, state.params))
        for state, metrics in dj.updates(TwoConvolutions(1), images, schedule, 5, SETTINGS, seed)
    ]
    return [loss for loss, _, _ in found], [norm for _, norm, _ in found], found[-1][2]


def test_they_are_a_runs_updates(tmp_path):
    words = f"--preset sample --data {IMAGES} --run-dir {tmp_path} --seed 3 --steps 5 --log-every 1"
    words += " --batch-size 8 --learning-rate 1e-2 --warmup-steps 2 --diffusion-steps 40"
    loop.train(parse([*words.split(), "--num-samples", "4"]), TwoConvolutions(1))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    loss, norm, _ = losses(dj.load_images(IMAGES))
    assert loss == [record["loss"] for record in records]
    assert norm == [record["grad_norm"] for record in records]
    assert load_model(tmp_path, network=TwoConvolutions(1)).step == 5


def test_floats_are_grey_levels_over_255():
    images = dj.load_images(IMAGES).images
    grey, unit = losses(images), losses(images / 255)
    np.testing.assert_allclose(unit[0], grey[0], rtol=1e-5)
    # The mean is that of these floats: of others the loss is another.
    assert not np.allclose(losses(np.clip(images / 255 * 2, 0, 1))[0], grey[0], rtol=1e-3)


def test_the_seed_decides():
    images = dj.load_images(IMAGES).images
    first, again, other = losses(images), losses(images), losses(images, seed=4)
    assert first[0] == again[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, first[2], again[2]))
    assert first[0] != other[0]


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (np.full((4, 8, 8), np.nan), SETTINGS, "not a finite number"),
        (np.zeros((4, 3, 8, 8)), SETTINGS, "channels come last"),
        (np.arange(128.0).reshape(2, 8, 8), SETTINGS, "look like grey levels"),
        (np.zeros((4, 8, 8)), dj.TrainingConfig(batch_size=12), "multiple of 8"),
        (np.zeros((4, 8, 8)), dj.TrainingConfig(learning_rate=0), "learning_rate"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(images, settings, message):
    with pytest.raises(dj.UserError, match=message):
        dj.updates(TwoConvolutions(1), images, dj.linear_schedule(40), 1, settings)


def test_a_network_of_another_shape_is_refused():
    images = np.random.default_rng(0).random((8, 8, 8))
    with pytest.raises(dj.UserError, match=r"gives \(1, 8, 8, 2\) for images of shape"):
        next(dj.updates(TwoConvolutions(2), images, dj.linear_schedule(40), 1, SETTINGS))
    with pytest.raises(dj.UserError, match="num_updates = 0"):
        dj.updates(TwoConvolutions(1), images, dj.linear_schedule(40), 0, SETTINGS)


def test_a_run_from_python_gives_its_folder_up(tmp_path):
    """A second training of another process may go on in it while this process lives."""
    output = dj.OutputConfig(run_dir=str(tmp_path / "run"), num_samples=4)
    data = dj.DataConfig(str(IMAGES), (), images_per_class=None, image_size=None)
    schedule, model = dj.ScheduleConfig(diffusion_steps=40), dj.ModelConfig()
    config = dj.Config(output, data, model, schedule, SETTINGS, steps=1)
    dj.train(config, TwoConvolutions(1))
    lock = "from diffusion_jax.runtime.lock import lock; from pathlib import Path; import sys"
    words = [sys.executable, "-c", f"{lock}; lock(Path(sys.argv[1]))", str(tmp_path / "run")]
    assert subprocess.run(words, timeout=60).returncode == 0
