import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from weights import random_params

from diffusion_jax.errors import UserError
from diffusion_jax.nn.dropout import channel_dropout, kept_channels
from diffusion_jax.nn.layers import Conv
from diffusion_jax.nn.plain import PLAIN
from diffusion_jax.nn.unet import (
    ResidualBlock,
    SelfAttention,
    UNet,
    sinusoidal_table,
    time_embedding,
)

SMALL = UNet(base_channels=16, multiples=(1, 2), attention_levels=(2,), num_res_blocks=1)


def shapes(model, height=64, width=64):
    image = jax.ShapeDtypeStruct((1, height, width, model.channels), jnp.float32)
    step = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), image, step)["params"]


def apply(model, params, *inputs):
    return quick_jit(model.apply)({"params": params}, *inputs)


def test_the_table_is_no_nan_to_whoever_looks_for_them(small_params, small_inputs):
    """But a prediction at a step that it lacks is, and looking for it names the steps."""
    x, step = small_inputs
    with jax.debug_nans(True):
        apply(SMALL, small_params, x, step)
        time_embedding(16, jnp.float32, step)
        with pytest.raises(UserError, match="steps from 1 to 1000 are not all in"):
            apply(SMALL, small_params, x, step + 1)


@pytest.fixture(scope="module")
def small_params():
    return random_params(SMALL, (8, 8, 3))


@pytest.fixture(scope="module")
def small_inputs():
    x = jax.random.normal(jax.random.key(1), (3, 8, 12, 3))
    return x, jnp.array([0, 500, 999])


def test_paper_model_has_the_published_number_of_parameters():
    model = UNet()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model))) == 25_636_483
    # The original counts its fixed time table among its 25.70 M parameters.
    assert 25_636_483 + sinusoidal_table(64).size == 25_700_483


def test_parameters_are_float32_whatever_the_compute_type():
    with jax.numpy_dtype_promotion("standard"):
        model = UNet(base_channels=8, multiples=(1, 2), attention_levels=(1,), dtype=jnp.bfloat16)
        params = shapes(model, 8, 8)
        image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        step = jax.ShapeDtypeStruct((1,), jnp.int32)
        text = jax.jit(model.apply).lower({"params": params}, image, step).as_text()
        out = jax.eval_shape(model.apply, {"params": params}, image, step)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert out.dtype == jnp.float32
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("bf16" in line and "f32" not in line for line in convolutions)


def test_bfloat16_approximates_float32(small_params, small_inputs):
    model = SMALL.copy(dtype=jnp.bfloat16)
    exact = apply(SMALL, small_params, *small_inputs)
    with jax.numpy_dtype_promotion("standard"):
        rough = apply(model, small_params, *small_inputs)
    error = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-6 < error < 0.05


def test_the_time_is_computed_in_float32_under_bfloat16(small_params, small_inputs):
    """Neighbouring steps are one in bfloat16 at most frequencies."""

    def times(dtype):
        model = SMALL.copy(dtype=dtype)
        run = quick_jit(partial(model.apply, capture_intermediates=True))
        layers = run({"params": small_params}, *small_inputs)[1]["intermediates"]
        blocks = [layers[name]["dense"] for name in ("encoder0", "bottleneck1", "decoder0")]
        return jax.tree.leaves([layers["time_dense2"], blocks])

    for a, b in zip(times(jnp.bfloat16), times(jnp.float32), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_parameters_cast_once_change_nothing(small_params, small_inputs):
    """And a loop with them casts none of them any more."""
    model = SMALL.copy(dtype=jnp.bfloat16)
    cast = model.cast(small_params)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(cast)}
    assert kinds == {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
    expected, got = (apply(model, params, *small_inputs) for params in (small_params, cast))
    np.testing.assert_array_equal(got, expected)

    def casts(params):
        text = jax.jit(model.apply).lower({"params": params}, *small_inputs).as_text()
        lines = (line for line in text.splitlines() if "stablehlo.convert" in line)
        shapes = {"x".join(map(str, leaf.shape)) for leaf in jax.tree.leaves(small_params)}
        found = [
            re.search(r"tensor<([\dx]+)xf32>\) -> tensor<[\dx]+xbf16>", line) for line in lines
        ]
        return sum(match is not None and match[1] in shapes for match in found)

    assert casts(small_params) > 20
    assert casts(cast) == 0


def test_initial_distribution_is_torchs():
    """U(+-1/sqrt(fan_in)) for convolutions and linear layers, Xavier and zeros for attention."""
    model = UNet(base_channels=64, multiples=(1, 2), attention_levels=(2,), num_res_blocks=1)
    params = quick_jit(model.init)(
        jax.random.key(3), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, jnp.int32)
    )["params"]
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for name, leaf in leaves.items():
        if ".norm." in name:
            np.testing.assert_array_equal(leaf, 1 if name.endswith("scale") else 0)
            continue
        if "in_proj.bias" in name or "out_proj.bias" in name:
            np.testing.assert_array_equal(leaf, 0)
            continue
        kernel = leaves[name.rsplit(".", 1)[0] + ".kernel"]
        fan_in = np.prod(kernel.shape[:-1])
        bound = np.sqrt(6 / sum(kernel.shape)) if "in_proj" in name else fan_in**-0.5
        assert np.abs(leaf).max() <= bound
        if leaf.size >= 512:
            scaled = leaf.ravel() / bound
            n = leaf.size
            assert np.abs(scaled).max() > 1 - 20 / n  # missed with probability e^-20
            assert abs(scaled.mean()) < 5 / np.sqrt(3 * n)
            # Var of u^2 for u ~ U(-1, 1) is 4/45.
            assert abs((scaled**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / n)


def test_time_table_is_the_sinusoid():
    table = sinusoidal_table(64)
    w = np.exp(-np.log(10000) * np.arange(32) / 31)
    s = np.arange(1000)[:, None]
    exact = np.concatenate([np.sin(s * w), np.cos(s * w)], axis=1)
    # The original rounds s w to float32: off by half a unit in the last place of 999, 3e-5, and
    # as much again from w.
    np.testing.assert_allclose(table, exact, atol=1.2e-4)
    np.testing.assert_allclose(table[:, 31], np.sin(np.arange(1000) * 1e-4), atol=1e-7)


def test_attention_is_softmax_of_scaled_products():
    layer = SelfAttention(kernels=replace(PLAIN, group_norm=lambda h, *_: h))
    h = jax.random.normal(jax.random.key(5), (2, 3, 4, 16))
    params = quick_jit(layer.init)(jax.random.key(6), h)["params"]
    got = np.asarray(apply(layer, params, h))

    pixels = np.asarray(h, np.float64).reshape(2, 12, 16)
    qkv = pixels @ np.asarray(params["in_proj"]["kernel"], np.float64)
    heads = [part.reshape(2, 12, 4, 4).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1)]
    logits = heads[0] @ heads[1].swapaxes(-1, -2) / np.sqrt(4)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    out = (weights @ heads[2]).transpose(0, 2, 1, 3).reshape(2, 12, 16)
    out = out @ np.asarray(params["out_proj"]["kernel"], np.float64)
    np.testing.assert_allclose(got, (pixels + out).reshape(2, 3, 4, 16), atol=1e-5)


def test_downsampling_is_padded_on_every_side():
    """A stride-2 convolution whose kernel is its centre picks the even pixels: padding 1, not 0."""
    layer = Conv(1, stride=2)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    x = jnp.arange(64.0).reshape(1, 8, 8, 1)
    out = layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(1)}}, x)
    np.testing.assert_array_equal(out, x[:, ::2, ::2])


def test_dropout_drops_whole_channels_at_the_stated_rate():
    rate, batch, channels = 0.3, 64, 256
    keys = jax.random.split(jax.random.key(7), batch)
    keep = kept_channels(keys, rate, 2, channels)
    out = np.asarray(channel_dropout(jnp.ones((batch, 2, 2, channels)), rate, keep[0]))
    assert np.all(out == out[:, :1, :1, :])
    kept = out[:, 0, 0, :] > 0
    np.testing.assert_allclose(out[:, 0, 0, :][kept], 1 / (1 - rate), rtol=1e-6)
    error = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * error
    # Two examples' masks are independent, and two blocks' of one.
    expected = rate**2 + (1 - rate) ** 2
    for one, other in ((kept[0], kept[1]), (kept, keep[1])):
        agree = np.mean(one == other)
        assert abs(agree - expected) < 4 * np.sqrt(expected * (1 - expected) / one.size)


def test_dropout_depends_on_the_examples_key_alone(small_params, small_inputs):
    x, step = small_inputs
    keys = jax.random.split(jax.random.key(8), 3)
    model = SMALL.copy(dropout=0.5)
    whole = apply(model, small_params, x, step, keys)
    alone = apply(model, small_params, x[1:2], step[1:2], keys[1:2])
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)
    plain = apply(model, small_params, x, step)
    assert np.abs(whole - plain).max() > 1e-3
    undropped = apply(SMALL.copy(dropout=0.0), small_params, x, step, keys)
    np.testing.assert_array_equal(undropped, plain)


def test_every_parameter_but_the_key_bias_has_a_gradient(small_params, small_inputs):
    """A skip left out, or a block not used, would leave parameters without one."""
    x, step = small_inputs

    def loss(params):
        return jnp.sum(jnp.square(SMALL.apply({"params": params}, x, step)))

    grads = quick_jit(jax.grad(loss))(small_params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 1e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (UNet(), (60, 64, 3), "divisible by 8"),
        (UNet(), (4, 4, 3), "divisible by 8"),
        (UNet(), (64, 64, 1), "takes 3 channels"),
        (UNet(base_channels=12), (64, 64, 3), "multiple of 8"),
        (UNet(attention_levels=(5,)), (64, 64, 3), "between 1 and"),
        (UNet(multiples=()), (64, 64, 3), "at least one level"),
        (UNet(num_res_blocks=0), (64, 64, 3), "one residual block"),
        (UNet(dropout=1.0), (64, 64, 3), r"in \[0, 1\)"),
    ],
)
def test_impossible_models_are_refused(model, shape, message):
    with pytest.raises(UserError, match=message):
        model.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32))


STEPS_OUTSIDE = {
    "1000": np.array([0, 1000, 5]),
    "negative": np.array([0, -1, 5]),
    "far": np.array([2**31 - 1, 0, 0]),
    "far below": np.array([-(2**31), 0, 0]),
    "int64": np.array([2**32 + 5, 0, 0]),
    "uint32": np.array([2**32 - 1, 0, 0], np.uint32),
    "list": [0, 999, 1000],
    "JAX's": jnp.array([0, 1000, 5]),
    "int8": jnp.array([0, -128, 5], jnp.int8),
}


@pytest.mark.parametrize("step", STEPS_OUTSIDE.values(), ids=STEPS_OUTSIDE)
def test_steps_outside_of_the_time_table_are_refused_where_they_are_known(small_params, step):
    variables, x = {"params": small_params}, jnp.zeros((3, 2, 2, 3))
    message = r"are not all in 0\.\.999, the rows of the UNet's time table"
    with pytest.raises(UserError, match=message):
        SMALL.apply(variables, x, step)
    with pytest.raises(UserError, match=message):  # it is a constant of the program
        jax.jit(lambda x: SMALL.apply(variables, x, step))(x)


def test_of_steps_that_are_not_known_the_table_gives_those_outside_as_nan():
    """In every type; those inside are the table's rows, bit for bit."""
    table = sinusoidal_table(16).astype(np.float32)
    rows = quick_jit(lambda step: time_embedding(16, jnp.float32, step))
    for dtype in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32):
        bounds = jnp.iinfo(dtype)
        step = np.unique([0, 1, 127, *(s for s in (128, 255, 998, 999) if s <= bounds.max)])
        np.testing.assert_array_equal(rows(jnp.asarray(step, dtype)), table[step])
        outside = [s for s in (bounds.min, -2, -1, 1000, 1001, bounds.max) if not 0 <= s < 1000]
        outside = [s for s in outside if bounds.min <= s <= bounds.max]
        if outside:
            assert np.isnan(rows(jnp.asarray(np.array(outside), dtype))).all()


def test_a_prediction_at_a_step_that_was_not_known_is_nan_and_its_neighbours_are_not(
    small_params, small_inputs
):
    x, step = small_inputs
    out = apply(SMALL, small_params, x, step.at[1].set(1000))
    assert np.isnan(out[1]).all()
    np.testing.assert_array_equal(out[::2], apply(SMALL, small_params, x, step)[::2])


class Longer(UNet):
    """With a third block in the bottleneck."""

    def blocks(self):
        encoder, bottleneck, decoder = super().blocks()
        features = bottleneck[-1].features
        bottleneck.append(ResidualBlock(features, dropout=self.dropout, name="bottleneck2"))
        return encoder, bottleneck, decoder


def test_a_block_may_be_added(monkeypatch):
    """It takes a mask of its own, and those before it keep theirs."""

    def run(model):
        masks, params = [], random_params(model, (2, 2, 1))
        keys = jax.random.split(jax.random.key(0), 3)

        def recorded(h, rate, keep):
            masks.append(keep)
            return channel_dropout(h, rate, keep)

        def predict(params, keys):
            x, step = jnp.ones((3, 2, 2, 1)), jnp.zeros(3, jnp.int32)
            return model.apply({"params": params}, x, step, keys), masks

        monkeypatch.setattr("diffusion_jax.nn.unet.channel_dropout", recorded)
        return *quick_jit(predict)(params, keys), params

    fields = {"channels": 1, "base_channels": 8, "multiples": (1, 2), "attention_levels": ()}
    fields |= {"num_res_blocks": 1, "dropout": 0.5}
    (_, before, _), (out, after, params) = run(UNet(**fields)), run(Longer(**fields))
    assert "bottleneck2" in params
    assert np.isfinite(out).all()
    assert len(after) == len(before) + 1 == 9
    for one, other in zip(before[:4], after[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any(np.array_equal(after[4], mask) for mask in after[:4])
