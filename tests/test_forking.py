"""Batches of trunks that are kept: any sizes, in any order, and folders of earlier versions."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from diffusion_jax import forking
from diffusion_jax.config import DataConfig
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging import classifier
from diffusion_jax.judging.classifier import TrainedClassifier
from diffusion_jax.regimes import cloning, commitment
from diffusion_jax.runtime import lock, patience
from diffusion_jax.schedule import constant_schedule, linear_schedule

CONSOLE = Console(quiet=True)


@pytest.mark.parametrize("num_steps", range(2, 45))
def test_the_forks_of_any_number_of_steps_are_forks(num_steps):
    times = np.linspace(0.1, 5, num_steps)
    steps = forking.branch_steps(times, None)
    assert np.array_equal(cloning._checked(steps.tolist(), num_steps), steps)
    assert steps[0] == num_steps
    assert len(steps) == min(num_steps, 20) or num_steps > 20 >= len(steps) > 15
    watch = forking.watched_steps(num_steps)
    assert np.array_equal(cloning._checked(watch.tolist(), num_steps), watch)


@pytest.mark.parametrize(
    "schedule", [linear_schedule(), linear_schedule(25), constant_schedule(700, 3e-3)]
)
def test_a_bound_may_be_given_as_it_is_printed(schedule):
    times = np.asarray(schedule.time, np.float64)
    with pytest.raises(UserError) as refused:
        forking.branch_steps(times, (100.0,))
    low, high = map(float, str(refused.value).rsplit("from ", 1)[1].split(" to "))
    assert forking.branch_steps(times, (low, high)).tolist() == [len(times), 1]
    for beyond in (0.99 * low, 1.001 * high, -high, np.nan):
        with pytest.raises(UserError, match="must lie in the schedule"):
            forking.branch_steps(times, (beyond,))


def outcomes_of(first, last):
    """Outcomes that tell of their trunk's number alone."""
    number = np.arange(first, last)
    return commitment.Outcomes(
        trunk=np.sin(number)[:, None],
        same_class=np.stack([number % 2 == 0, number % 3 == 0], 1),
        same_point=np.stack([number % 5 == 0, number % 7 == 0], 1),
        label=number % 2,
        index=number,
        distance=np.cos(number),
        second=np.tan(number),
        path=np.stack([number, number + 1], 1),
    )


def batches(folder, count, size):
    """The joined trunks, those of them that were run now, and the forks that are shown."""
    run = []

    def measure(first, last, progress):
        progress(1)
        run.append((first, last))
        return outcomes_of(first, last), np.arange(first, last)[:, None]

    joined, shown = forking.run_batches(folder, count, size, 1, measure, CONSOLE)
    expected = outcomes_of(0, count)
    for name in ("trunk", "same_class", "same_point", "label", "index", "distance", "path"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(expected, name))
    return run, shown


@pytest.mark.parametrize("seed", range(12))
def test_batches_of_any_sizes_join_and_none_is_run_twice(seed, tmp_path):
    rng = np.random.default_rng(seed)
    taken = set()
    for _ in range(6):
        count, size = (int(n) for n in rng.integers(1, [90, 40]))
        run, shown = batches(tmp_path, count, size)
        numbers = [i for first, last in run for i in range(first, last)]
        assert len(numbers) == len(set(numbers))
        assert not taken & set(numbers)
        assert all(last - first <= size for first, last in run)
        # Where nothing stands in the way all batches are of one size, for one program.
        assert max(numbers, default=0) < max(count + len(run), 1)
        taken |= set(numbers)
        assert shown[0, 0] == 0
        if taken and rng.integers(2):  # a batch is lost
            path = rng.choice(sorted(tmp_path.glob("trunks_*.npz")))
            first, last = map(int, path.stem.split("_")[1:])
            path.unlink()
            taken -= set(range(first, last))


def test_equal_batches_keep_one_shape():
    assert forking.missing([], 256, 64) == [(0, 64), (64, 128), (128, 192), (192, 256)]
    assert forking.missing([], 40, 16) == [(0, 14), (14, 28), (28, 42)]
    assert forking.missing([(0, 32)], 64, 64) == [(32, 64)]
    assert forking.missing([(0, 32), (40, 48)], 44, 64) == [(32, 40)]
    assert forking.missing([(0, 64)], 30, 8) == []


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    settings = {"seed": 1, "forks": [3, 1]}
    for place in range(2):
        outcomes_of(16 * place, 16 * place + 16).save(tmp_path / f"batch_{place:05d}.npz")
    np.save(tmp_path / "shown.npy", np.arange(8)[:, None])
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"batch_size": 16}))
    try:
        forking.claim(tmp_path, settings)
        run, _ = batches(tmp_path, 64, 64)
        assert run == [(32, 64)]
        forking.claim(tmp_path, settings)  # what it has become goes on as well
        with pytest.raises(UserError, match=r"another experiment .*seed: 1 -> 2"):
            forking.claim(tmp_path, settings | {"seed": 2})
    finally:
        lock.release(tmp_path)


@pytest.mark.parametrize("name", ["shown.npy", "trunks_000000_000010.npz", "settings.json"])
def test_what_the_disk_refuses_is_not_called_damaged(tmp_path, monkeypatch, name):
    """It would be removed. Whoever reads the memory of address 0 is told EIO by the system."""
    pauses = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    batches(tmp_path, 20, 10)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=f"cannot read .*{name}: Input/output error; nothing is"):
        forking._claim(tmp_path, {}) if name == "settings.json" else batches(tmp_path, 20, 10)
    assert pauses == [1, 2, 4]
    lock.release(tmp_path)


def test_what_is_damaged_is_named(tmp_path):
    batches(tmp_path, 20, 10)
    (tmp_path / "shown.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"shown.npy is damaged .* remove .*trunks_000000_000010"):
        batches(tmp_path, 20, 10)
    settings = tmp_path / "settings.json"
    settings.write_text('{"seed": 1')
    told = r"settings\.json is damaged \(.*\), and it alone says which .* remove this file; if"
    try:
        with pytest.raises(UserError, match=told):
            forking.claim(tmp_path, {"seed": 1})
        settings.unlink()
        forking.claim(tmp_path, {"seed": 1})  # that is enough
        assert json.loads(settings.read_text()) == {"seed": 1}
    finally:
        lock.release(tmp_path)
    (tmp_path / "trunks_000000_000010.npz").unlink()
    assert batches(tmp_path, 20, 10)[0] == [(0, 10)]
    (tmp_path / "trunks_000010_000020.npz").rename(tmp_path / "trunks_000010_000021.npz")
    with pytest.raises(UserError, match="holds 10 trunks, not the 11 of its name; remove it"):
        batches(tmp_path, 21, 10)


HOLD = """
import sys, time
from pathlib import Path
from diffusion_jax.forking import claim
claim(Path(sys.argv[1]), {})
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path / "batches")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"which forks a run there; .* another --out"):
            forking.claim(tmp_path / "batches", {"seed": 3})
        assert json.loads((tmp_path / "batches" / "settings.json").read_text()) == {}
        process.kill()
    forking.claim(tmp_path / "batches", {"seed": 3})
    lock.release(tmp_path / "batches")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/batches"):
        forking.claim(tmp_path / "file" / "batches", {})


@pytest.fixture
def trained(monkeypatch):
    """Trains classifiers at once, and counts them."""
    made = []

    def train(images, seed):
        made.append(len(images.images))
        params = classifier.initial_params(
            classifier.Classifier(2), forking.jax.random.key(seed), images.images.shape[1:]
        )
        return TrainedClassifier(
            params, images.mean, images.class_names, images.images.shape[1:], 1.0, (0.9, 1.0), 2
        )

    monkeypatch.setattr(forking, "train_classifier", train)
    return made


def set_of(n, shade=100):
    pixels = np.full((n, 8, 8, 1), shade, np.uint8)
    pixels[:, 0, 0, 0] = np.arange(n)
    return ImageSet(pixels, np.arange(n) % 2, ("a", "b"))


def test_a_classifier_is_taken_again_under_its_own_settings_alone(trained, tmp_path, capsys):
    def get(images, seed=1):
        return forking.get_classifier(tmp_path, None, images, None, seed)[0]

    first = get(set_of(20))
    assert get(set_of(20)).settings == first.settings
    assert len(trained) == 1
    others = (set_of(22), set_of(20, 101), replace(set_of(20), class_names=("a", "c")))
    for number, images in enumerate(others, 2):
        assert get(images).settings != first.settings
        assert len(trained) == number
    get(set_of(20), seed=2)
    assert len(trained) == 5
    # One that batches were judged by is kept, also by a version that knew no settings.
    classifier.save(tmp_path, replace(get(set_of(20)), settings={}))
    outcomes_of(0, 2).save(tmp_path / "trunks_000000_000002.npz")
    assert get(set_of(20), seed=3).settings == {}
    assert len(trained) == 6


def test_more_images_for_the_classifier_are_another_setting(trained, tmp_path, monkeypatch):
    model = SimpleNamespace(config=SimpleNamespace(data=DataConfig(data="mnist")))
    monkeypatch.setattr(forking.data, "load", lambda config: set_of(2 * config.images_per_class))
    for per_class in (9, 12, 12, None):
        forking.get_classifier(tmp_path, model, set_of(14), per_class, 1)
    assert trained == [18, 24, 14]


@pytest.mark.parametrize("counts", [(1, 9), (4, 5), (1, 1)])
def test_classes_of_too_few_images_have_no_classifier(trained, tmp_path, counts):
    labels = np.repeat([0, 1], counts)
    images = replace(set_of(len(labels)), labels=labels)
    found, why = forking.get_classifier(tmp_path, None, images, None, 1)
    assert found is None
    assert f"class a has {counts[0]} image(s)" in why
    assert not trained
