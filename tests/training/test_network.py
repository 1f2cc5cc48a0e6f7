"""A network of one's own in place of the UNet: trained, resumed, opened, and known by its name."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from two_convolutions import TwoConvolutions

import diffusion_jax as dj
from diffusion_jax.errors import UserError
from diffusion_jax.training import loop
from diffusion_jax.training.metrics import read_metrics
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


class Plain:
    """No Flax module: one matrix between the pixels, and refuses what is not square."""

    def init(self, rngs, x, step):
        d = np.prod(x.shape[1:])
        return {"params": {"matrix": 0.1 * jax.random.normal(rngs, (d, d))}}

    def apply(self, variables, x, step, dropout_keys=None):
        flat = x.reshape(len(x), -1) @ variables["params"]["matrix"]
        return flat.reshape(x.shape)

    def check(self, height, width, channels):
        if height != width:
            raise UserError(f"{height} x {width} is not square")


def config(folder, steps, *more):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), np.uint8)
    np.save(folder / "images.npy", pixels)
    words = ["--data", folder / "images.npy", "--batch-size", 8, "--steps", steps, "--log-every", 1]
    words += ["--num-samples", 2, "--diffusion-steps", 25, "--learning-rate", 1e-2]
    return parse([*map(str, words), "--warmup-steps", "1", "--run-dir", str(folder / "run"), *more])


def test_it_is_trained_resumed_and_opened(tmp_path):
    network = Plain()
    straight, broken = (tmp_path / name for name in ("straight", "broken"))
    for folder, parts in ((straight, (4,)), (broken, (2, 4))):
        folder.mkdir()
        for steps in parts:
            dj.train(config(folder, steps), network)
    losses = [
        [row["loss"] for row in read_metrics(each / "run/metrics.jsonl") if "loss" in row]
        for each in (straight, broken)
    ]
    assert losses[0] == losses[1]
    model = dj.load_model(broken / "run", network=network)
    assert model.denoiser.model is network
    images = model.mean + model.backward("ddim", 10).sample(jax.random.key(0), 4, model.shape)
    assert images.shape == (4, 8, 8, 1)
    assert images.min() > -1e-6


def test_it_is_known_by_its_class(tmp_path):
    dj.train(config(tmp_path, 2), Plain())
    for use, message in (
        (lambda: dj.load_model(tmp_path / "run"), "Plain with 4,096 parameters, not the UNet of"),
        (lambda: loop.train(config(tmp_path, 4)), "trains Plain .*, not the UNet"),
        (lambda: dj.train(config(tmp_path, 4), TwoConvolutions(1)), "trains Plain .*, not TwoConv"),
    ):
        with pytest.raises(UserError, match=message):
            use()
    assert dj.load_model(tmp_path / "run", network=Plain()).step == 2


def test_another_of_its_name_is_told_by_its_parameters(tmp_path):
    """The checkpoints are whole, and nobody is told otherwise."""
    dj.train(config(tmp_path, 2), TwoConvolutions(1))

    class TwoConvolutions_(nn.Module):
        def check(self, *shape):
            pass

        @nn.compact
        def __call__(self, x, step, dropout_keys=None):
            return nn.Conv(1, (1, 1))(x)

    TwoConvolutions_.__qualname__ = "TwoConvolutions"
    message = r"trains TwoConvolutions with 77 parameters, not TwoConvolutions with 2 parameters"
    for use in (
        lambda: dj.load_model(tmp_path / "run", network=TwoConvolutions_()),
        lambda: dj.train(config(tmp_path, 4), TwoConvolutions_()),
    ):
        with pytest.raises(UserError, match=message):
            use()
    assert dj.load_model(tmp_path / "run", network=TwoConvolutions(1)).step == 2


def test_what_is_no_network_is_refused_and_leaves_nothing(tmp_path):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x, step, dropout_keys=None):
            return x

    for use in (
        lambda: dj.train(config(tmp_path, 2), Half()),
        lambda: dj.load_model(tmp_path / "run", network=Half()),
    ):
        with pytest.raises(UserError, match="Half has no method check"):
            use()
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"dtype = .* must be float32 or bfloat16"):
        dj.load_model(tmp_path / "run", Plain())


def test_it_refuses_images_before_anything_is_written(tmp_path):
    made = config(tmp_path, 2)
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 6, 1), np.uint8))
    with pytest.raises(UserError, match="8 x 6 is not square"):
        dj.train(made, Plain())
    assert not (tmp_path / "run/checkpoints").exists()
