"""Linear layers, with a backward pass whose products take the gradient as it lies.

Automatic differentiation sums over all leading axes at once, for which XLA's CPU backend transposes
features and gradient, and joins a gradient of parts (queries, keys and values) once for each use.
"""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def linear(h: Array, kernel: Array, bias: Array) -> Array:
    """Returns h W + b. Only reverse differentiation is defined.

    Args:
      h: features (..., channels).
      kernel: W (channels, features), in the type of h.
      bias: b (features,); its gradient is summed in its own type.

    Returns:
      (..., features), in the type of h.
    """
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
