"""The plain model and the device's kernels are one model; the plain one has every derivative."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from weights import random_params

from diffusion_jax.nn import attention, winograd
from diffusion_jax.nn.kernels import ACCELERATOR, CPU
from diffusion_jax.nn.plain import PLAIN
from diffusion_jax.nn.unet import UNet

SMALL = UNet(2, 16, (1, 2), (2,), num_res_blocks=1, dropout=0.3)
FLAT = UNet(2, 16, (1,), (1,), num_res_blocks=1, dropout=0.3)


@pytest.fixture
def everywhere(monkeypatch):
    """The CPU's algorithms at every size, and attention a head at a time, whatever pays."""
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 8)
    monkeypatch.setattr(attention, "_PIXELS_AT_ONCE", 1)
    winograd.conv3x3.clear_cache()  # what was traced before
    yield
    winograd.conv3x3.clear_cache()


def normal(seed, *shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def error(got, want):
    """Of a pytree as one vector: relative, since some gradients are rounding alone."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs)
    got, want = (
        np.concatenate([np.ravel(np.float64(x)) for x in part]) for part in zip(*pairs, strict=True)
    )
    return np.linalg.norm(got - want) / np.linalg.norm(want)


# Products of 9 x 16 numbers, sums over a few hundred pixels, and some roundings after one another.
ROUNDING = {"float32": 2e-6, "bfloat16": 2e-2}
OPERATIONS = {
    "conv3x3": [(2, 6, 8, 16), (3, 3, 16, 8)],
    "conv3x3 of odd sides": [(2, 5, 7, 16), (3, 3, 16, 8)],
    "conv3x3 of a pixel": [(1, 1, 1, 16), (3, 3, 16, 8)],
    "upsample_conv": [(2, 3, 4, 16), (3, 3, 16, 8)],
    "upsample_conv of a pixel": [(1, 1, 1, 16), (3, 3, 16, 8)],
    "add": [(2, 3, 5, 16), (1, 1, 1, 16)],
    "linear": [(3, 7, 16), (16, 5), (5,)],
    "attention": [(2, 15, 4, 8)] * 3,
    "attention of an odd number of heads": [(1, 9, 3, 4)] * 3,
    "group_norm": [(2, 5, 3, 16), (16,), (16,)],
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float32") for name in OPERATIONS),
        *((name, "bfloat16") for name in OPERATIONS if " of " not in name),
    ],
)
def test_an_operation_is_the_plain_one(everywhere, name, dtype):
    """Its value and gradients, in the types in which it is called."""
    operation, wide = name.split()[0], name.split()[0] in ("add", "linear", "group_norm")
    arrays = [
        normal(seed, *shape, dtype=jnp.float32 if wide and seed and len(shape) != 2 else dtype)
        for seed, shape in enumerate(OPERATIONS[name])
    ]
    static = (8, True) if operation == "group_norm" else ()

    def both(kernels):
        out, pullback = jax.vjp(lambda *a: getattr(kernels, operation)(*a, *static), *arrays)
        return out, pullback(normal(9, *out.shape, dtype=out.dtype))

    want = quick_jit(partial(both, PLAIN))()
    shared = getattr(ACCELERATOR, operation) is getattr(CPU, operation)
    for kernels in (CPU,) if shared else (CPU, ACCELERATOR):
        for got, expected in zip(quick_jit(partial(both, kernels))(), want, strict=True):
            assert error(got, expected) < ROUNDING[dtype]


@lru_cache
def output_and_gradients(model, size, dtype):
    """With dropout; the gradients of a sum with random weights in the parameters and images."""
    params = random_params(model, (4, 4, 2))
    x, weights = (normal(seed, 3, *size, 2, dtype=dtype) for seed in (0, 1))
    step, keys = jnp.array([0, 500, 999]), jax.random.split(jax.random.key(2), 3)

    def loss(params, x):
        out = model.apply({"params": params}, x, step, keys)
        return jnp.sum(weights * out), out

    grads, out = quick_jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    return out, grads


@pytest.mark.parametrize(
    ("kernels", "model", "size", "dtype", "bound"),
    [
        (CPU, SMALL, (8, 12), "float64", 1e-12),
        (ACCELERATOR, SMALL, (8, 12), "float64", 1e-12),
        (CPU, FLAT, (5, 7), "bfloat16", 4e-2),
    ],
)
def test_the_kernels_model_is_the_plain_one(
    everywhere, monkeypatch, kernels, model, size, dtype, bound
):
    """Some tens of roundings after one another, and norms that divide by what is left."""
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 64)  # tiles of each size compile slowly
    double = dtype == "float64"
    with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"):
        images = "float64" if double else "float32"
        want, got = (
            output_and_gradients(model.copy(dtype=jnp.dtype(dtype), kernels=each), size, images)
            for each in (PLAIN, kernels)
        )
    for a, b in zip(got, want, strict=True):
        assert error(a, b) < bound


TINY = UNet(1, 8, (1, 2), (2,), num_res_blocks=1)


def test_no_derivative_of_the_plain_model_is_written_by_hand():
    """But the kernels' are: a search that finds none there would prove nothing."""
    params = random_params(TINY, (2, 4, 1))
    inputs = np.zeros((1, 2, 4, 1), np.float32), np.zeros(1, np.int32)
    found = {}
    for name, model in {"plain": TINY, "CPU": TINY.copy(kernels=CPU)}.items():
        program = jax.make_jaxpr(partial(model.apply, {"params": params}))(*inputs)
        found[name] = "custom_vjp" in str(program)
    assert found == {"plain": False, "CPU": True}
    assert TINY.copy(kernels=CPU).plain() == TINY


@pytest.fixture
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def test_jvp_and_linearize_are_the_transpose_of_the_reverse_mode(float64):
    """<u, J v> = <J^T u, v>, in the parameters and the images, dropout or not."""
    model = TINY.copy(dtype=jnp.float64, dropout=0.3)
    keys = jax.random.split(jax.random.key(0), 2)
    u, *images = (normal(seed, 2, 2, 4, 1) for seed in range(3))
    place, v = ((random_params(model, (2, 4, 1), seed), images[seed]) for seed in (0, 1))

    def function(params, x):
        return model.apply({"params": params}, x, jnp.array([10, 700]), keys)

    @quick_jit
    def products(place, u, v):
        _, forward = jax.jvp(function, place, v)
        _, linear = jax.linearize(function, *place)
        _, pullback = jax.vjp(function, *place)
        inner = jax.tree.map(jnp.vdot, pullback(u), v)
        return jnp.vdot(u, forward), jnp.vdot(u, linear(*v)), sum(jax.tree.leaves(inner))

    forward, linear, reverse = map(float, products(place, u, v))
    assert abs(reverse) > 0.1
    np.testing.assert_allclose([forward, linear], reverse, rtol=1e-10)


def test_jacfwd_and_hessian_are_central_differences(float64):
    """These are off by h^2 times a third derivative."""
    model, h = UNet(1, 8, (1,), (), num_res_blocks=1, dtype=jnp.float64), 1e-4
    params = random_params(model, (2, 3, 1))
    x, v = normal(0, 1, 2, 3, 1), normal(1, 1, 2, 3, 1)

    def function(x):
        return model.apply({"params": params}, x, jnp.array([500]))

    def scalar(x):
        return jnp.sum(function(x) ** 3)

    @quick_jit
    def derivatives(x):
        return jax.jacfwd(function)(x), jax.hessian(scalar)(x)

    @quick_jit
    def values(x):
        return function(x), jax.grad(scalar)(x)

    ahead, behind = values(x + h * v), values(x - h * v)
    for derivative, one, other in zip(derivatives(x), ahead, behind, strict=True):
        assert error(jnp.tensordot(derivative, v, 4), (one - other) / (2 * h)) < 1e-5
