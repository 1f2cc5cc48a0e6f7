"""Convolutions, linear layers and norms as PyTorch has them: padding, initial law, types."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.nn.linear import linear
from diffusion_jax.nn.normalization import GroupNorm
from diffusion_jax.nn.upsampling import upsample_conv
from diffusion_jax.nn.winograd import DIMENSIONS, conv3x3

GROUPS = 8

# PyTorch's default for convolutions and linear layers, weight and bias alike: U(-1/sqrt(fan_in),
# 1/sqrt(fan_in)). Flax's default is a truncated normal with zero biases.
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the default of PyTorch's biases."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def param_dtype(dtype: DTypeLike) -> DTypeLike:
    """Parameters are float32 whatever the compute type, but for float64."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


@jax.custom_vjp
def add(h: Array, offset: Array) -> Array:
    """Sum in h's type, the offset broadcast; its gradient is summed in the offset's own type.

    Adding in the wider type would do the same, but leave a wide copy of the gradient in memory.
    """
    return h + offset.astype(h.dtype)


def _add_forward(h: Array, offset: Array) -> tuple[Array, Array]:
    return add(h, offset), offset


def _add_backward(offset: Array, gradient: Array) -> tuple[Array, Array]:
    axes = tuple(axis for axis, size in enumerate(offset.shape) if size == 1)
    return gradient, jnp.sum(gradient.astype(offset.dtype), axes, keepdims=True)


add.defvjp(_add_forward, _add_backward)


class Conv(nn.Module):
    """A square convolution, padded by kernel//2 on every side as PyTorch does.

    Attributes:
      features: channels of the result.
      kernel: pixels a side.
      stride: 2 halves height and width. (SAME padding would be asymmetric there.)
      upsample: double height and width first, by the nearest neighbour; 3x3, stride 1 only.
      dtype: compute type.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    upsample: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(batch, height, width, any) to (batch, new height, new width, features)."""
        shape = (self.kernel, self.kernel, h.shape[-1], self.features)
        dtype = param_dtype(self.dtype)
        kernel = self.param("kernel", torch_kernel_init, shape, dtype)
        bias_init = torch_bias_init(h.shape[-1] * self.kernel**2)
        bias = self.param("bias", bias_init, (self.features,), dtype)
        h, kernel = h.astype(self.dtype), kernel.astype(self.dtype)
        if self.upsample:
            h = upsample_conv(h, kernel)
        elif (self.kernel, self.stride) == (3, 1):
            h = conv3x3(h, kernel)
        else:
            strides, padding = (self.stride,) * 2, [(self.kernel // 2,) * 2] * 2
            h = jax.lax.conv_general_dilated(
                h, kernel, strides, padding, dimension_numbers=DIMENSIONS
            )
        return add(h, bias[None, None, None])


class Dense(nn.Module):
    """A linear layer, by default with PyTorch's initial distribution.

    Attributes:
      features: length of the result.
      dtype: compute type.
      kernel_init: distribution of the initial kernel (any, features).
      bias_init: distribution of the initial bias; by default `torch_bias_init`.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = torch_kernel_init
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(..., any) to (..., features)."""
        fan_in, dtype = h.shape[-1], param_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (fan_in, self.features), dtype)
        bias_init = self.bias_init or torch_bias_init(fan_in)
        bias = self.param("bias", bias_init, (self.features,), dtype)
        return linear(h.astype(self.dtype), kernel.astype(self.dtype), bias)


def group_norm(dtype: DTypeLike, name: str, silu: bool = False) -> GroupNorm:
    """GroupNorm with its statistics at least in float32, followed by SiLU where asked."""
    return GroupNorm(GROUPS, param_dtype=param_dtype(dtype), silu=silu, name=name)
