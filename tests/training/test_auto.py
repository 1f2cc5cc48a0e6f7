"""What a run chooses for its devices: the compute type, and the updates of a dispatch."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_convolutions

from diffusion_jax.config import Config, DataConfig, ModelConfig, OutputConfig, TrainingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS
from diffusion_jax.runtime import backend
from diffusion_jax.training import loop, saved_config
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.outputs import Outputs
from diffusion_jax.training.run import import_parameters, load_model

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


@pytest.fixture(autouse=True, scope="module")
def small():
    """What is chosen for it is what is chosen for the UNet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8))
    return path


def config_of(images, folder, steps, dtype="auto"):
    return Config(
        OutputConfig(run_dir=folder, num_samples=8, log_every=1),
        DataConfig(str(images), (), images_per_class=None, image_size=None),
        ModelConfig(8, (1,), (), 1, dtype=dtype),
        PRESETS["sample"].schedule,
        TrainingConfig(batch_size=8),
        steps,
    )


def chosen(folder):
    return json.loads((folder / "config.json").read_text())["model"]["dtype"]


@pytest.fixture(scope="module")
def in_bfloat16(images, tmp_path_factory):
    """A run begun where bfloat16 is best."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "has_bfloat16", lambda: True)
        loop.train(config_of(images, folder, 2))
    return folder


def test_a_run_keeps_the_type_that_it_began_with(images, in_bfloat16):
    """Here, where auto alone would be float32; another that is asked for is refused."""
    assert chosen(in_bfloat16) == "bfloat16"
    loop.train(config_of(images, in_bfloat16, 4))
    assert chosen(in_bfloat16) == "bfloat16"
    loop.train(config_of(images, in_bfloat16, 5, "bfloat16"))
    assert [record["step"] for record in read_metrics(in_bfloat16 / "metrics.jsonl")] == [
        *range(1, 6)
    ]
    with pytest.raises(UserError, match="dtype: bfloat16 -> float32"):
        loop.train(config_of(images, in_bfloat16, 6, "float32"))


def test_auto_is_float32_on_a_cpu_and_another_start_may_choose_again(images, tmp_path, monkeypatch):
    """A start that failed before its first checkpoint binds nobody."""
    folder = tmp_path / "run"
    monkeypatch.setattr(backend, "has_bfloat16", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(ModelConfig, "build", _no_network)
        with pytest.raises(RuntimeError, match="no network"):
            loop.train(config_of(images, folder, 2))
    assert chosen(folder) == "bfloat16"
    monkeypatch.setattr(backend, "has_bfloat16", lambda: False)
    loop.train(config_of(images, folder, 1))
    assert chosen(folder) == "float32"


def _no_network(config, channels):
    raise RuntimeError("no network")


def test_what_measures_computes_in_float32(images, in_bfloat16, monkeypatch):
    """The opened run, its grids and its evaluations; bfloat16 is asked for by name."""
    assert load_model(in_bfloat16).denoiser.model.dtype == jnp.float32
    narrow = load_model(in_bfloat16, "bfloat16").denoiser
    assert narrow.model.dtype == jnp.bfloat16
    x, step = jnp.ones((2, 8, 8, 1), jnp.float32), jnp.array([3, 700])
    exact = load_model(in_bfloat16).denoiser(x, step)
    difference = np.abs(narrow(x, step) - exact).max() / np.abs(exact).max()
    assert 1e-4 < difference < 3e-2
    models = []

    def remember(self, step, state, recorder):
        models.append(self.model.dtype)

    monkeypatch.setattr(Outputs, "make_up", remember)
    loop.train(config_of(images, in_bfloat16, 5))
    assert models == [jnp.float32]


def test_an_imported_run_chooses_when_it_is_trained(images, tmp_path, monkeypatch):
    """Not where it was imported, which may be a machine without a GPU."""
    folder = tmp_path / "run"
    config = config_of(images, folder, 1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, classes=("all",)))
    params = jax.jit(
        lambda: loop.init_state(*_network(config), jax.random.key(0), (8, 8, 1))
    )().params
    mean = np.load(images, allow_pickle=False).mean(keepdims=True).reshape(1) / 255
    known = {"shape": (8, 8, 1), "mean": mean.tolist(), "classes": ["all"], "num_images": 24}
    import_parameters(config, params, known | {"fingerprint": None})
    assert chosen(folder) == "auto"
    assert load_model(folder).step == 0
    monkeypatch.setattr(backend, "has_bfloat16", lambda: True)
    decided = loop.decide(config)
    assert decided.model.dtype == "bfloat16"
    loop.claim(decided)
    saved_config.write(decided)
    assert chosen(folder) == "bfloat16"
    assert load_model(folder).step == 0


def _network(config):
    return config.model.build(1), loop.make_optimizer(config.training)


def dispatches(**settings):
    training = TrainingConfig(steps_per_dispatch=settings.pop("together", "auto"))
    steps, start = settings.pop("steps"), settings.pop("start", 0)
    config = Config(OutputConfig(Path("run"), **settings), training=training, steps=steps)
    return loop._dispatches(config, start)


@pytest.mark.parametrize("evaluate_every", [None, 5])
def test_dispatches_stop_where_something_is_written(evaluate_every):
    made = list(
        dispatches(
            steps=22,
            together=4,
            checkpoint_every=10,
            sample_every=100,
            evaluate_every=evaluate_every,
        )
    )
    assert set(made) == {1, 4}
    ends = np.cumsum(made)
    assert {10, 20, 22} <= set(ends.tolist())
    assert evaluate_every is None or {5, 10, 15, 20} <= set(ends.tolist())


@pytest.mark.parametrize(
    ("platform", "steps", "every", "together"),
    [
        ("cpu", 20, 10, 1),
        ("gpu", 350_000, 5_000, 10),
        ("gpu", 1_200, 400, 10),
        ("gpu", 1_008, 24, 8),
        ("tpu", 21, 7, 7),
        ("gpu", 22, 11, 1),
        ("gpu", 350_000, 13, 1),
    ],
)
def test_auto_stops_wherever_it_must_without_a_second_program(
    monkeypatch, platform, steps, every, together
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    made = dispatches(steps=steps, checkpoint_every=every, sample_every=10 * every)
    assert set(itertools.islice(made, 40)) == {together}


def test_a_run_off_the_multiples_comes_back_to_them(monkeypatch):
    """One that was stopped, or begun with another number of updates a dispatch."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made = list(dispatches(steps=60, start=17, checkpoint_every=30, sample_every=60))
    assert 17 + np.cumsum(made)[-1] == 60
    assert {30, 60} <= set((17 + np.cumsum(made)).tolist())
    assert made == [10, 1, 1, 1, 10, 10, 10]
