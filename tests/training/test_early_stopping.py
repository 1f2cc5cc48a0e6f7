"""Early stopping of a model that learns eight digits by heart in seconds."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import digits

import diffusion_jax as dj
from diffusion_jax.config import ModelConfig, StoppingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.loss_information import Losses, Strata
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training import evaluations, loop, memory, saved_config
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.evaluations import Evaluation, Exact
from diffusion_jax.training.memory import judge
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.run import load_model, steps_of
from experiments.cloning import Options as CloningOptions
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


SCHEDULE = linear_schedule(100)


class Bandwidth(nn.Module):
    """The exact score of a kernel density estimate of the data, whose bandwidth is learned.

    Wide at first, it fits held-out images best at some width, and training images at none.
    """

    channels: int
    points: tuple
    dtype: type = jnp.float32

    def check(self, *shape):
        pass

    def cast(self, params):
        return params

    @nn.compact
    def __call__(self, x_t, step, dropout_keys=None):
        width = self.param("log_width", nn.initializers.constant(-0.5), ())
        points, x = jnp.asarray(self.points), x_t.reshape(len(x_t), -1)
        signal = jnp.sqrt(SCHEDULE.alpha_bar[step])[:, None]
        variance, own = SCHEDULE.noise_variance[step][:, None], jnp.exp(2 * width)
        total = variance + signal**2 * own
        squared = jnp.sum((x[:, None] - signal[:, :, None] * points[None]) ** 2, axis=2)
        mean = jnp.matmul(jax.nn.softmax(-squared / (2 * total), axis=1), points)
        noise = jnp.sqrt(variance) * (x - signal * mean) / total
        return noise.reshape(x_t.shape)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images, labels = digits(0, 60)
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(autouse=True, scope="module")
def bandwidth(data):
    """In place of the UNet, with the four images of each class, or the forty, as its points."""

    def build(config, channels):
        images = dj.load_images(data, images_per_class=40 if config.base_channels == 40 else 4)
        return Bandwidth(channels, tuple(map(tuple, images.centred().reshape(-1, 64).tolist())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelConfig, "build", build)
        yield


SETTING = [
    *("--diffusion-steps", 100, "--batch-size", 16, "--learning-rate", 1e-2, "--ema-decay", 0.9),
    *("--warmup-steps", 10, "--steps", 700, "--evaluate-every", 100, "--evaluate-samples", 16),
    *("--evaluate-calls", 10, "--sample-every", None, "--log-every", 50, "--keep-checkpoints", 1),
    *("--checkpoint-every", 250, "--held-out-per-class", 20),
]


def config_of(folder, data, *options, per_class=4):
    words = ["--data", data, "--run-dir", folder, "--images-per-class", per_class]
    words += ["--base-channels", per_class]
    return parse([*map(str, [*words, *SETTING, *options])])


STOP = ("--stop-at", "memorisation")


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    loop.train(config_of(folder, data, *STOP))
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(config_of(folder, data))
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text()).get("memorisation")


def logged(folder):
    kept = read_metrics(folder / "metrics.jsonl")
    own = {"time", "images_per_second", "host_memory_gib"}
    return [{k: v for k, v in record.items() if k not in own} for record in kept]


@pytest.mark.slow
def test_a_run_that_memorises_ends(stopped, whole):
    """Before its last update, says why, and has computed what it would have without."""
    found = summary(stopped)
    last, best = found["stopped"]["step"], found["best_step"]
    assert best < last < 700
    assert "since step" in found["stopped"]["why"]
    kept = [record for record in logged(whole) if record["step"] <= last]
    assert logged(stopped) == kept
    for step in evaluations.kept(stopped):
        assert (
            evaluations.path_of(stopped, step).read_bytes()
            == evaluations.path_of(whole, step).read_bytes()
        )
    assert summary(whole) is None
    # In a run that went on, most is known by heart.
    end = logged(whole)[-1]
    assert end[memory.SHARE] > 0.5
    assert end[memory.GAP] > 3


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_sampled_from(stopped):
    found = summary(stopped)
    best, last = found["best_step"], found["stopped"]["step"]
    assert steps_of(stopped) == [best, last]  # though one alone is kept
    assert load_model(stopped, step="best").step == best
    assert load_model(stopped).step == last
    values = {step: load(stopped, step) for step in evaluations.kept(stopped)}
    assert min(values, key=values.__getitem__) == best
    assert found["held_out_nats"] == pytest.approx(values[best])
    assert CloningOptions(stopped, checkpoint="best").name() == "cloning_best"


def load(folder, step):
    record = next(r for r in logged(folder) if r["step"] == step and memory.HELD_OUT in r)
    return record[memory.HELD_OUT]


@pytest.mark.slow
def test_it_says_so_again_and_goes_on_with_another_threshold(stopped, data, tmp_path, capsys):
    folder = tmp_path / "again"
    shutil.copytree(stopped, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    loop.train(config_of(folder, data, *STOP))
    said = capsys.readouterr().out
    last = summary(folder)["stopped"]["step"]
    assert f"Stopped by --stop-at after step {last}" in said
    assert "Another --stop-nats" in said
    assert (folder / "metrics.jsonl").read_bytes() == before
    loop.train(config_of(folder, data, *STOP, "--stop-nats", 1e6, "--steps", last + 50))
    said = capsys.readouterr().out
    # Only a held-out loss that rises for certain may end it now.
    assert f"Resuming after step {last}" in said or "the held-out U has risen" in said
    assert load_model(folder, step="best").step == summary(folder)["best_step"]


@pytest.mark.slow
def test_a_kill_changes_nothing(stopped, data, tmp_path, monkeypatch):
    """Whatever was being written: what was evaluated after the last checkpoint is done again."""
    folder, last = tmp_path / "killed", summary(stopped)["stopped"]["step"]

    class Killed(BaseException):
        pass

    make = loop.Outputs.make

    def die(self, step, state, recorder):
        make(self, step, state, recorder)
        if step == last - 100:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Outputs, "make", die)
        with pytest.raises(Killed):
            loop.train(config_of(folder, data, *STOP))
    loop.train(config_of(folder, data, *STOP))
    assert summary(folder) == summary(stopped)
    assert logged(folder) == logged(stopped)
    assert steps_of(folder) == steps_of(stopped)


@pytest.mark.slow
def test_asked_for_late_it_names_a_checkpoint_that_is_there(data, tmp_path, capsys):
    """The lowest held-out U of all may be gone; and what goes on is no longer stopped."""
    folder = tmp_path / "late"
    loop.train(config_of(folder, data, "--steps", 300))
    assert steps_of(folder) == [300]
    loop.train(config_of(folder, data, *STOP))
    assert "Stopped by --stop-at" in capsys.readouterr().out
    found = summary(folder)
    assert found["best_step"] == 300
    assert load_model(folder, step="best").step == 300
    loop.train(config_of(folder, data, "--steps", found["stopped"]["step"] + 50))
    assert summary(folder)["stopped"] is None
    assert load_model(folder, step="best").step == 300


@pytest.mark.slow
def test_many_images_and_few_updates_do_not_end_it(data, tmp_path, capsys):
    folder = tmp_path / "run"
    loop.train(config_of(folder, data, *STOP, "--steps", 200, per_class=40))
    assert summary(folder)["stopped"] is None
    assert "the held-out U is the lowest so far" in capsys.readouterr().out


@pytest.mark.slow
def test_best_of_a_run_without_early_stopping(whole):
    with pytest.raises(UserError, match="names no best checkpoint"):
        load_model(whole, step="best")


def test_a_checkpoint_that_was_named_outlives_the_others(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in range(1, 7):
            if step in (2, 4):
                checkpoints.preserve(step)
            checkpoints.save(step, {"a": np.full(3, step)}, {})
            checkpoints.wait()
            seen = checkpoints.steps()
            assert seen == {1: [1], 2: [1, 2], 3: [2, 3], 4: [3, 4], 5: [4, 5], 6: [4, 5, 6]}[step]


STRATA = Strata(SCHEDULE, 4)


def evaluation_of(training, held_out):
    """Of eight images each, with losses that are alike in all strata."""

    def losses(values):
        rows = np.asarray(values, np.float32)[:, None] * np.ones((1, 4), np.float32)
        return Losses(np.arange(8), np.tile(np.arange(0, 100, 25), (8, 1)), rows)

    return Evaluation(np.zeros((1, 1, 1, 1)), losses(training), losses(held_out))


def verdict(*pairs, exact=0.0, stopping=None):
    spread = np.linspace(-1, 1, 8)  # between images, which common images cancel
    drawn = {
        10 * (i + 1): evaluation_of(own + spread, other - spread)
        for i, (own, other) in enumerate(pairs)
    }
    known = Exact(evaluation_of(np.full(8, exact) + spread, np.zeros(8)).training, 0.2)
    return judge(drawn, STRATA, known, stopping or StoppingConfig())


def test_what_ends_a_run():
    nats = STRATA.above(0.2)[[0, 25, 50, 75]].sum()
    assert verdict((5, 5), (4, 4)).why is None  # it generalises
    assert verdict((5, 5), (4, 5)).gained.value == pytest.approx(nats, rel=1e-6)
    assert "G has grown" in verdict((5, 5), (4, 5)).why
    assert verdict((5, 5), (4, 5)).best == 10
    # A gap that was there from the start is no memory of the training.
    assert verdict((5, 9), (4, 8)).why is None
    # Nor is one that is far from the exact score's.
    assert verdict((5, 5), (4, 5), exact=-50).why is None
    assert verdict((5, 5), (4, 5), stopping=StoppingConfig(stop_nats=2 * nats)).why is None
    risen = verdict((5, 5), (5, 5.5), exact=-50)
    assert "held-out U has risen" in risen.why
    assert risen.rise.value == pytest.approx(nats / 2, rel=1e-6)
    assert risen.held_out == pytest.approx(5 * nats, rel=1e-6)


def test_chance_does_not_end_a_run():
    """Of 200 runs whose law stays as it is, 15 looks each, four at most end by chance.

    Each look adds to the losses of 64 images of each set steps with the scatter, 1.5 nats, and the
    tails that networks have; a held-out U that rises by 0.4 nats per look is always found.
    """
    strata, rng = Strata(SCHEDULE, 1), np.random.default_rng(0)
    above = float(strata.above(0.05)[50])

    def losses(values):
        rows = (values / above).astype(np.float32)[:, None]
        return Losses(np.arange(64), np.full((64, 1), 50), rows)

    def ends(rise):
        nats = np.full((2, 64), 20.0)
        drawn = {}
        for look in range(1, 16):
            nats = nats + 1.5 * rng.standard_t(5, (2, 64)) / np.sqrt(5 / 3)
            nats[1] += rise
            drawn[look] = Evaluation(np.zeros((1, 1, 1, 1)), losses(nats[0]), losses(nats[1]))
            if judge(drawn, strata, None, StoppingConfig()).why is not None:
                return True
        return False

    assert sum(ends(0.0) for _ in range(200)) <= 4
    assert all(ends(0.4) for _ in range(20))


def test_bad_values_and_what_does_not_go_together(data, tmp_path):
    for options, part in (
        (("--stop-nats", -1), "stop_nats = -1.0 must not be negative"),
        (("--stop-share", 2), "stop_share = 2.0 must lie between 0 and 1"),
        (("--held-out-per-class", 0), "give held_out_per_class too"),
        (("--train-at-step", 3), "train_at_step = 3 trains one: leave one of them out"),
        (("--evaluate-at", "log"), "exclude each other"),
    ):
        with pytest.raises(UserError, match=part):
            loop.train(config_of(tmp_path / "run", data, *STOP, *options))


def test_stopping_may_change_when_a_run_is_resumed(data, tmp_path):
    config = config_of(tmp_path / "run", data)
    other = dataclasses.replace(config, stopping=StoppingConfig("memorisation", 3.0, 0.2))
    assert saved_config.differences(config, other) == []
    assert saved_config.from_dict(saved_config.to_dict(other)) == other
