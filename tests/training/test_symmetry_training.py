"""Training with a symmetry: the maps that are drawn, the gradient, moments, copies, resumes."""

import dataclasses
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import images_of
from two_convolutions import TwoConvolutions

import diffusion_jax as dj
from diffusion_jax import covariance
from diffusion_jax.config import Config, TrainingConfig
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.runtime.devices import replicate, sharded
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.symmetry import GROUPS, Group, group_named
from diffusion_jax.training import evaluation, moments, saved_config
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.step import (
    init_state,
    make_optimizer,
    make_parallel_train_step,
    make_train_step,
    state_of,
)
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SCHEDULE, SHAPE = linear_schedule(100), (6, 6, 3)
MEAN = jnp.array([0.4, 0.5, 0.6])
MODEL = TwoConvolutions(3, dropout=0.1)
CONFIG = TrainingConfig(batch_size=16, learning_rate=1e-3, warmup_steps=4, ema_decay=0.9)
IMAGES = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), dtype=np.uint8)


def with_symmetry(name, **more):
    return dataclasses.replace(CONFIG, symmetry=name, **more)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda: init_state(MODEL, make_optimizer(CONFIG), jax.random.key(0), SHAPE))()


@cache
def recorded(name, count=4800, faithful=False):
    """The x_0, steps and noise of so many examples of one update, all of one image."""
    seen = []

    def record(model, schedule, params, x_0, step, noise, dropout_keys):
        jax.debug.callback(lambda *values: seen.append(values), x_0, step, noise)
        return jnp.sum(params["w"]) * 0.0

    shape = (3, 3, 1) if name == "dihedral" else (3, 4, 1)
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(1, *shape)
    config = dataclasses.replace(with_symmetry(name), faithful=faithful)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_jax.training.step.noise_loss", record)
        optimizer = make_optimizer(config)
        step = jax.jit(make_train_step(MODEL, SCHEDULE, optimizer, jnp.zeros(1), config))
        start = state_of({"w": jnp.zeros(1)}, optimizer, jax.random.key(2))
        step(start, jnp.asarray(image.repeat(count, 0)), jnp.arange(count))
        jax.effects_barrier()
    ((x_0, steps, noise),) = seen
    return image[0] / np.float32(255), np.asarray(x_0), np.asarray(steps), np.asarray(noise)


def maps_of(image, x_0, group):
    """Which map made each x_0 of the image, all pixels of which differ."""
    orbit = images_of(group, image)
    apart = np.abs(x_0[:, None] - orbit[None]).max((2, 3, 4))
    assert apart.min(1).max() < 1e-6
    return apart.argmin(1)


@pytest.mark.parametrize("name", GROUPS)
def test_the_maps_are_uniform_and_each_examples_own(name):
    """Independent of the example's place, step and noise: chi^2 and correlations, at 1 in 10^4."""
    image, x_0, steps, noise = recorded(name)
    group = group_named(name, image.shape)
    drawn = maps_of(image, x_0, group)
    count, order = len(drawn), group.order

    def chi_squared(table):
        expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
        return np.sum((table - expected) ** 2 / expected), (len(table) - 1) * (order - 1)

    counts = np.bincount(drawn, minlength=order)
    uniform = np.sum((counts - count / order) ** 2 / (count / order)), order - 1
    tables = [uniform]
    # The neighbour's map, halves of the batch, the step, and the signs of the noise.
    for other in (drawn[::2] % 2, np.arange(count) % 4, steps // 25, (noise[:, 0, 0, 0] > 0) * 1):
        mine = drawn[1::2] if len(other) < count else drawn
        table = np.zeros((other.max() + 1, order))
        np.add.at(table, (other, mine), 1)
        tables.append(chi_squared(table))
    for value, freedom in tables:
        # Wilson and Hilferty: the quantile at 3.7 standard deviations.
        spread = 2 / (9 * freedom)
        assert value < freedom * (1 - spread + 3.72 * np.sqrt(spread)) ** 3
    assert np.abs(np.corrcoef(drawn, noise.reshape(count, -1).T)[0, 1:]).max() < 4.5 / count**0.5


def test_without_it_nothing_changes():
    """The steps and the noise of an example are the same with it and without, to the last bit."""
    plain, flipped = recorded(None), recorded("flip")
    np.testing.assert_allclose(plain[1], np.broadcast_to(plain[0], plain[1].shape), atol=1e-7)
    assert np.any(plain[1] != flipped[1])
    for one, other in zip(plain[2:], flipped[2:], strict=True):
        np.testing.assert_array_equal(one, other)
    faithful = recorded("flip", faithful=True)
    np.testing.assert_array_equal(faithful[1], flipped[1])
    assert faithful[2].min() == 1


def test_the_gradient_is_that_of_the_moved_examples(state):
    """Of one update, by hand: x_0 moved by the map that the example's key draws."""
    spy = optax.GradientTransformation(lambda params: params, lambda grads, *_: (grads, grads))
    step = jax.jit(make_train_step(MODEL, SCHEDULE, spy, MEAN, with_symmetry("dihedral")))
    spied, metrics = step(
        state.replace(opt_state=state.flat_params), jnp.asarray(IMAGES), jnp.arange(16)
    )
    update = jax.random.fold_in(state.key, 0)
    moved, drawn = [], []
    for i, image in enumerate(IMAGES):
        key = jax.random.fold_in(jax.random.fold_in(update, i), 2**31 - 1)
        index = int(jax.random.randint(key, (), 0, 8))
        turned = np.rot90(image[:, :: -1 if index >= 4 else 1], index % 4)
        moved.append(turned)
        drawn.append(index)
    assert len(set(drawn)) > 3
    plain = jax.jit(make_train_step(MODEL, SCHEDULE, spy, MEAN, CONFIG))
    other, others = plain(
        state.replace(opt_state=state.flat_params), jnp.asarray(np.stack(moved)), jnp.arange(16)
    )
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-6)
    scale = float(jnp.abs(other.opt_state).max())
    np.testing.assert_allclose(spied.opt_state, other.opt_state, atol=1e-5 * scale)


def test_its_mean_is_the_gradient_on_the_stored_orbit():
    """Of many draws, against the mean over all maps of the gradient with the same steps and noise.

    One image without a symmetry, 16 batches of 256 examples.
    """
    spy = optax.GradientTransformation(lambda params: params, lambda grads, *_: (grads, grads))
    model, shape = TwoConvolutions(1), (4, 4, 1)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, *shape)), jnp.zeros(1, int))
    image = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    orbit = [np.rot90(image[:, ::f], k) for k in range(4) for f in (1, -1)]
    assert len(np.unique(orbit, axis=0)) == 8
    start = state_of(params["params"], spy, jax.random.key(4))
    with_maps, plain = (
        jax.jit(make_train_step(model, SCHEDULE, spy, jnp.zeros(1), config))
        for config in (with_symmetry("dihedral"), CONFIG)
    )

    def gradient(step, image, batch):
        examples = jnp.broadcast_to(jnp.asarray(image), (256, *shape))
        after, _ = step(start, examples, jnp.arange(256) + 256 * batch)
        return np.asarray(after.opt_state, np.float64)

    found = np.array([gradient(with_maps, image, b) for b in range(16)])
    each = np.array([[gradient(plain, g, b) for g in orbit] for b in range(16)])

    def student(difference):
        return difference.mean(0) / (difference.std(0, ddof=1) / 4)

    t = student(found - each.mean(1))
    # With 15 degrees of freedom its square has the mean 15/13; 77 parameters, correlated.
    assert np.mean(t**2) < 3
    assert np.mean(student(each[:, 0] - each.mean(1)) ** 2) > 30  # of the image unmoved


def test_devices_and_accumulation_change_nothing(state):
    """Eight devices that take their two examples one by one, against one device."""
    whole, parts = (with_symmetry("translations", accumulation=n) for n in (1, 2))
    optimizer = make_optimizer(whole)
    plain = jax.jit(make_train_step(MODEL, SCHEDULE, optimizer, MEAN, whole))
    parallel = make_parallel_train_step(MODEL, SCHEDULE, optimizer, MEAN, parts)
    one, metrics = plain(state, jnp.asarray(IMAGES), jnp.arange(16))
    batch = jax.device_put(IMAGES.reshape(8, 2, *SHAPE), sharded())
    other, others = parallel(replicate(jax.tree.map(jnp.copy, state)), batch)
    assert float(others["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for a, b in zip(*(jax.tree.leaves(each.opt_state) for each in (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


class Dense:
    """One matrix between the pixels: no symmetry of its own."""

    def init(self, rngs, x, step):
        d = np.prod(x.shape[1:])
        return {"params": {"matrix": 0.1 * jax.random.normal(rngs, (d, d))}}

    def apply(self, variables, x, step, dropout_keys=None):
        flat = x.reshape(len(x), -1) @ variables["params"]["matrix"]
        return flat.reshape(x.shape)

    def check(self, height, width, channels):
        pass


def run(folder, steps, *more, shape=(16, 5, 8, 2)):
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.save(folder / "images.npy", pixels)
    words = ["--data", folder / "images.npy", "--batch-size", 8, "--steps", steps, "--log-every", 1]
    words += ["--num-samples", 2, "--diffusion-steps", 25, "--learning-rate", 1e-2]
    return parse([*map(str, words), "--warmup-steps", "1", "--run-dir", str(folder / "run"), *more])


def losses(folder):
    return [row["loss"] for row in read_metrics(folder / "run/metrics.jsonl") if "loss" in row]


def test_a_run_is_resumed_exactly_and_with_no_other_symmetry(tmp_path):
    flip = ("--symmetry", "flip")
    straight, broken, plain = (tmp_path / name for name in ("straight", "broken", "plain"))
    for folder, parts, words in ((straight, (4,), flip), (broken, (2, 4), flip), (plain, (2,), ())):
        for steps in parts:
            dj.train(run(folder, steps, *words), Dense())
    assert losses(straight) == losses(broken)
    assert losses(plain) != losses(straight)[:2]
    summary = json.loads((broken / "run/summary.json").read_text())
    assert summary["symmetry"] == "flip"
    assert json.loads((plain / "run/summary.json").read_text())["symmetry"] is None
    kept = moments.load(broken / "run")
    assert (kept.symmetry, moments.load(plain / "run").symmetry) == ("flip", "")
    np.testing.assert_allclose(kept.mean_image, kept.mean_image[:, ::-1], atol=1e-6)
    model = dj.load_model(broken / "run", network=Dense())
    np.testing.assert_allclose(
        model.start(model.sampler.schedule).mean,
        model.start(model.sampler.schedule).mean[:, ::-1],
        atol=1e-6,
    )
    for folder, words, message in (
        (broken, (), "symmetry: flip -> None"),
        (broken, ("--symmetry", "translations"), "symmetry: flip -> translations"),
        (plain, flip, "symmetry: None -> flip"),
    ):
        with pytest.raises(UserError, match=message):
            dj.train(run(folder, 4, *words), Dense())
    with pytest.raises(UserError, match=r"--resume .* as the run began \(--symmetry: flip ->"):
        parse(["--resume", str(broken / "run"), "--symmetry", "dihedral"])


def test_a_configuration_of_an_earlier_version_has_none(tmp_path):
    values = saved_config.to_dict(Config())
    assert values["training"].pop("symmetry") is None
    earlier = saved_config.from_dict(values)
    assert earlier == Config()
    flip = dataclasses.replace(Config(), training=with_symmetry("flip"))
    assert saved_config.from_dict(saved_config.to_dict(flip)) == flip
    for wrong in (3, ["flip"]):
        values["training"]["symmetry"] = wrong
        with pytest.raises(UserError, match=r"symmetry = .* is of another type"):
            saved_config.from_dict(values)


def test_what_cannot_be_is_refused_at_the_start(tmp_path):
    wide = np.zeros((4, 5, 8, 2), np.uint8)
    for name, message in (
        ("mirror", "there is no symmetry 'mirror'; choose from flip, dihedral, translations"),
        ("dihedral", "changes the shape of images of 5 x 8 pixels: quarter turns need square"),
    ):
        with pytest.raises(UserError, match=message):
            dj.train(run(tmp_path, 2, "--symmetry", name), Dense())
        assert not (tmp_path / "run/checkpoints").exists()
        with pytest.raises(UserError, match=message):
            dj.updates(Dense(), wide, SCHEDULE, 1, with_symmetry(name))


def test_moments_of_another_symmetry_are_left_alone(tmp_path):
    """As a start that failed before its first checkpoint leaves them in a folder."""
    images = ImageSet(IMAGES, None, ())
    moments.Moments.of(images, "digest", Group.flip()).save(tmp_path)
    assert moments.start_of(tmp_path, "digest", "flip") is not None
    for symmetry in (None, "translations"):
        assert moments.start_of(tmp_path, "digest", symmetry) is None
    assert moments.start_of(tmp_path, "other", "flip") is None
    found = moments.load(tmp_path)
    values = vars(found) | {"symmetry": ""}
    del values["symmetry"]  # as an earlier version wrote them
    np.savez(tmp_path / moments.NAME, **values)
    assert moments.load(tmp_path).symmetry == ""
    assert moments.start_of(tmp_path, "digest", None) is not None


def explicit(images, group):
    """m_G and C_G from the images' own moments and matrices, in float64."""
    n, d = len(images), images[0].size
    eye = np.eye(d).reshape(d, *images.shape[1:])
    with jax.enable_x64(True):
        maps = [moved.reshape(d, d).T for moved in images_of(group, eye)]
    flat = images.reshape(n, d).astype(np.float64) / 255
    mean, matrix = flat.mean(0), np.atleast_2d(np.cov(flat, rowvar=False))
    moved = np.array([g @ mean for g in maps])
    total = np.mean([g @ matrix @ g.T for g in maps], 0)
    return moved.mean(0), total + np.cov(moved, rowvar=False, bias=True)


@pytest.mark.parametrize(
    ("name", "channels"), [("flip", 1), ("dihedral", 3), ("translations", 1), ("translations", 3)]
)
def test_moments_are_those_of_all_moved_images(name, channels, monkeypatch):
    """Against the matrices; with many images, these are those of the stored orbit."""
    monkeypatch.setattr(covariance, "_BLOCK_BYTES", 4 * 60 * 7)  # in blocks, the last one short
    rng = np.random.default_rng(channels)
    shape = (5, 5, channels) if name == "dihedral" else (5, 4, channels)
    # Left and right, top and bottom and the channels differ in mean and variance.
    ramp = np.add.outer(np.arange(5) * 0.1, np.arange(shape[1]) * 0.3)[..., None]
    ramp = ramp + np.arange(channels) * 0.2
    pixels = rng.standard_normal((40, *shape)) * (20 + 20 * ramp) + 60 * ramp
    common = rng.standard_normal((40, 1, 1, 1)) * np.cos(np.arange(shape[1]) * np.pi / 2)[:, None]
    images = np.clip(pixels + 60 + 25 * common, 0, 255).astype(np.uint8)
    group = group_named(name, shape)
    found = moments.Moments.of(ImageSet(images, None, ()), "digest", group)
    mean, matrix = explicit(images, group)
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(found.mean_image.ravel(), mean, atol=1e-6)
    assert found.eigenvalue == pytest.approx(values[-1], rel=1e-5)
    assert found.trace == pytest.approx(values.sum(), rel=1e-5)
    mode = found.mode.ravel().astype(np.float64)
    assert np.linalg.norm(mode) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(matrix @ mode, values[-1] * mode, atol=3e-3 * values[-1])
    assert (found.symmetry, found.fingerprint) == (name, "digest")
    orbit = np.concatenate(images_of(group, images))
    stored = np.cov(orbit.reshape(len(orbit), -1) / 255, rowvar=False, bias=True)
    within = np.cov(images.reshape(40, -1) / 255, rowvar=False)
    # The two differ by the bias of n images in place of n - 1.
    np.testing.assert_allclose(matrix, stored, atol=1.01 * np.abs(within).max() / 40)


def test_constant_images_have_no_mode():
    images = ImageSet(np.full((3, 4, 4, 1), 7, np.uint8), None, ())
    for name in GROUPS:
        found = moments.Moments.of(images, "", group_named(name, (4, 4, 1)))
        assert (found.eigenvalue, found.trace) == (pytest.approx(0, abs=1e-9),) * 2
        assert np.isfinite(found.mode).all()


@pytest.mark.parametrize("name", GROUPS)
def test_nearest_over_the_moved_points(name, monkeypatch):
    """Against all distances: to a point the least of its images', the second of another point."""
    monkeypatch.setattr("diffusion_jax.regimes.neighbours._POINTS", 4)  # in parts
    rng = np.random.default_rng(1)
    shape = (4, 4, 2) if name == "dihedral" else (3, 4, 2)
    points, x = rng.random((11, *shape), np.float32), rng.random((30, *shape), np.float32)
    points[5] = points[2, :, ::-1]  # of the flip and the dihedral group a copy
    group = group_named(name, shape)
    x[:11] = group.of_each(jnp.arange(11) % group.order, jnp.asarray(points))  # copies
    found = nearest(x, points, group)
    orbit = images_of(group, points)
    apart = np.sqrt(((x[:, None, None] - orbit[None]) ** 2).sum((3, 4, 5))).min(1)
    order = np.sort(apart, axis=1)
    np.testing.assert_allclose(found.distance, order[:, 0], atol=1e-6)
    np.testing.assert_allclose(found.second, order[:, 1], atol=1e-6)
    clear = order[:, 1] - order[:, 0] > 1e-5
    np.testing.assert_array_equal(found.index[clear], apart.argmin(1)[clear])
    copies = [i for i in range(11) if name == "translations" or i not in (2, 5)]
    assert found.memorised[copies].all()
    plain = nearest(x, points)
    assert plain.memorised[copies].sum() < len(copies)
    with pytest.raises(UserError, match="maps images"):
        nearest(x.reshape(30, -1), points.reshape(11, -1), group)


def test_moved_training_images_count_as_memorised():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 256, (20, 5, 4, 1), dtype=np.uint8)
    samples = points[:10, :, ::-1].astype(np.float32)
    assert evaluation.memorisation(samples, points)["memorised_fraction"] == 0
    found = evaluation.memorisation(samples, points, Group.flip())
    assert found == {"memorised_fraction": 1.0, "neighbour_ratio": 0.0}


def test_a_run_evaluates_with_its_symmetry(tmp_path, monkeypatch):
    seen = []
    true = evaluation.nearest

    def watched(x, points, group=None):
        seen.append(group)
        return true(x, points, group)

    monkeypatch.setattr(evaluation, "nearest", watched)
    words = ("--evaluate-every", "2", "--evaluate-calls", "5", "--evaluate-samples", "4")
    dj.train(run(tmp_path, 2, "--symmetry", "translations", *words), Dense())
    assert seen == [Group.translations(5, 8)]
