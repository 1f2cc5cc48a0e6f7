from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit
from jax.flatten_util import ravel_pytree
from two_convolutions import TwoConvolutions
from weights import random_params

from diffusion_jax.config import TrainingConfig
from diffusion_jax.data.batches import batch_shape, device_batches
from diffusion_jax.errors import UserError
from diffusion_jax.nn.kernels import CPU
from diffusion_jax.nn.unet import UNet
from diffusion_jax.runtime.devices import replicate, replicated, sharded
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import (
    argument_shapes,
    init_state,
    learning_rate,
    make_optimizer,
    make_parallel_train_step,
    make_train_step,
    noise_loss,
    state_of,
)

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

# What is tested of the train step holds for any model; where the UNet matters, it is small.
MODEL = TwoConvolutions(3, dropout=0.1)
# Two channels a group at least: with one, the norm would leave the bias before it no gradient.
SMALL_UNET = UNet(
    base_channels=16, multiples=(1,), attention_levels=(1,), num_res_blocks=1, kernels=CPU
)
SCHEDULE = linear_schedule(100)
SHAPE = (8, 8, 3)
MEAN = jnp.array([0.4, 0.5, 0.6])
CONFIG = TrainingConfig(batch_size=16, learning_rate=1e-3, warmup_steps=4, ema_decay=0.9)
IMAGES = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), dtype=np.uint8)
INDEX = jnp.arange(16)


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda: init_state(MODEL, make_optimizer(CONFIG), jax.random.key(0), SHAPE))()


@pytest.fixture(scope="module")
def unet_params():
    return random_params(SMALL_UNET, SHAPE)


@cache
def plain_step(config=CONFIG):
    return jax.jit(make_train_step(MODEL, SCHEDULE, make_optimizer(config), MEAN, config))


@cache
def parallel_step():
    return make_parallel_train_step(MODEL, SCHEDULE, make_optimizer(CONFIG), MEAN, CONFIG)


def norm(tree):
    """Of all numbers together; on the host, since each shape would be compiled for itself."""
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


def assert_same_moments(a, b):
    """Adam's moments, not the parameters: those of a vanishing gradient move at random."""
    for x, y in zip(jax.tree.leaves(a.opt_state), jax.tree.leaves(b.opt_state), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(x).max())


def test_loss_is_the_mean_squared_error_of_the_noise(state):
    x_0, noise = jax.random.normal(jax.random.key(1), (2, 4, *SHAPE))
    step = jnp.array([0, 3, 50, 99])
    a = np.cumprod(1 - np.asarray(SCHEDULE.beta, np.float64))[np.asarray(step)]
    a = a[:, None, None, None]
    x_t = jnp.asarray(np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise, jnp.float32)
    predicted = jax.jit(MODEL.apply)({"params": state.params}, x_t, step)
    expected = np.mean((np.asarray(predicted, np.float64) - np.asarray(noise)) ** 2)
    got = jax.jit(partial(noise_loss, MODEL, SCHEDULE))(state.params, x_0, step, noise)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_one_update_is_clipped_adam_with_its_average(state):
    """The update redone from the formulas: clipping, Adam's first step, the EMA's warm-up."""
    config = TrainingConfig(batch_size=16, learning_rate=1e-3, warmup_steps=4, clip_norm=0.1)
    # An optimizer that hands the raw gradients, in one vector, out as its state.
    spy = optax.GradientTransformation(lambda params: params, lambda grads, *_: (grads, grads))
    step = jax.jit(make_train_step(MODEL, SCHEDULE, spy, MEAN, config))
    spied, _ = step(state.replace(opt_state=state.flat_params), jnp.asarray(IMAGES), INDEX)
    grads = state.unravel(spied.opt_state)
    grad_norm = norm(grads)
    after, metrics = plain_step(config)(state, jnp.asarray(IMAGES), INDEX)
    assert float(metrics["grad_norm"]) == pytest.approx(grad_norm, rel=1e-4)
    assert grad_norm > 0.1
    rate = 1e-3 / 4  # first of four warm-up updates
    assert float(metrics["learning_rate"]) == pytest.approx(rate)
    for before, now, ema, grad in zip(
        *map(jax.tree.leaves, (state.params, after.params, after.ema_params, grads)), strict=True
    ):
        # Adam's first update: both moments, bias-corrected, are the clipped gradient's own.
        clipped = np.asarray(grad, np.float64) * 0.1 / grad_norm
        expected = before - rate * clipped / (np.abs(clipped) + 1e-8)
        clear = np.abs(clipped) > 1e-6
        np.testing.assert_allclose(np.asarray(now)[clear], expected[clear], atol=1e-7)
        np.testing.assert_allclose(ema, 0.1 * before + 0.9 * now, atol=1e-7)
    assert int(after.step) == 1


def test_ema_decay_warms_up_to_its_limit(state):
    step, now = plain_step(), state
    for k in range(12):
        before, (now, _) = now, step(now, jnp.asarray(IMAGES), INDEX)
        decay = min(0.9, (1 + k) / (10 + k))
        leaf = "first"
        expected = decay * before.ema_params[leaf]["bias"] + (1 - decay) * now.params[leaf]["bias"]
        np.testing.assert_allclose(now.ema_params[leaf]["bias"], expected, atol=1e-7)


def test_learning_rate_warms_up_linearly():
    rates = [float(learning_rate(CONFIG, jnp.int32(k))) for k in range(6)]
    np.testing.assert_allclose(rates, 1e-3 * np.array([0.25, 0.5, 0.75, 1, 1, 1]), rtol=1e-6)
    no_warmup = TrainingConfig(warmup_steps=0, learning_rate=2e-4)
    assert float(learning_rate(no_warmup, jnp.int32(0))) == pytest.approx(2e-4)


def test_accumulated_gradients_are_the_whole_batchs(state):
    whole, metrics = plain_step()(state, jnp.asarray(IMAGES), INDEX)
    config = TrainingConfig(
        batch_size=16, learning_rate=1e-3, warmup_steps=4, ema_decay=0.9, accumulation=4
    )
    parts, parts_metrics = plain_step(config)(state, jnp.asarray(IMAGES), INDEX)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], parts_metrics[name], rtol=1e-5)
    assert_same_moments(whole, parts)


def test_randomness_follows_the_global_index(state):
    """The loss of a batch is the mean of its halves' losses, with each half's own places."""
    step = plain_step()
    _, whole = step(state, jnp.asarray(IMAGES), INDEX)
    halves = [step(state, jnp.asarray(IMAGES[s]), INDEX[s])[1] for s in (slice(8), slice(8, 16))]
    mean = np.mean([float(half["loss"]) for half in halves])
    assert float(whole["loss"]) == pytest.approx(mean, rel=1e-5)
    swapped = step(state, jnp.asarray(IMAGES[8:]), INDEX[:8])[1]
    assert float(swapped["loss"]) != pytest.approx(float(halves[1]["loss"]), rel=1e-4)
    later = step(state.replace(step=jnp.int32(1)), jnp.asarray(IMAGES), INDEX)[1]
    assert float(later["loss"]) != pytest.approx(float(whole["loss"]), rel=1e-4)


@pytest.mark.parametrize("faithful", [False, True])
def test_faithful_never_trains_step_0(faithful, monkeypatch):
    """All steps drawn are uniform over 0..L-1, over 1..L-1 if faithful."""
    seen = []

    def record(model, schedule, params, x_0, step, noise, dropout_keys):
        jax.debug.callback(lambda s: seen.extend(np.asarray(s).tolist()), step)
        return jnp.sum(params["w"]) * 0.0

    monkeypatch.setattr("diffusion_jax.training.step.noise_loss", record)
    config = TrainingConfig(batch_size=16, faithful=faithful)
    optimizer = make_optimizer(config)
    schedule = linear_schedule(25)
    step = jax.jit(make_train_step(MODEL, schedule, optimizer, MEAN, config))
    params = {"w": jnp.zeros(1)}
    now = state_of(params, optimizer, jax.random.key(2))
    images, index = jnp.zeros((2000, 1, 1, 3), jnp.uint8), jnp.arange(2000)
    now, _ = step(now, images, index)
    jax.effects_barrier()
    counts = np.bincount(seen, minlength=25)
    low = int(faithful)
    assert counts[:low].sum() == 0
    expected = 2000 / (25 - low)
    # chi^2 over 24 degrees of freedom stays below 60 but for one run in 10^4.
    assert np.sum((counts[low:] - expected) ** 2 / expected) < 60


@pytest.mark.slow
def test_overfitting_eight_images_drives_the_loss_down():
    """The best constant prediction, zero, has a loss of 1."""
    config = TrainingConfig(batch_size=32, learning_rate=5e-3, warmup_steps=20)
    optimizer = make_optimizer(config)
    model = UNet(1, 16, (1,), attention_levels=(), num_res_blocks=1, dropout=0.0)
    y, x = np.mgrid[:8, :8]
    eight = np.stack([np.sin(0.4 * k * x + y) > 0 for k in range(8)])[..., None]
    images = jnp.asarray(255 * eight.astype(np.uint8).repeat(4, axis=0))
    mean = jnp.asarray([float(eight.mean())])
    step = jax.jit(make_train_step(model, linear_schedule(), optimizer, mean, config))
    now = jax.jit(lambda: init_state(model, optimizer, jax.random.key(4), (8, 8, 1)))()
    losses = []
    for _ in range(80):
        now, metrics = step(now, images, jnp.arange(32))
        losses.append(float(metrics["loss"]))
    assert 0.8 < losses[0] < 1.6
    assert np.mean(losses[20:40]) < 0.6 * losses[0]
    assert np.mean(losses[-20:]) < 0.15


def test_pmap_is_another_spelling(state):
    """To the last bit: metrics and state, of one update and of several."""
    steps = (
        parallel_step(),
        make_parallel_train_step(
            MODEL, SCHEDULE, make_optimizer(CONFIG), MEAN, CONFIG, implementation="pmap"
        ),
    )
    images = np.random.default_rng(1).integers(0, 256, (8, 3, 2, *SHAPE), dtype=np.uint8)
    for batch in (images[:, 0], images):
        results = [
            step(replicate(jax.tree.map(jnp.copy, state)), jax.device_put(batch, sharded()))
            for step in steps
        ]
        one, other = (jax.tree.leaves((s.replace(key=None), metrics)) for s, metrics in results)
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_state_is_few_arrays_and_one_sum_over_the_devices(state):
    """However many the parameters; a dispatch costs the host by the array."""
    assert len(jax.tree.leaves(state)) == 8
    shapes = argument_shapes(jax.eval_shape(lambda: state), batch_shape(SHAPE, 16))
    text = parallel_step().lower(*shapes).as_text()
    assert text.count("all_reduce") == 1


def test_the_state_gives_trees(state):
    """The model's parameters, from the vectors; the average has its own."""
    flat, _ = ravel_pytree(state.params)
    np.testing.assert_array_equal(flat, state.flat_params)
    other = state.replace(flat_ema_params=2 * state.flat_params)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(2 * a, b), state.params, other.ema_params
    )


def test_parallel_step_is_the_plain_step(state):
    """Eight devices against one: same loss, same moments, and the state given is consumed."""
    parallel, plain, one = parallel_step(), plain_step(), state
    eight = jax.device_put(jax.tree.map(jnp.copy, state), replicated())
    batch = jax.device_put(IMAGES.reshape(8, 2, *SHAPE), sharded())
    for _ in range(3):
        one, metrics = plain(one, jnp.asarray(IMAGES), INDEX)
        given = eight
        eight, parallel_metrics = parallel(given, batch)
        assert given.flat_params.is_deleted()
        assert float(parallel_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert len(eight.flat_params.sharding.device_set) == 8
    assert_same_moments(one, eight)


@pytest.mark.parametrize("updates", [1, 3])
def test_a_step_lowered_for_shapes_is_the_one_that_is_called(state, updates):
    step = make_parallel_train_step(MODEL, SCHEDULE, make_optimizer(CONFIG), MEAN, CONFIG)
    shape = batch_shape(SHAPE, 16, updates)
    step.lower(*argument_shapes(jax.eval_shape(lambda: state), shape)).compile()
    (batch,) = device_batches(IMAGES, 0, 0, 16, updates=[updates])
    assert batch.shape == shape
    eight = replicate(jax.tree.map(jnp.copy, state))
    heard = []

    def listen(name, seconds, **_):
        heard.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        step(eight, batch)
        assert heard == []
        step(replicate(jax.tree.map(jnp.copy, state)), batch[:, :, :1])
        assert any("backend_compile" in name for name in heard)  # it would have been heard
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_several_updates_in_one_call_are_the_same_updates(state):
    """On eight devices, to the last bit but for what a loop's body fuses differently."""
    parallel = parallel_step()
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 2, *SHAPE), dtype=np.uint8)
    one, together = (jax.device_put(jax.tree.map(jnp.copy, state), replicated()) for _ in range(2))
    singly = []
    for batch in images:
        one, metrics = parallel(one, jax.device_put(batch, sharded()))
        singly.append(metrics)
    given = together
    together, metrics = parallel(together, jax.device_put(images.swapaxes(0, 1), sharded()))
    assert given.flat_params.is_deleted()
    assert int(together.step) == 3
    for name, values in metrics.items():
        np.testing.assert_allclose(values, [single[name] for single in singly], rtol=1e-5)
    assert_same_moments(one, together)


def test_rematerialisation_keeps_less_and_the_same_gradients(unet_params):
    """With dropout: the same masks are drawn again.

    What the backward pass keeps is counted in the traced program: XLA's CPU compiler drops the
    barriers and merges what is computed twice, so that its own figure does not fall.
    """
    keys = jax.random.split(jax.random.key(5), 16)
    x_0, noise = jax.random.normal(jax.random.key(6), (2, 16, *SHAPE))
    step = jnp.arange(16) * 6

    def loss(remat):
        model = SMALL_UNET.clone(remat=remat)
        return lambda params: noise_loss(model, SCHEDULE, params, x_0, step, noise, keys)

    def kept(remat):
        backward = jax.eval_shape(lambda params: jax.vjp(loss(remat), params)[1], unet_params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    (value, grads), (again, grads_again) = (
        quick_jit(jax.value_and_grad(loss(remat)))(unet_params) for remat in (False, True)
    )
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())
    assert kept(True) < 0.5 * kept(False)


def test_bfloat16_keeps_loss_and_gradients_in_float32(unet_params):
    """And both near those of float32: the type has 8 bits, a relative error of 2^-9 a rounding."""
    keys = jax.random.split(jax.random.key(5), 16)
    x_0, noise = jax.random.normal(jax.random.key(6), (2, 16, *SHAPE))
    step = jnp.arange(16) * 6

    def gradient(dtype):
        model = SMALL_UNET.clone(dtype=dtype)
        return quick_jit(
            jax.value_and_grad(lambda p: noise_loss(model, SCHEDULE, p, x_0, step, noise, keys))
        )(unet_params)

    (low, low_grads), (high, high_grads) = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert low.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(low_grads)} == {jnp.dtype("float32")}
    assert float(low) == pytest.approx(float(high), rel=2e-3)
    pairs = zip(jax.tree.leaves(low_grads), jax.tree.leaves(high_grads), strict=True)
    difference = norm([np.subtract(a, b) for a, b in pairs])
    assert difference < 0.05 * norm(high_grads)
    assert float(low) != float(high)


@pytest.mark.parametrize(("batch", "accumulation"), [(12, 1), (16, 3), (4, 1)])
def test_a_batch_that_cannot_be_shared(batch, accumulation):
    config = TrainingConfig(batch_size=batch, accumulation=accumulation)
    with pytest.raises(UserError, match=f"a batch of {batch} can't be shared evenly by 8 device"):
        make_parallel_train_step(MODEL, SCHEDULE, make_optimizer(config), MEAN, config)
