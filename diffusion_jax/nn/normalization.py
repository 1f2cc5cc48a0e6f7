"""GroupNorm followed by SiLU, with a backward pass of its own.

Automatic differentiation keeps the normalized and the activated features of every norm until the
backward pass, and reads them several times. Here it keeps the input and two numbers per group
alone: the rest is computed again in one pass over the features, with sums over pixels first.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_jax.nn.plain import EPSILON


def _sum_over_groups(h: Array, groups: int) -> Array:
    """Sums over the channels of each group, (batch, channels), at every one of its channels."""
    batch, channels = h.shape
    sums = jnp.sum(h.reshape(batch, groups, channels // groups), axis=2, keepdims=True)
    return jnp.broadcast_to(sums, (batch, groups, channels // groups)).reshape(batch, channels)


def _statistics(x: Array, groups: int) -> tuple[Array, Array]:
    """Mean and 1/sqrt(variance + 1e-5) of each group, (batch, channels), by one pass.

    Sums of x and x^2 cancel where the mean is large: each channel is shifted by one of its own
    pixels first, and the channels' variances are joined pairwise (Chan, Golub & LeVeque 1983).
    """
    _, height, width, channels = x.shape
    pixels, members = height * width, channels // groups
    shift = x[:, height // 2, width // 2, :]
    shifted = x - shift[:, None, None, :]
    offset = jnp.sum(shifted, axis=(1, 2)) / pixels
    within = jnp.sum(shifted * shifted, axis=(1, 2)) / pixels - offset * offset
    mean = _sum_over_groups(shift + offset, groups) / members
    deviation = shift + offset - mean
    variance = _sum_over_groups(within + deviation * deviation, groups) / members
    return mean, jax.lax.rsqrt(variance + EPSILON)


def _normalized(x: Array, mean: Array, scale: Array) -> Array:
    return (x - mean[:, None, None, :]) * scale[:, None, None, :]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(
    x: Array, scale: Array, bias: Array, groups: int, silu: bool, barriers: bool
) -> Array:
    """`plain.group_norm`. Only reverse differentiation is defined.

    `barriers` keep apart in the backward pass what XLA joins better on a CPU, and worse on a GPU.
    """
    return _forward(x, scale, bias, groups, silu, barriers)[0]


def _forward(
    x: Array, scale: Array, bias: Array, groups: int, silu: bool, barriers: bool
) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(scale.dtype)
    mean, rate = _statistics(wide, groups)
    y = _normalized(wide, mean, rate * scale[None]) + bias[None, None, None]
    y = jax.nn.silu(y) if silu else y
    return y.astype(x.dtype), (x, scale, bias, mean, rate)


def _backward(
    groups: int, silu: bool, barriers: bool, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, rate = kept

    normal = _normalized(x.astype(scale.dtype), mean, rate)
    dy = gradient.astype(scale.dtype)
    if silu:
        y = normal * scale[None, None, None] + bias[None, None, None]
        sigmoid = jax.nn.sigmoid(y)
        dy = dy * sigmoid * (1 + y * (1 - sigmoid))
    # On a GPU dy goes to memory, since XLA fuses it into neither of its uses: so as narrow as x.
    apart = jax.lax.optimization_barrier if barriers else lambda arrays: arrays
    dy = apart(dy.astype(x.dtype)).astype(scale.dtype)
    sum_dy = jnp.sum(dy, axis=(1, 2))
    sum_dy_normal = jnp.sum(dy * normal, axis=(1, 2))
    # Without it XLA makes the sums over the batch below sums over all of dy, which no longer go
    # with these.
    sum_dy, sum_dy_normal = apart((sum_dy, sum_dy_normal))
    # dx = rate (g - <g> - normal <g normal>), g = scale dy, the averages over each group.
    count = x.shape[1] * x.shape[2] * x.shape[3] // groups
    average = _sum_over_groups(scale[None] * sum_dy, groups) / count
    slope = _sum_over_groups(scale[None] * sum_dy_normal, groups) / count
    dx = (
        (rate * scale[None])[:, None, None] * dy
        - (rate * average)[:, None, None]
        - (rate * slope)[:, None, None] * normal
    )
    return dx.astype(x.dtype), jnp.sum(sum_dy_normal, axis=0), jnp.sum(sum_dy, axis=0)


group_norm.defvjp(_forward, _backward)
