"""cuDNN's fused attention, by a stand-in that rounds where it does: what goes to it, and how."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn import attention as attention_module
from diffusion_jax.nn.attention import fused_attention
from diffusion_jax.nn.plain import attention

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def swap(x):
    return jnp.swapaxes(x, 1, 2).astype(jnp.float32)


def rounded(x, like):
    return x.astype(like.dtype).astype(jnp.float32)


@jax.custom_vjp
def stand_in(q, k, v):
    """16-bit in and out; softmax and sums in float32; weights and their gradient in 16 bits."""
    return forward(q, k, v)[0]


def forward(q, k, v):
    wide = [swap(x) for x in (q, k, v)]
    weights = jax.nn.softmax(wide[0] @ jnp.swapaxes(wide[1], 2, 3) / q.shape[-1] ** 0.5)
    out = rounded(weights, q) @ wide[2]
    return jnp.swapaxes(out, 1, 2).astype(q.dtype), (q, k, v, weights, out)


def backward(kept, gradient):
    q, k, v, weights, out = kept
    do = swap(gradient)
    dv = jnp.swapaxes(rounded(weights, q), 2, 3) @ do
    inner = do @ jnp.swapaxes(swap(v), 2, 3) - jnp.sum(do * rounded(out, q), -1, keepdims=True)
    ds = rounded(weights * inner / q.shape[-1] ** 0.5, q)
    found = ds @ swap(k), jnp.swapaxes(ds, 2, 3) @ swap(q), dv
    return tuple(jnp.swapaxes(d, 1, 2).astype(q.dtype) for d in found)


stand_in.defvjp(forward, backward)


@pytest.fixture
def calls(monkeypatch):
    """The types that went to cuDNN."""
    seen = []

    def fused(q, k, v):
        seen.append(q.dtype)
        return stand_in(q, k, v)

    monkeypatch.setattr(attention_module, "_fused", fused)
    attention_module._takes.cache_clear()
    return seen


def arrays(batch=3, pixels=64, size=16, dtype=np.float32):
    return (
        jnp.asarray(np.random.default_rng(seed).standard_normal((batch, pixels, 4, size)), dtype)
        for seed in range(4)
    )


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("size_of_gradient", [1.0, 1e-6, 1e-12, 1e6, 0.0])
def test_float32_by_way_of_float16_keeps_three_digits(calls, size_of_gradient):
    """Of gradients of any size; without their scaling those of 1e-6 would be below float16's."""
    q, k, v, do = arrays()
    do = (
        do * size_of_gradient * np.geomspace(1e-3, 1, len(q), dtype=np.float32)[:, None, None, None]
    )
    plain, pull_plain = jax.vjp(attention, q, k, v)
    out, pull = jax.vjp(fused_attention, q, k, v)
    assert calls == [jnp.float16]
    assert out.dtype == jnp.float32
    assert 1e-5 < error(out, plain) < 1e-3
    for found, expected in zip(pull(do), pull_plain(do), strict=True):
        assert found.dtype == jnp.float32
        for example in range(len(q)):
            if size_of_gradient:
                assert error(found[example], expected[example]) < 2e-3
            else:
                assert not np.any(found)


def test_an_example_does_not_depend_on_those_beside_it(calls):
    """So that the losses of a batch do not depend on how it is split over devices."""
    q, k, v, do = arrays()
    do = do * jnp.asarray([1e-7, 1.0, 1e5], jnp.float32)[:, None, None, None]

    def gradients(*parts):
        return jax.vjp(fused_attention, *parts[:3])[1](parts[3])

    together = gradients(q, k, v, do)
    for i in range(len(q)):
        alone = gradients(*(x[i : i + 1] for x in (q, k, v, do)))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i : i + 1], b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def test_sixteen_bits_go_as_they_are(calls):
    q, k, v, _ = arrays(dtype=jnp.bfloat16)
    assert fused_attention(q, k, v).dtype == jnp.bfloat16
    assert calls == [jnp.bfloat16]


@pytest.mark.parametrize("precision", ["highest", "float32"])
def test_whoever_asks_for_the_highest_precision_gets_the_plain_form(calls, precision):
    q, k, v, _ = arrays()
    with jax.default_matmul_precision(precision):
        out = fused_attention(q, k, v)
    assert calls == []
    np.testing.assert_array_equal(out, attention_module.attention(q, k, v, False))
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    with jax.default_matmul_precision(precision):
        fused_attention(*narrow)  # its products are exact in any case
    assert calls == [jnp.bfloat16]


def test_float64_never_goes_to_it(calls):
    with jax.enable_x64(True):
        q, k, v, _ = arrays(dtype=np.float64)
        assert fused_attention(q, k, v).dtype == jnp.float64
    assert calls == []


@pytest.mark.parametrize(
    ("size", "taken"), [(4, False), (12, False), (8, True), (128, True), (136, False)]
)
def test_heads_that_it_refuses_are_computed_without_it_and_it_is_said_once(
    calls, capsys, size, taken
):
    for dtype in (jnp.bfloat16, jnp.float32):
        q, k, v, _ = arrays(1, 16, size, dtype)
        out = fused_attention(q, k, v)
        assert out.shape == q.shape
    said = capsys.readouterr().err
    assert (len(calls) == 2) == taken
    assert said.count(f"takes no heads of {size} channels") == (not taken)
