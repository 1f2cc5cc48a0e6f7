"""What the layers compute, in plain JAX, and the one place where a device may have its own.

Everything here is differentiated by JAX alone, forwards and backwards, as often as one likes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
EPSILON = 1e-5


def conv3x3(h: Array, kernel: Array) -> Array:
    """A 3x3 convolution, zero-padded by 1: y_p = sum_d h_{p + d} kernel_{d + 1}, d in {-1, 0, 1}^2.

    Args:
      h: features (batch, height, width, channels).
      kernel: (3, 3, channels, features).

    Returns:
      (batch, height, width, features), in the type of h.
    """
    return jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def upsample(h: Array) -> Array:
    """Nearest-neighbour up-sampling by 2: (batch, h, w, c) to (batch, 2h, 2w, c)."""
    batch, height, width, channels = h.shape
    h = jnp.broadcast_to(h[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return h.reshape(batch, 2 * height, 2 * width, channels)


def upsample_conv(h: Array, kernel: Array) -> Array:
    """`conv3x3` of h repeated twice along both sides: (batch, 2 height, 2 width, features)."""
    return conv3x3(upsample(h), kernel)


def add(h: Array, offset: Array) -> Array:
    """Sum in h's type, the offset broadcast; its gradient is summed in the offset's own type."""
    return h + jnp.broadcast_to(offset, h.shape).astype(h.dtype)


def linear(h: Array, kernel: Array, bias: Array) -> Array:
    """Returns h W + b.

    Args:
      h: features (..., channels).
      kernel: W (channels, features), in the type of h.
      bias: b (features,); its gradient is summed in its own type.

    Returns:
      (..., features), in the type of h.
    """
    return add(jnp.matmul(h, kernel), bias.reshape((1,) * (h.ndim - 1) + (-1,)))


def attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(size)) v, the softmax at least in float32.

    Args:
      q: queries (batch, pixels, heads, size).
      k: keys, the same shape.
      v: values, the same shape.

    Returns:
      The same shape and dtype.
    """
    wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    logits = jnp.einsum("bqhs,bkhs->bhqk", scaled, k, preferred_element_type=wide)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhs->bqhs", weights, v)


def group_norm(x: Array, scale: Array, bias: Array, groups: int, silu: bool) -> Array:
    """Group normalization (Wu & He 2018), followed by SiLU where asked.

    y = (x - mean)/sqrt(variance + 1e-5) scale + bias,    SiLU(y) = y/(1 + e^-y),

    mean and variance over the pixels and channels of each group, at least in float32.

    Args:
      x: features (batch, height, width, channels).
      scale: factor of each channel (channels,).
      bias: offset of each channel (channels,).
      groups: number of groups, a divisor of the channels.
      silu: whether SiLU follows.

    Returns:
      The shape and dtype of x.
    """
    grouped = x.astype(scale.dtype).reshape(*x.shape[:3], groups, -1)
    centred = grouped - jnp.mean(grouped, (1, 2, 4), keepdims=True)
    variance = jnp.mean(jnp.square(centred), (1, 2, 4), keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + EPSILON)).reshape(x.shape)
    y = normal * scale[None, None, None] + bias[None, None, None]
    return (jax.nn.silu(y) if silu else y).astype(x.dtype)


@dataclass(frozen=True)
class Kernels:
    """The functions that the layers call: those of this file, or others that compute the same.

    A device's own are in `kernels`; they may define reverse differentiation alone.
    """

    conv3x3: Callable[[Array, Array], Array] = conv3x3
    upsample_conv: Callable[[Array, Array], Array] = upsample_conv
    add: Callable[[Array, Array], Array] = add
    linear: Callable[[Array, Array, Array], Array] = linear
    attention: Callable[[Array, Array, Array], Array] = attention
    group_norm: Callable[[Array, Array, Array, int, bool], Array] = group_norm


PLAIN = Kernels()
