"""Nearest-neighbour up-sampling by 2 and a 3x3 convolution, as one operation."""

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.backend import off_cpu_barrier
from diffusion_jax.convolution import DIMENSIONS, conv3x3


def upsample(h: Array) -> Array:
    """Nearest-neighbour up-sampling by 2: (batch, h, w, c) to (batch, 2h, 2w, c)."""
    batch, height, width, channels = h.shape
    h = jnp.broadcast_to(h[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return h.reshape(batch, 2 * height, 2 * width, channels)


def _unfolded(h: Array, kernel: Array) -> Array:
    return conv3x3(upsample(h), kernel)


def _folded_kernel(kernel: Array, axis: int, parity: int) -> Array:
    """The three taps along an axis as the two that meet different pixels of the small grid."""
    first, second, third = (jax.lax.index_in_dim(kernel, i, axis) for i in range(3))
    taps = (first, second + third) if parity == 0 else (first + second, third)
    return jnp.concatenate(taps, axis)


def _folded(h: Array, kernel: Array) -> Array:
    """Four 2x2 convolutions on the small grid, one for each parity of row and column.

    An output row 2i sees the rows i - 1, i of the small grid, the latter twice; a row 2i + 1 the
    rows i, twice, and i + 1. That is 16 products in place of 36.
    """
    batch, height, width, _ = h.shape
    padding = ((1, 0), (0, 1))
    rows = []
    for row in (0, 1):
        columns = []
        for column in (0, 1):
            taps = _folded_kernel(_folded_kernel(kernel, 0, row), 1, column)
            columns.append(
                jax.lax.conv_general_dilated(
                    h,
                    taps,
                    (1, 1),
                    (padding[row], padding[column]),
                    dimension_numbers=DIMENSIONS,
                )
            )
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


@jax.custom_vjp
def upsample_conv(h: Array, kernel: Array) -> Array:
    """A 3x3 convolution, zero-padded by 1, of h repeated twice along both sides.

    On the CPU the repetition is folded into the kernel, for 2.25 times fewer products; the backward
    pass is that of the plain form, since differentiating the folded one is slower. Only reverse
    differentiation is defined.

    Args:
      h: features (batch, height, width, channels).
      kernel: (3, 3, channels, features).

    Returns:
      (batch, 2 height, 2 width, features).
    """
    return jax.lax.platform_dependent(h, kernel, cpu=_folded, default=_unfolded)


def _forward(h: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return upsample_conv(h, kernel), (h, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # Without it XLA keeps the up-sampled features of the forward pass.
    kept, gradient = off_cpu_barrier((kept, gradient))
    _, pullback = jax.vjp(_unfolded, *kept)
    return pullback(gradient)


upsample_conv.defvjp(_forward, _backward)
