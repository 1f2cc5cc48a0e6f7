"""The classifier: what it learns, what it cannot have seen, and its files."""

import json

import jax
import numpy as np
import pytest
from scipy.stats import binomtest

from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging import classifier, classifier_training
from diffusion_jax.runtime import patience


def bars(n=100, seed=0):
    """Horizontal (0) against vertical (1) bars at random phases, with noise; uint8, 16 x 16."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    wave = np.sin(2 * np.pi * (np.arange(16) / 8 + rng.random((n, 1))))
    images = np.where(labels[:, None, None] == 1, wave[:, None, :], wave[:, :, None])
    images = 0.5 + 0.25 * images + 0.1 * rng.standard_normal((n, 16, 16))
    pixels = np.clip(255 * images, 0, 255).astype(np.uint8)[..., None]
    return ImageSet(pixels, labels.astype(np.int64), ("horizontal", "vertical"))


def centred(images):
    return images.images / 255 - images.mean


@pytest.fixture(scope="module")
def trained():
    return classifier_training.train_classifier(bars(), seed=0, updates=30)


def test_it_learns_bars_that_it_has_not_seen(trained):
    assert trained.accuracy > 0.95
    assert trained.held_out == 20
    assert classifier.warning(trained) is None
    fresh = bars(400, seed=1)
    right = int(np.sum(trained.predict(fresh.images / 255 - trained.mean) == fresh.labels))
    assert right / 400 > 0.95
    expected = binomtest(round(20 * trained.accuracy), 20).proportion_ci(method="wilson")
    assert trained.interval == (expected.low, expected.high)


def test_random_labels_are_learnt_by_heart_and_not_on_held_out_images():
    """Would the accuracy be measured on images of the training, it would be near 1."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    labels = rng.permutation(np.arange(100) % 2)
    images = ImageSet(coarse.repeat(4, axis=1).repeat(4, axis=2), labels, ("a", "b"))
    found = classifier_training.train_classifier(images, seed=0, updates=200)
    train, test = classifier_training.split(labels, 0.2, 0)
    right = found.predict(centred(images)) == labels
    assert right[train].mean() > 0.9
    assert right[test].mean() == found.accuracy
    assert binomtest(int(right[test].sum()), found.held_out).pvalue > 1e-3
    assert "held-out images" in classifier.warning(found)
    assert "of 20" in classifier.warning(found)


def test_the_split_is_by_class_and_by_the_seed_alone():
    labels = np.random.default_rng(3).permutation(np.repeat([0, 1, 2], [50, 25, 5]))
    train, test = classifier_training.split(labels, 0.2, 7)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(80))
    np.testing.assert_array_equal(np.bincount(labels[test]), [10, 5, 1])
    np.testing.assert_array_equal(test, classifier_training.split(labels, 0.2, 7)[1])
    assert not np.array_equal(test, classifier_training.split(labels, 0.2, 8)[1])
    # Never a class without an image on either side.
    for fraction in (0.001, 0.999):
        sides = classifier_training.split(labels, fraction, 0)
        assert all(len(np.unique(labels[side])) == 3 for side in sides)
    # Every image is held out for some seed, about as often as any other.
    held = sum(
        np.bincount(classifier_training.split(labels, 0.2, s)[1], minlength=80) for s in range(300)
    )
    assert np.all(np.abs(held / 300 - 0.2) < 0.12)


def test_an_image_is_judged_by_itself(trained):
    x = centred(bars(300, seed=4))
    features, classes = trained.features(x), trained.predict(x)
    assert features.shape == (300, 128)
    assert classes.dtype == np.int64
    np.testing.assert_array_equal(trained.features(x), features)
    order = np.random.default_rng(5).permutation(300)
    np.testing.assert_allclose(trained.features(x[order]), features[order], atol=1e-5)
    np.testing.assert_array_equal(trained.predict(x[order]), classes[order])
    for alone in (0, 150, 299):
        got = trained.features(x[alone : alone + 1])
        np.testing.assert_allclose(got, features[alone : alone + 1], atol=1e-5)
    assert trained.features(x[:0]).shape == (0, 128)
    assert trained.predict(x[:0]).shape == (0,)
    # The logits are linear in the features.
    head = trained.params["head"]
    logits = features @ head["kernel"] + head["bias"]
    np.testing.assert_array_equal(logits.argmax(1), classes)


def test_the_seed_decides_everything():
    one, again, other = (
        classifier_training.train_classifier(bars(), seed, updates=8) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, again.params, one.params)
    assert again.accuracy == one.accuracy
    assert not np.array_equal(other.params["head"]["kernel"], one.params["head"]["kernel"])


def test_images_of_any_size_and_any_number_of_channels():
    rng = np.random.default_rng(6)
    images = ImageSet(rng.random((15, 8, 11, 2), np.float32), np.arange(15) % 3, ("a", "b", "c"))
    found = classifier_training.train_classifier(images, 0, updates=1)
    assert found.features(images.images - images.mean).shape == (15, 128)
    for size, depth in [(8, 3), (63, 3), (64, 4), (130, 5)]:
        shapes = jax.eval_shape(
            lambda size=size: classifier.initial_params(
                classifier.Classifier(3), jax.random.key(0), (size, size + 5, 3)
            )
        )
        assert len([name for name in shapes if name.startswith("conv")]) == depth


def test_the_training_images_are_shifted_and_noisy_by_no_more_than_said():
    x = np.zeros((400, 12, 12, 1), np.float32)
    x[:, 6, 6] = 100
    found = np.asarray(classifier_training._augmented(jax.random.key(0), jax.numpy.asarray(x)))[
        ..., 0
    ]
    row, column = np.divmod(found.reshape(400, -1).argmax(1), 12)
    for place in (row, column):
        assert set(place) == {4, 5, 6, 7, 8}
        assert np.bincount(place).max() < 120
    deviation = np.std(found.reshape(400, -1)[:, :40], axis=1)
    assert deviation.max() < 0.15
    assert abs(deviation.mean() - 0.05) < 0.01


def test_files_give_the_same_classifier_bit_for_bit(trained, tmp_path):
    classifier.save(tmp_path / "new", trained)
    back = classifier.load(tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, back.params, trained.params)
    for name in ("class_names", "shape", "accuracy", "interval", "held_out"):
        assert getattr(back, name) == getattr(trained, name)
    np.testing.assert_array_equal(back.mean, trained.mean)
    assert back.mean.dtype == np.float32
    x = centred(bars(20, seed=7))
    np.testing.assert_array_equal(back.features(x), trained.features(x))
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"classifier.json", "classifier.msgpack"}


def test_damaged_files_are_named(trained, tmp_path, monkeypatch):
    classifier.save(tmp_path, trained)
    parameters, description = tmp_path / "classifier.msgpack", tmp_path / "classifier.json"
    whole, text = parameters.read_bytes(), description.read_text()
    values = json.loads(text)

    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            classifier.load(tmp_path)
        assert "train the classifier again" in str(caught.value)

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damage in (whole[:-100], b"", bytes(flipped)):
        parameters.write_bytes(damage)
        refused("classifier.msgpack")
    parameters.write_bytes(whole)
    for changed in (
        {"classes": ["horizontal", "vertical", "oblique"]},
        {"shape": [16, 16, 3], "mean": [0.1, 0.2, 0.3]},
        {"shape": [128, 128, 1]},
    ):
        description.write_text(json.dumps(values | changed))
        refused("classifier.msgpack")
    for changed in ({"format": 2}, {"shape": [16, 16]}, {"interval": None}, {"held_out": 1e999}):
        description.write_text(json.dumps(values | changed))
        refused("classifier.json")
    for damage in (text[:50], "[]", "{}", ""):
        description.write_text(damage)
        refused("classifier.json")
    description.write_text(text)
    parameters.unlink()
    refused("classifier.msgpack")
    monkeypatch.setattr(patience, "PAUSES", ())
    parameters.symlink_to("/proc/self/mem")  # whoever reads address 0 of it is told EIO
    with pytest.raises(UserError, match=r"cannot read .*classifier\.msgpack: Input/output error"):
        classifier.load(tmp_path)
    description.unlink()
    refused("classifier.json")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot save"):
        classifier.save(tmp_path / "file", trained)


def test_images_that_it_cannot_take_are_refused(trained):
    good = bars(20)

    def refused(match, pixels=good.images, labels=good.labels, names=good.class_names, **options):
        with pytest.raises(UserError, match=match):
            classifier_training.train_classifier(ImageSet(pixels, labels, names), 0, **options)

    refused("labels", labels=None)
    refused("two classes", labels=np.zeros(20, int), names=("one",))
    refused("class vertical has 4", labels=np.array([0] * 16 + [1] * 4))
    refused("class oblique has 0", names=("horizontal", "vertical", "oblique"))
    refused("8 pixels", pixels=good.images[:, :7])
    refused("updates", updates=0)
    refused("held_out", held_out=1.0)
    with pytest.raises(UserError, match="mean removed"):
        trained.predict(good.images)
    with pytest.raises(UserError, match=r"\(N, 16, 16, 1\)"):
        trained.features(np.zeros((2, 16, 16, 3)))
