"""The UNet that predicts the noise: the original model's architecture, in Flax linen and NHWC."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nn.attention import attention
from diffusion_jax.nn.dropout import channel_dropout, kept_channels
from diffusion_jax.nn.layers import GROUPS, Conv, Dense, add, group_norm, param_dtype

HEADS = 4
TIME_STEPS = 1000
# What computes in float32, or more, whatever the model's type: norms, and what handles the time.
_WIDE = {"norm", "time_dense1", "time_dense2", "dense"}


def sinusoidal_table(channels: int) -> np.ndarray:
    """Time embedding of the steps 0..999, float64 of shape (1000, channels).

    Row s is [sin(s w_0), ..., sin(s w_k), cos(s w_0), ..., cos(s w_k)], k = channels/2 - 1, with
    w_i = exp(-log(10000) i/k). The original tabulates it in float32; rounding w_i and s w_i to
    float32 as it did keeps its model to the last digits (without it: 3e-5 off).
    """
    half = channels // 2
    exponent = np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1))
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = (np.arange(TIME_STEPS, dtype=np.float32)[:, None] * frequency).astype(np.float64)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


class Block(nn.Module):
    """GroupNorm - SiLU - channel dropout - 3x3 convolution."""

    features: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Array, keep: Array | None = None) -> Array:
        """(batch, height, width, any) to (batch, height, width, features), dropping channels."""
        h = group_norm(self.dtype, "norm", silu=True)(h)
        if keep is not None:
            h = channel_dropout(h, self.dropout, keep)
        return Conv(self.features, dtype=self.dtype, name="conv")(h)


class SelfAttention(nn.Module):
    """GroupNorm, 4-head self-attention over the pixels with packed q, k, v, and the residual."""

    dtype: DTypeLike = jnp.float32
    fused: bool = False

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(batch, height, width, channels) to the same shape."""
        batch, height, width, channels = h.shape
        pixels = group_norm(self.dtype, "norm")(h).reshape(batch, height * width, channels)
        # PyTorch's MultiheadAttention: Xavier over the packed (3C, C) weight, both biases zero.
        qkv = Dense(
            3 * channels,
            self.dtype,
            nn.initializers.xavier_uniform(),
            nn.initializers.zeros,
            name="in_proj",
        )(pixels)
        q, k, v = jnp.split(qkv.reshape(batch, -1, 3 * HEADS, channels // HEADS), 3, axis=2)
        out = attention(q, k, v, self.fused).reshape(pixels.shape)
        out = Dense(channels, self.dtype, bias_init=nn.initializers.zeros, name="out_proj")(out)
        return h + out.reshape(h.shape)


class ResidualBlock(nn.Module):
    """Two blocks with the time added between them, the residual, and attention where asked."""

    features: int
    attention: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    fused_attention: bool = False

    @nn.compact
    def __call__(self, x: Array, time: Array, keep: Array | None = None) -> Array:
        """(batch, height, width, any) and time (batch, 4C) to (batch, height, width, features)."""
        h = Block(self.features, dtype=self.dtype, name="block1")(x)
        shift = Dense(self.features, time.dtype, name="dense")(nn.silu(time))
        h = add(h, shift[:, None, None, :])
        h = Block(self.features, self.dropout, self.dtype, name="block2")(h, keep)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, dtype=self.dtype, name="res_conv")(x)
        h = h + x
        if self.attention:
            h = SelfAttention(self.dtype, self.fused_attention, name="attention")(h)
        return h


class UNet(nn.Module):
    """Noise predictor eps_theta(x_s, s); the defaults are the paper's model.

    That is 25.64 M trained parameters, 25.70 M as the original counts them, with its fixed time
    table of 1000 x C entries among them.

    Encoder: 3x3 convolution to C channels; a level has `num_res_blocks` residual blocks of width
    C x multiple and, but for the last, a 3x3 stride-2 convolution; every output is kept as a skip.
    Bottleneck: a residual block with attention and one without. Decoder, from the deepest level:
    `num_res_blocks` + 1 residual blocks, each on [h, skip], and, but for the last, nearest
    up-sampling and a 3x3 convolution. Source: the PyTorch code of Biroli et al. (2024).

    Attributes:
      channels: channels of the images.
      base_channels: width C of the first level, a multiple of 8.
      multiples: width of each level in units of C.
      attention_levels: the levels with self-attention, counted from 1 (the full resolution).
      num_res_blocks: residual blocks a level of the encoder.
      dropout: probability of dropping a channel in a residual block's second half.
      dtype: compute type; parameters, norms' statistics and softmax stay float32 (or float64).
      fused_attention: use the GPU's fused attention, see `attention`; 16-bit types only.
      remat: keep only the inputs of the residual blocks for the backward pass and compute the rest
        again: less memory, more time, the same gradients.
    """

    channels: int = 3
    base_channels: int = 64
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    attention_levels: tuple[int, ...] = (2, 3)
    num_res_blocks: int = 2
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    fused_attention: bool = False
    remat: bool = False

    def check(self, height: int, width: int, channels: int) -> None:
        """Raises a UserError if the model cannot be, or not with images of this shape."""
        factor = 2 ** (len(self.multiples) - 1)
        if height % factor or width % factor or min(height, width) < factor:
            raise UserError(
                f"images of {height} x {width} pixels don't fit a UNet of {len(self.multiples)} "
                f"levels: both sides must be divisible by {factor}; resize them or give fewer "
                f"multiples"
            )
        if channels != self.channels:
            raise UserError(f"the UNet takes {self.channels} channels, the images have {channels}")
        if self.base_channels < GROUPS or self.base_channels % GROUPS:
            raise UserError(
                f"base_channels = {self.base_channels} must be a multiple of {GROUPS}, the number "
                f"of groups of its norms"
            )
        if not self.multiples or min(self.multiples) < 1 or self.num_res_blocks < 1:
            raise UserError(
                f"the UNet needs at least one level, multiples >= 1 and one residual block a "
                f"level, not multiples = {self.multiples}, num_res_blocks = {self.num_res_blocks}"
            )
        if not set(self.attention_levels) <= set(range(1, len(self.multiples) + 1)):
            raise UserError(
                f"attention_levels = {self.attention_levels} must lie between 1 and the number of "
                f"levels, {len(self.multiples)}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout = {self.dropout} must lie in [0, 1)")

    def cast(self, params: Any) -> Any:
        """The parameters in the types that they are computed in, which changes no result.

        A loop that calls the model often, and changes no parameter, need not cast them each time.

        Args:
          params: the model's parameters.
        """

        def one(path: Any, leaf: Array) -> Array:
            wide = not _WIDE.isdisjoint(key.key for key in path)
            return leaf if wide else leaf.astype(self.dtype)

        return jax.jit(partial(jax.tree.map_with_path, one))(params)

    @nn.compact
    def __call__(self, x: Array, step: Array, dropout_keys: Array | None = None) -> Array:
        """Predicts the noise in x.

        Args:
          x: noisy images (batch, height, width, channels), both sides divisible by 2^(levels-1).
          step: integer steps in 0..999, shape (batch,).
          dropout_keys: one PRNG key an example (batch,) to train with dropout; None: no dropout.

        Returns:
          Predicted noise, shape and dtype of x.

        Raises:
          UserError: the configuration or the images' shape is impossible.
        """
        self.check(*x.shape[1:])
        width, dtype = self.base_channels, self.dtype
        kept: Iterator[Array] | None = None
        if dropout_keys is not None and self.dropout > 0:
            blocks = len(self.multiples) * (2 * self.num_res_blocks + 1) + 2
            widest = width * max(self.multiples)
            kept = iter(kept_channels(dropout_keys, self.dropout, blocks, widest))

        def residual(h: Array, name: str, features: int, attention: bool) -> Array:
            keep = None if kept is None else next(kept)[:, :features]
            make = nn.remat(ResidualBlock) if self.remat else ResidualBlock
            block = make(features, attention, self.dropout, dtype, self.fused_attention, name=name)
            return block(h, time, keep)

        # The time in float32: its few numbers reach all features.
        wide = param_dtype(dtype)
        time = jnp.asarray(sinusoidal_table(width), wide)[step]
        time = Dense(4 * width, wide, name="time_dense1")(time)
        time = Dense(4 * width, wide, name="time_dense2")(nn.gelu(time, approximate=False))

        h = Conv(width, dtype=dtype, name="init_conv")(x)
        skips = [h]
        index = 0
        for level, multiple in enumerate(self.multiples, 1):
            for _ in range(self.num_res_blocks):
                name, attention = f"encoder{index}", level in self.attention_levels
                h = residual(h, name, width * multiple, attention)
                skips.append(h)
                index += 1
            if level < len(self.multiples):
                h = Conv(h.shape[-1], stride=2, dtype=dtype, name=f"encoder{index}")(h)
                skips.append(h)
                index += 1

        h = residual(h, "bottleneck0", h.shape[-1], True)
        h = residual(h, "bottleneck1", h.shape[-1], False)

        index = 0
        for level, multiple in reversed(list(enumerate(self.multiples, 1))):
            for _ in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                name, attention = f"decoder{index}", level in self.attention_levels
                h = residual(h, name, width * multiple, attention)
                index += 1
            if level > 1:
                h = Conv(h.shape[-1], upsample=True, dtype=dtype, name=f"decoder{index}")(h)
                index += 1
        return Block(self.channels, dtype=dtype, name="final_block")(h).astype(x.dtype)
