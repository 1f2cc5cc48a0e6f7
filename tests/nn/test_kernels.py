"""What the layers compute, plain and by the kernels, against other formulas in float64.

And the kernels in the types that they are for.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.nn import attention as attention_module
from diffusion_jax.nn import winograd
from diffusion_jax.nn.kernels import ACCELERATOR, CPU
from diffusion_jax.nn.plain import PLAIN, upsample

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

KERNELS = {"plain": PLAIN, "CPU": CPU, "accelerator": ACCELERATOR}
each = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
# What an accelerator shares with one of them.
either = pytest.mark.parametrize("kernels", [PLAIN, CPU], ids=["plain", "CPU"])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    """By NumPy, since JAX compiles a program for every shape."""
    return np.random.default_rng(seed).standard_normal(shape)


def value_and_gradients(function, *arguments):
    """Value and the gradients of a sum with random weights."""

    @jax.jit
    def both(*arguments):
        out, pullback = jax.vjp(function, *arguments)
        return out, pullback(normal(99, *out.shape).astype(out.dtype))

    return both(*arguments)


def assert_same(function, plain, *arguments, rtol=1e-11):
    got = value_and_gradients(function, *arguments)
    wanted = value_and_gradients(plain, *arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


@each
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_is_flax_group_norm_then_silu(kernels, silu):
    layer = nn.GroupNorm(
        4, epsilon=1e-5, dtype=jnp.float64, param_dtype=jnp.float64, use_fast_variance=False
    )

    def plain(x, scale, bias):
        with jax.numpy_dtype_promotion("standard"):
            y = layer.apply({"params": {"scale": scale, "bias": bias}}, x)
        return nn.silu(y) if silu else y

    x = 3 + 2 * normal(0, 3, 4, 6, 8)
    arguments = x, 1 + normal(1, 8), normal(2, 8)
    assert_same(lambda *a: kernels.group_norm(*a, 4, silu), plain, *arguments)


def test_group_norm_keeps_its_digits_far_from_zero():
    """One pass, shifted: a mean 10^4 deviations away costs four digits, not eight."""
    x = 1e4 + normal(3, 2, 8, 8, 8)
    keeps_digits(x, 2e-3)


def test_group_norm_keeps_its_digits_where_channels_differ():
    """One channel of a group far from the others, all far from zero."""
    keeps_digits(
        1e3 * jnp.arange(1, 9.0).reshape(1, 1, 1, 8) + np.asarray(normal(3, 2, 8, 8, 8)), 2e-6
    )


def test_group_norm_keeps_its_digits_beside_an_outlier():
    """In any place, that of the shift among them."""
    for place in ((0, 0), (4, 4), (7, 3)):
        keeps_digits(jnp.asarray(normal(3, 2, 8, 8, 8)).at[:, *place].add(1e4), 1e-4)


def test_group_norm_of_constants_is_its_bias():
    keeps_digits(jnp.broadcast_to(jnp.arange(8.0).reshape(1, 1, 1, 8) // 4 * 1e3, (2, 8, 8, 8)), 0)


def keeps_digits(x, atol):
    ones, zeros = jnp.ones(8, jnp.float32), jnp.zeros(8, jnp.float32)
    exact = PLAIN.group_norm(x, jnp.ones(8), jnp.zeros(8), 2, False)
    got = CPU.group_norm(x.astype(jnp.float32), ones, zeros, 2, False)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=atol)


def plain_attention(q, k, v):
    logits = jnp.einsum("bqhs,bkhs->bhqk", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bkhs->bqhs", jax.nn.softmax(logits, axis=-1), v)


@each
@pytest.mark.parametrize("pixels_at_once", [12, 11], ids=["few pixels", "many"])
def test_attention_and_its_gradients(monkeypatch, kernels, pixels_at_once):
    monkeypatch.setattr(attention_module, "_PIXELS_AT_ONCE", pixels_at_once)
    q, k, v = (normal(seed, 3, 12, 2, 4) for seed in (4, 5, 6))
    assert_same(kernels.attention, plain_attention, 3 * q, k, v)


@each
def test_attention_of_huge_logits_is_finite(kernels):
    q, k, v = (1e4 * normal(seed, 1, 6, 1, 4) for seed in (7, 8, 9))
    out, gradients = value_and_gradients(kernels.attention, q, k, v)
    nearest = jnp.argmax(jnp.einsum("bqhs,bkhs->bqk", q, k)[0], axis=-1)
    np.testing.assert_allclose(out[0, :, 0], v[0, nearest, 0])
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)


@each
def test_attention_in_bfloat16_sums_in_float32(kernels):
    """4096 equal weights: their sum is exact in float32, in bfloat16 it would stop at 256."""
    q = jnp.zeros((1, 4096, 1, 2), jnp.bfloat16)
    v = jnp.ones((1, 4096, 1, 2), jnp.bfloat16)
    out, (_, _, dv) = value_and_gradients(kernels.attention, q, q, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), 1)
    weight = np.asarray(normal(99, 1, 4096, 1, 2).astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(
        np.asarray(dv, np.float64), np.broadcast_to(weight.mean(1, keepdims=True), dv.shape), 2e-2
    )


def test_upsampling_is_nearest():
    x = np.arange(24.0).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(upsample(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


@each
@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 1, 5, 2)])
def test_upsampling_in_one_is_upsampling_then_convolution(kernels, shape):
    arguments = normal(10, *shape), normal(11, 3, 3, shape[-1], 5)
    assert_same(kernels.upsample_conv, plain_upsampling, *arguments)


def plain_convolution(h, kernel):
    return jax.lax.conv_general_dilated(
        h, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_upsampling(h, kernel):
    return plain_convolution(jnp.repeat(jnp.repeat(h, 2, 1), 2, 2), kernel)


@either
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (6, 5), (5,)])
def test_linear_layer_and_its_gradients(kernels, shape):
    def plain(h, kernel, bias):
        out = jnp.einsum("...c,cf->...f", h, kernel)
        return out + jnp.broadcast_to(bias, out.shape)

    assert_same(kernels.linear, plain, normal(18, *shape), normal(19, 5, 3), normal(20, 3))


@either
def test_linear_layer_in_bfloat16_sums_the_gradient_of_its_bias_in_float32(kernels):
    """4096 ones: in bfloat16 their sum would stop at 256."""
    h, kernel = jnp.zeros((8, 512, 2), jnp.bfloat16), jnp.zeros((2, 3), jnp.bfloat16)
    out, pullback = jax.vjp(kernels.linear, h, kernel, jnp.zeros(3, jnp.float32))
    assert out.dtype == jnp.bfloat16
    _, dkernel, dbias = pullback(jnp.ones_like(out))
    assert (dkernel.dtype, dbias.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(dbias, 4096)


@either
def test_sum_in_bfloat16_sums_the_gradient_of_the_offset_in_float32(kernels):
    """Of a bias, which is float32, and of the time, an offset an example."""
    h = jnp.zeros((2, 64, 64, 3), jnp.bfloat16)
    for shape in ((1, 1, 1, 3), (2, 1, 1, 3)):
        out, pullback = jax.vjp(kernels.add, h, jnp.full(shape, 1 + 2.0**-12, jnp.float32))
        assert out.dtype == jnp.bfloat16
        np.testing.assert_array_equal(out.astype(jnp.float32), 1)
        dh, doffset = pullback(jnp.ones_like(out))
        assert (dh.dtype, doffset.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(doffset, np.full(shape, 2 * 4096 // shape[0]))


@either
@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (3, 8, 6, 2), (1, 5, 4, 2), (1, 1, 2, 2)])
def test_convolution_and_its_gradients(monkeypatch, kernels, shape):
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 1)
    arguments = normal(12, *shape), normal(13, 3, 3, shape[-1], 5)
    assert_same(kernels.conv3x3, plain_convolution, *arguments)


@pytest.mark.parametrize(
    ("function", "products_of_four_pixels"), [(CPU.conv3x3, 16), (CPU.upsample_conv, 9)]
)
def test_products_of_the_minimal_algorithms(function, products_of_four_pixels):
    """In place of 36 a channel; the program that the CPU runs convolves nothing."""
    h, kernel = (normal(14, 2, 8, 8, 64), normal(15, 3, 3, 64, 96))
    lowered = jax.jit(function).lower(h, kernel)
    text = lowered.as_text()
    assert "stablehlo.convolution" not in text
    products = 0
    for line in text.splitlines():
        if "stablehlo.dot_general" in line:
            rows, _, result = re.findall(r"tensor<([\dx]+)xf64>", line)
            products += math.prod(map(int, rows.split("x"))) * int(result.split("x")[-1])
    batch, height, width, features = lowered.out_info.shape
    assert products == products_of_four_pixels * batch * height * width // 4 * 64 * features


@pytest.mark.parametrize(
    ("function", "plain"),
    [(CPU.conv3x3, plain_convolution), (CPU.upsample_conv, plain_upsampling)],
)
def test_minimal_algorithms_keep_the_digits_of_float32(function, plain):
    """Both ways of summing 9 x 128 products stay within 2e-6 of the exact result."""
    drawn = normal(16, 2, 8, 8, 128), normal(17, 3, 3, 128, 128)
    arguments = [a.astype(jnp.float32) for a in drawn]
    got = value_and_gradients(function, *arguments)
    rounded = [a.astype(jnp.float64) for a in arguments]
    exact = value_and_gradients(plain, *rounded)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        error = jnp.linalg.norm(a.astype(jnp.float64) - b) / jnp.linalg.norm(b)
        assert float(error) < 2e-6
