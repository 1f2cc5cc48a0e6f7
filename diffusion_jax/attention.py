"""Attention with a backward pass of its own, or the device's fused kernel.

The weights of 1024 pixels, 4 heads and a batch of 8 take 128 MiB in float32. On the CPU, where
reading and writing them costs more than computing them, a few heads at a time stay in the cache,
and the backward pass computes them again from the logarithm of their sum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# Weights that the heads taken together may have; measured on caches of 1 MiB a core.
_CACHED_WEIGHTS = 2**20


def attention(q: Array, k: Array, v: Array, fused: bool = False) -> Array:
    """softmax(q k^T / sqrt(size)) v, the softmax at least in float32.

    Only reverse differentiation is defined.

    Args:
      q: queries (batch, pixels, heads, size).
      k: keys, the same shape.
      v: values, the same shape.
      fused: use cuDNN's fused attention, which takes 16-bit inputs on a GPU alone and never holds
        the pixels x pixels weights.

    Returns:
      The same shape and dtype.
    """
    if fused:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return _attention(q, k, v)


def _heads_first(x: Array) -> Array:
    """(batch, pixels, heads, size) to (batch x heads, pixels, size)."""
    batch, pixels, heads, size = x.shape
    return jnp.swapaxes(x, 1, 2).reshape(batch * heads, pixels, size)


def _heads_last(x: Array, batch: int) -> Array:
    """Inverse of `_heads_first`."""
    return jnp.swapaxes(x.reshape(batch, -1, *x.shape[1:]), 1, 2)


def _product(a: Array, b: Array) -> Array:
    """A matrix product, accumulated and returned at least in float32."""
    dtype = jnp.float64 if a.dtype == jnp.float64 else jnp.float32
    return jnp.matmul(a, b, preferred_element_type=dtype)


def _over_heads(one_head: Callable[..., Any], *arrays: Array) -> Any:
    """Applies a function of one head's arrays to all heads: on the CPU some at a time."""
    heads, pixels = arrays[0].shape[:2]
    together = min(heads, max(1, _CACHED_WEIGHTS // pixels**2))

    def in_turns(*arrays: Array) -> Any:
        return jax.lax.map(lambda each: one_head(*each), arrays, batch_size=together)

    at_once = jax.vmap(one_head)
    if together == heads:
        return at_once(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=in_turns, default=at_once)


@jax.custom_vjp
def _attention(q: Array, k: Array, v: Array) -> Array:
    return _forward(q, k, v)[0]


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)

    def one_head(q: Array, k_transposed: Array, v: Array) -> tuple[Array, Array]:
        logits = _product(q, k_transposed)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _product(weights.astype(v.dtype), v) / total
        return out.astype(v.dtype), largest + jnp.log(total)

    by_head = _heads_first(scaled), _heads_first(k), _heads_first(v)
    out, log_total = _over_heads(one_head, by_head[0], jnp.swapaxes(by_head[1], 1, 2), by_head[2])
    return _heads_last(out, len(q)), (*by_head, out, log_total)


def _backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    # p = softmax, o = p v:  dv = p^T do,  ds = p (do v^T - rowsum(do o)),  dq = ds k,  dk = ds^T q.
    # All products are with the weights as they lie: transposing them costs as much as a product.
    q, k, v, out, log_total = kept
    do = _heads_first(gradient)
    drop = jnp.sum(do.astype(log_total.dtype) * out.astype(log_total.dtype), axis=-1, keepdims=True)

    def one_head(
        q: Array, k: Array, v_transposed: Array, do: Array, log_total: Array, drop: Array
    ) -> tuple[Array, Array, Array]:
        weights = jnp.exp(_product(q, k.T) - log_total)
        ds = (weights * (_product(do, v_transposed) - drop)).astype(q.dtype)
        return _product(ds, k), _product(q.T, ds), _product(do.T, weights.astype(q.dtype))

    v_transposed = jnp.swapaxes(v, 1, 2)
    dq, dk, dv = _over_heads(one_head, q, k, v_transposed, do, log_total, drop)
    dq = dq * jnp.asarray(q.shape[-1] ** -0.5, dq.dtype)
    by_head = dq, jnp.swapaxes(dk, 1, 2), jnp.swapaxes(dv, 1, 2)
    batch = len(gradient)
    return tuple(_heads_last(d.astype(q.dtype), batch) for d in by_head)  # type: ignore[return-value]


_attention.defvjp(_forward, _backward)
