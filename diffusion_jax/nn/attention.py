"""Attention with a backward pass of its own, or the GPU's fused kernel.

The weights of 1024 pixels, 4 heads and a batch of 8 take 128 MiB in float32: they are computed
again in the backward pass. Reading and writing them costs a CPU more than computing them, so it
takes one head after another, or two in the backward pass: they stay in the cache. Fewer pixels are
quicker all at once.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# Between 256 pixels, quicker at once, and 1024, quicker in turns (caches: 1 MiB a core, 32 shared).
_PIXELS_AT_ONCE = 512


def fused_attention(q: Array, k: Array, v: Array) -> Array:
    """`plain.attention` by cuDNN's fused kernel where it can be, on a GPU alone.

    It never holds the weights (pixels, pixels). It takes 16-bit inputs, and heads of a size that 8
    divides, up to 128. float32 goes to it as float16, whose mantissa is as long as that of TF32, in
    which a GPU multiplies float32, unless `jax_default_matmul_precision` asks for "highest". What
    it does not take is computed by `attention`. Only reverse differentiation is defined.
    """
    if not _takes(q.shape[-1]):
        return attention(q, k, v, False)
    if q.dtype.itemsize == 2:
        return _fused(q, k, v)
    config: Any = jax.config  # not all versions declare the type of this one
    exact = config.jax_default_matmul_precision in ("highest", "float32")
    if exact or q.dtype == jnp.float64:
        return attention(q, k, v, False)
    return _fused_float16(q, k, v)


@cache
def _takes(size: int) -> bool:
    """Whether cuDNN's fused attention takes heads of this size; where not, it is said, once."""
    if size % 8 == 0 and size <= 128:
        return True
    print(
        f"note: cuDNN's fused attention takes no heads of {size} channels (only multiples of 8, up "
        f"to 128), so they are computed without it: slower, with more memory",
        file=sys.stderr,
    )
    return False


def _fused(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


@jax.custom_vjp
def _fused_float16(q: Array, k: Array, v: Array) -> Array:
    """`_fused` of float32."""
    return _fused(*(x.astype(jnp.float16) for x in (q, k, v))).astype(q.dtype)


def _fused_float16_forward(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
    out, pullback = jax.vjp(_fused, *(x.astype(jnp.float16) for x in (q, k, v)))
    return out.astype(q.dtype), pullback


def _fused_float16_backward(pullback: Any, gradient: Array) -> tuple[Array, Array, Array]:
    # A loss's gradient lies far below 6e-5, where float16 loses digits: each example's is brought
    # to the order of one by a power of two, which rounds nothing.
    largest = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    exponent = jnp.clip(jnp.frexp(largest)[1], -100, 100)
    up, down = (jnp.ldexp(jnp.ones_like(largest), sign * exponent) for sign in (-1, 1))
    found = pullback((gradient * up).astype(jnp.float16))
    return tuple(d.astype(gradient.dtype) * down for d in found)


_fused_float16.defvjp(_fused_float16_forward, _fused_float16_backward)


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


def _over_heads(
    one_head: Callable[..., Any], *arrays: Array, in_turns: bool, side_by_side: int = 1
) -> Any:
    """Applies a function of one head's arrays to all heads, in turns where asked and where it pays.

    Args:
      one_head: function of one head's arrays.
      *arrays: of all heads.
      in_turns: a few heads after another.
      side_by_side: heads per turn, a divisor of their number.
    """
    if not in_turns or arrays[0].shape[1] <= _PIXELS_AT_ONCE:
        return jax.vmap(one_head)(*arrays)

    def turn(arrays: Any) -> Any:
        return [one_head(*each) for each in zip(*arrays, strict=True)]

    turns = [a.reshape(-1, side_by_side, *a.shape[1:]) for a in arrays]
    results = jax.lax.map(turn, turns)
    return jax.tree.map(lambda *r: jnp.stack(r, 1).reshape(-1, *r[0].shape[1:]), *results)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attention(q: Array, k: Array, v: Array, in_turns: bool) -> Array:
    """`plain.attention`, one head after another where asked and where it pays.

    Only reverse differentiation is defined.
    """
    return _forward(q, k, v, in_turns)[0]


def _forward(q: Array, k: Array, v: Array, in_turns: bool) -> tuple[Array, tuple[Array, ...]]:
    keep = q.shape[1] <= _PIXELS_AT_ONCE

    def one_head(q: Array, k: Array, v: Array) -> tuple[Array, ...]:
        logits = _product(q, k.T)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.astype(v.dtype)
        out = _product(weights, v) / total
        return out.astype(v.dtype), total, weights if keep else largest

    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    by_head = _heads_first(scaled), _heads_first(k), _heads_first(v)
    kept = _over_heads(one_head, *by_head, in_turns=in_turns)
    return _heads_last(kept[0], len(q)), (*by_head, *kept)


def _backward(
    in_turns: bool, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    # With the weights w = exp(logits - largest), o = w v/sum(w):  dv = w^T (do/sum),
    # ds = w ((do/sum) v^T - rowsum(do o)/sum),  dq = ds k,  dk = ds^T q.
    # All products take the weights as they lie: transposing them costs as much as a product.
    q, k, v, out, total, weights_or_largest = kept
    keep = q.shape[1] <= _PIXELS_AT_ONCE
    do = _heads_first(gradient).astype(total.dtype) / total
    drop = jnp.sum(do * out.astype(total.dtype), axis=-1, keepdims=True)

    def one_head(
        q: Array, k: Array, v: Array, do: Array, drop: Array, weights: Array
    ) -> tuple[Array, Array, Array]:
        if not keep:
            weights = jnp.exp(_product(q, k.T) - weights)
        ds = weights.astype(drop.dtype) * (_product(do, v.T) - drop)
        ds = ds.astype(q.dtype)
        return _product(ds, k), _product(q.T, ds), _product(do.T, weights.astype(q.dtype))

    arrays = q, k, v, do.astype(v.dtype), drop, weights_or_largest
    # Two heads side by side: cores then wait less for each other's data, which is slow to come
    # where they share no cache.
    together = 1 if len(q) % 2 else 2
    dq, dk, dv = _over_heads(one_head, *arrays, in_turns=in_turns, side_by_side=together)
    dq = dq * jnp.asarray(q.shape[-1] ** -0.5, dq.dtype)
    by_head = dq, jnp.swapaxes(dk, 1, 2), jnp.swapaxes(dv, 1, 2)
    batch = len(gradient)
    return tuple(_heads_last(d.astype(q.dtype), batch) for d in by_head)  # type: ignore[return-value]


attention.defvjp(_forward, _backward)
