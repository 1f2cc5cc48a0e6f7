"""Which evaluations a run makes and keeps, other optimizers, and one noise level."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_convolutions
from tiny_runs import save_digits

from diffusion_jax.config import ModelConfig, OutputConfig, TrainingConfig, log_spaced
from diffusion_jax.errors import UserError
from diffusion_jax.process import diffuse
from diffusion_jax.regimes.loss_information import Losses
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training import evaluations, loop
from diffusion_jax.training.evaluations import Evaluation, Exact
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.step import init_state, make_optimizer, make_train_step
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def test_log_spaced_updates():
    """About six for every factor of ten, each once, and multiples of ten from a hundred on."""
    steps = list(itertools.islice(log_spaced(), 28))
    assert steps[:9] == [33, 47, 68, 100, 150, 220, 330, 470, 680]
    ratios = np.divide(steps[1:], steps[:-1])
    assert np.all((ratios > 1.4) & (ratios < 1.52))
    assert all(step % 10 == 0 for step in steps if step >= 100)
    output = OutputConfig(evaluate_at="log")
    assert [output.next_evaluation(step) for step in (0, 32, 33, 470)] == [33, 33, 47, 680]
    every = OutputConfig(evaluate_every=15)
    assert [every.next_evaluation(step) for step in (0, 14, 15)] == [15, 15, 30]
    assert OutputConfig().next_evaluation(3) is None


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("data"))


def config_of(folder, data, *options):
    words = ["--data", data, "--run-dir", folder, "--images-per-class", 8, "--batch-size", 8]
    words += ["--diffusion-steps", 50, "--evaluate-samples", 8, "--evaluate-calls", 4]
    return parse([*map(str, [*words, "--sample-every", None, "--log-every", 1, *options])])


def test_a_run_evaluates_at_log_spaced_updates_and_keeps_them(data, tmp_path):
    options = ("--steps", 60, "--evaluate-at", "log", "--held-out-per-class", 8)
    loop.train(config_of(tmp_path / "run", data, *options))
    assert evaluations.kept(tmp_path / "run") == [33, 47, 60]  # and the last
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if "memorised_fraction" in r] == [33, 47, 60]
    drawn = Evaluation.load(evaluations.path_of(tmp_path / "run", 47))
    assert drawn.samples.shape == (8, 8, 8, 1)
    known = Exact.load(evaluations.path_of(tmp_path / "run", "exact"))
    exact = known.losses
    assert 0 < known.time < 1
    for losses in (drawn.training, drawn.held_out, exact):
        assert losses.losses.shape == losses.steps.shape == (64, 20)
        np.testing.assert_array_equal(losses.steps, exact.steps)
        np.testing.assert_array_equal(np.unique(losses.image), np.arange(16))
    assert not list((tmp_path / "run" / "samples").glob("step_*"))
    # One that is gone is made again, where its parameters are still there.
    path = evaluations.path_of(tmp_path / "run", 60)
    content = path.read_bytes()
    path.unlink()
    loop.train(config_of(tmp_path / "run", data, *options))
    assert path.read_bytes() == content
    # They change nothing in the training, on whatever steps they are.
    loop.train(config_of(tmp_path / "plain", data, "--steps", 60))
    plain = [r["loss"] for r in read_metrics(tmp_path / "plain" / "metrics.jsonl")]
    assert plain == [r["loss"] for r in records if "loss" in r]


def test_a_spacing_of_ones_own_replaces_the_presets(data):
    words = ["--preset", "celeba32_gray", "--evaluate-every", "50"]
    output = parse(words).output
    assert (output.evaluate_at, output.evaluate_every) == (None, 50)
    both = parse([*words, "--evaluate-at", "log"])
    with pytest.raises(UserError, match="exclude each other"):
        both.check()
    with pytest.raises(UserError, match="give held_out_per_class too"):
        parse(["--held-out-after", "50"]).check()


def test_a_run_without_held_out_images_has_no_gap(data, tmp_path):
    loop.train(config_of(tmp_path / "run", data, "--steps", 5, "--evaluate-every", 5))
    record = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert "training_nats" in record
    assert "nats_per_image" not in record
    with pytest.raises(UserError, match="says nothing of memory"):
        Evaluation.load(evaluations.path_of(tmp_path / "run", 5)).both  # noqa: B018


def test_a_damaged_evaluation_is_named(tmp_path):
    losses = Losses(np.arange(2), np.zeros((2, 3), np.int32), np.ones((2, 3), np.float32))
    path = evaluations.path_of(tmp_path, 7)
    Evaluation(np.zeros((1, 2, 2, 1)), losses, None).save(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"00000007\.npz cannot be read"):
            Evaluation.load(path)
    with path.open("wb") as file:
        np.savez(file, samples=np.zeros((1, 2, 2, 1)))
    with pytest.raises(UserError, match="it has no training_image, training_losses"):
        Evaluation.load(path)
    with pytest.raises(UserError, match="it has no time"):
        Exact.load(path)
    (tmp_path / "evaluations" / "notes.txt").touch()
    assert evaluations.kept(tmp_path) == [7]


class Scale:
    """Predicts a x_t, with one parameter."""

    def init(self, key, x, step):
        return {"params": {"a": jnp.zeros(())}}

    def apply(self, variables, x, step, dropout_keys=None):
        return variables["params"]["a"] * x


def test_descent_with_momentum_by_hand():
    """v <- 0.95 v + g, a <- a - rate v, with the gradient of the mean squared error."""
    config = TrainingConfig(
        batch_size=4, learning_rate=0.02, warmup_steps=3, optimizer="sgd", train_at_step=17
    )
    schedule, optimizer = linear_schedule(50), make_optimizer(config)
    images = np.random.default_rng(0).uniform(size=(4, 3, 3, 1)).astype(np.float32)
    state = init_state(Scale(), optimizer, jax.random.key(0), (3, 3, 1))
    step = jax.jit(make_train_step(Scale(), schedule, optimizer, jnp.zeros(1), config))
    a, velocity = 0.0, 0.0
    for i in range(6):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(state.key, state.step), jnp.arange(4)
        )
        noise_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)[:, 1]
        noise = jax.vmap(lambda key: jax.random.normal(key, (3, 3, 1)))(noise_keys)
        x = np.asarray(diffuse(schedule, jnp.asarray(images), jnp.full(4, 17), noise), np.float64)
        error = a * x - np.asarray(noise, np.float64)
        gradient = 2 * np.mean(error * x)
        state, metrics = step(state, jnp.asarray(images), jnp.arange(4))
        assert float(metrics["loss"]) == pytest.approx(np.mean(error**2), rel=1e-5)
        gradient *= min(1, 1 / abs(gradient))
        velocity = 0.95 * velocity + gradient
        a -= 0.02 * min(1, (i + 1) / 3) * velocity
        assert float(state.params["a"]) == pytest.approx(a, rel=1e-4)


def test_one_noise_level_is_resumed_and_kept_apart(data, tmp_path):
    """The momentum is saved; another optimizer or noise level is another run."""
    options = ("--optimizer", "sgd", "--train-at-step", 9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.train(config_of(whole, data, "--steps", 12, *options))
    for steps in (5, 12):
        loop.train(config_of(parts, data, "--steps", steps, *options))
    values = [[r["loss"] for r in read_metrics(f / "metrics.jsonl")] for f in (whole, parts)]
    assert values[0] == values[1]
    rate = [r["learning_rate"] for r in read_metrics(whole / "metrics.jsonl")][-1]
    assert rate == pytest.approx(1e-2 * 12 / 1000)  # descent's own rate, where none is given
    loop.train(config_of(whole, data, "--steps", 13, "--evaluate-every", 13, *options))
    (record,) = (r for r in read_metrics(whole / "metrics.jsonl") if "memorised_fraction" in r)
    (band,) = (name for name in record if name.startswith("training_loss/"))
    assert float(band.split("_")[2]) == pytest.approx(float(linear_schedule(50).time[9]), rel=1e-3)
    assert (whole / "memorisation.png").exists()
    for other in (("--optimizer", "sgd"), ("--train-at-step", 9), ()):
        with pytest.raises(UserError, match="another configuration"):
            loop.train(config_of(whole, data, "--steps", 13, *other))
    with pytest.raises(UserError, match="train_at_step = 50 must lie between 0 and 49"):
        loop.train(config_of(tmp_path / "none", data, "--train-at-step", 50))
    assert optax.tree.size(make_optimizer(TrainingConfig(optimizer="sgd")).init(jnp.zeros(7))) == 8
