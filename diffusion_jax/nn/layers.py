"""Convolutions, linear layers and norms as PyTorch has them: padding, initial law, types."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.nn.plain import DIMENSIONS, PLAIN, Kernels

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
    """Parameters are float32 whatever the compute type, except for float64."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


class Conv(nn.Module):
    """A square convolution, padded by kernel//2 on every side as PyTorch does.

    Attributes:
      features: channels of the result.
      kernel: pixels per side.
      stride: 2 halves height and width. (SAME padding would be asymmetric there.)
      upsample: double height and width first, by the nearest neighbour; 3x3, stride 1 only.
      dtype: compute type.
      kernels: what computes it.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    upsample: bool = False
    dtype: DTypeLike = jnp.float32
    kernels: Kernels = PLAIN

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
            h = self.kernels.upsample_conv(h, kernel)
        elif (self.kernel, self.stride) == (3, 1):
            h = self.kernels.conv3x3(h, kernel)
        else:
            strides, padding = (self.stride,) * 2, [(self.kernel // 2,) * 2] * 2
            h = jax.lax.conv_general_dilated(
                h, kernel, strides, padding, dimension_numbers=DIMENSIONS
            )
        return self.kernels.add(h, bias[None, None, None])


class Dense(nn.Module):
    """A linear layer, by default with PyTorch's initial distribution.

    Attributes:
      features: length of the result.
      dtype: compute type.
      kernel_init: distribution of the initial kernel (any, features).
      bias_init: distribution of the initial bias; by default `torch_bias_init`.
      kernels: what computes it.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = torch_kernel_init
    bias_init: nn.initializers.Initializer | None = None
    kernels: Kernels = PLAIN

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(..., any) to (..., features)."""
        fan_in, dtype = h.shape[-1], param_dtype(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (fan_in, self.features), dtype)
        bias_init = self.bias_init or torch_bias_init(fan_in)
        bias = self.param("bias", bias_init, (self.features,), dtype)
        h, kernel = h.astype(self.dtype), kernel.astype(self.dtype)
        return self.kernels.linear(h, kernel, bias)


class GroupNorm(nn.Module):
    """Group normalization with PyTorch's epsilon, followed by SiLU where asked.

    Attributes:
      dtype: compute type; the statistics are those of `param_dtype`.
      silu: whether SiLU follows.
      kernels: what computes it.
    """

    dtype: DTypeLike = jnp.float32
    silu: bool = False
    kernels: Kernels = PLAIN

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(batch, height, width, channels) to the same shape and dtype; see `plain.group_norm`."""
        shape, dtype = h.shape[-1:], param_dtype(self.dtype)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        return self.kernels.group_norm(h, scale, bias, GROUPS, self.silu)
