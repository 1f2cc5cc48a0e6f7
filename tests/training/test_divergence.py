"""What is not finite stops a run under the number of its update, and is never saved."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from two_convolutions import TwoConvolutions

from diffusion_jax.config import Config
from diffusion_jax.errors import UserError
from diffusion_jax.training import loop
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.recorder import Recorder
from diffusion_jax.training.saved_state import structure_of
from diffusion_jax.training.step import init_state, make_optimizer
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

OPTIONS = (
    *("--image-size", "None", "--images-per-class", "None", "--classes"),
    *("--batch-size", "8", "--log-every", "1", "--checkpoint-every", "4", "--steps", "12"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8))
    return path


@pytest.fixture(scope="module")
def train_step(data):
    """The real train step, compiled once for all tests."""
    config = parse([*OPTIONS, "--data", str(data)])
    return loop.make_parallel_train_step(
        TwoConvolutions(1),
        config.schedule.build(),
        make_optimizer(config.training),
        jnp.full(1, 0.5),
        config.training,
    )


def at(tree, name, change):
    """Changes the first number of the leaves of this name."""

    def one(path, leaf):
        if not jax.tree_util.keystr(path).endswith(name):
            return leaf
        host = np.array(leaf)
        host.flat[0] = change(host.flat[0])
        return jax.device_put(host, leaf.sharding)

    return jax.tree.map_with_path(one, tree)


def nan(value):
    return np.nan


def in_batch(state, images, place):
    """One pixel, of one image."""
    host = np.array(images)
    host[(3, place) if host.ndim == 6 else (3,)].flat[0] = np.nan
    return state, jax.device_put(host, images.sharding)


def with_params(state, name, change):
    return state.replace(flat_params=ravel_pytree(at(state.params, name, change))[0])


def in_parameters(state, images, place):
    return with_params(state, "['first']['kernel']", nan), images


def in_gradient(state, images, place):
    """The loss is finite still, but not the sum of the gradients' squares."""
    return with_params(state, "['last']['kernel']", lambda value: 1e18), images


def in_moments(state, images, place):
    """Loss and gradient are finite, but not what becomes of the parameters."""
    return state.replace(opt_state=at(state.opt_state, ".mu", nan)), images


def in_average(state, images, place):
    tree = at(state.ema_params, "['first']['kernel']", nan)
    return state.replace(flat_ema_params=ravel_pytree(tree)[0]), images


@pytest.mark.parametrize(
    ("latest", "loss", "data"),
    [
        (None, "; nothing is saved; try", "nothing is saved; give"),
        (0, "; the last good checkpoint is checkpoints/0; try", "nothing is saved after step 0;"),
        (4, "; the last good checkpoint is checkpoints/4; try", "nothing is saved after step 4;"),
    ],
)
def test_step_0_is_saved_where_a_run_was_converted(monkeypatch, latest, loss, data):
    checkpoints = SimpleNamespace(latest=latest, folder=Path("checkpoints"), wait=lambda: None)
    recorder = Recorder(Config(), checkpoints)
    recorder.add(latest or 1, {"loss": jnp.array(np.nan), "grad_norm": jnp.ones(())})
    with pytest.raises(UserError, match=loss):
        recorder.drain()
    monkeypatch.setattr(loop, "changed", lambda images: "it was written to")
    with pytest.raises(UserError, match=f"^it was written to while the run .*: {data}"):
        loop._check_unchanged(None, checkpoints)


@pytest.mark.parametrize(
    ("poison", "update", "together", "message"),
    [
        (in_batch, 7, 1, "the loss is nan and the gradient's norm nan at step 7; the last good"),
        (in_batch, 7, 4, "the loss is nan and the gradient's norm nan at step 7; the last good"),
        (in_parameters, 6, 1, "the loss is nan and the gradient's norm nan at step 6; the last"),
        (in_gradient, 7, 1, r"the loss is \d\S* and the gradient's norm inf at step 7; the last"),
        (in_moments, 8, 1, "/first/bias is not finite after step 8, which is not saved"),
        (in_average, 8, 1, "average/first/kernel is not finite after step 8"),
    ],
)
def test_what_is_not_finite(
    data, train_step, tmp_path, monkeypatch, poison, update, together, message
):
    done = 0

    def poisoned(state, images):
        nonlocal done
        first, done = done + 1, done + (images.shape[1] if images.ndim == 6 else 1)
        images = images.astype(jnp.float32)  # as only they can hold it
        if first <= update <= done:
            state, images = poison(state, images, update - first)
        return train_step(state, images)

    poisoned.lower = lambda *shapes: SimpleNamespace(compile=lambda: None)  # not of bytes
    monkeypatch.setattr(loop, "make_parallel_train_step", lambda *args: poisoned)
    words = [*OPTIONS, "--data", str(data), "--run-dir", str(tmp_path)]
    with pytest.raises(UserError, match=message) as caught:
        loop.train(parse([*words, "--steps-per-dispatch", str(together)]), TwoConvolutions(1))
    if "last good" in str(caught.value):
        assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '4'}" in str(caught.value)
    logged = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert logged == list(range(1, done + 1))[: update - ("at step" in str(caught.value))]
    config = parse(words)
    optimizer = make_optimizer(config.training)
    like = jax.eval_shape(
        lambda: init_state(TwoConvolutions(1), optimizer, jax.random.key(0), (8, 8, 1))
    )
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        step, state, _ = checkpoints.restore_newest(partial(structure_of, like))
    assert step == 4
    for leaf in jax.tree.leaves(state.replace(key=None)):
        assert np.all(np.isfinite(leaf))
