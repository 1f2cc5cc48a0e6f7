"""Linear layers and sums, with backward passes that move less.

Automatic differentiation sums over all leading axes at once, for which XLA's CPU backend transposes
features and gradient, and joins a gradient of parts (queries, keys and values) once for each use.
Of a sum it leaves a wide copy of the gradient in memory.
"""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def linear(h: Array, kernel: Array, bias: Array) -> Array:
    """`plain.linear`. Only reverse differentiation is defined."""
    return jnp.matmul(h, kernel) + bias.astype(h.dtype).reshape((1,) * (h.ndim - 1) + (-1,))


def _forward(h: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return linear(h, kernel, bias), (h, kernel, bias)


def _backward(kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    h, kernel, bias = kept
    rows, dy = (x.reshape(-1, x.shape[-1]) for x in (h, gradient))
    dh = jax.lax.dot_general(dy, kernel, (((1,), (1,)), ((), ()))).reshape(h.shape)
    dkernel = jax.lax.dot_general(rows, dy, (((0,), (0,)), ((), ())))
    return dh, dkernel, jnp.sum(dy.astype(bias.dtype), axis=0)


linear.defvjp(_forward, _backward)


@jax.custom_vjp
def add(h: Array, offset: Array) -> Array:
    """`plain.add`. Only reverse differentiation is defined."""
    return h + offset.astype(h.dtype)


def _add_forward(h: Array, offset: Array) -> tuple[Array, Array]:
    return add(h, offset), offset


def _add_backward(offset: Array, gradient: Array) -> tuple[Array, Array]:
    axes = tuple(axis for axis, size in enumerate(offset.shape) if size == 1)
    return gradient, jnp.sum(gradient.astype(offset.dtype), axes, keepdims=True)


add.defvjp(_add_forward, _add_backward)
