"""The UNet that predicts the noise: the original model's architecture, in Flax linen and NHWC."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.errors import UserError
from diffusion_jax.nn.dropout import channel_dropout, kept_channels
from diffusion_jax.nn.layers import GROUPS, Conv, Dense, GroupNorm, param_dtype
from diffusion_jax.nn.plain import PLAIN, Kernels

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


def time_embedding(channels: int, dtype: DTypeLike, step: Array) -> Array:
    """The rows of `sinusoidal_table`, (batch, channels).

    Under jax.jit steps are not known, and a check of them would cost every call something: there
    the row of a step that the table lacks is NaN, and with it all that is predicted at that step.

    Raises:
      UserError: a step that the table lacks, where steps are known.
    """
    if not isinstance(step, jax.core.Tracer) and getattr(step, "is_fully_addressable", True):
        known = np.asarray(step)
        if known.size and not 0 <= known.min() <= known.max() < TIME_STEPS:
            raise UserError(
                f"steps from {known.min()} to {known.max()} are not all in 0..{TIME_STEPS - 1}, "
                f"the rows of the UNet's time table"
            )
    # A row of NaN on both sides, to which all that lies beyond is clipped.
    table = np.pad(sinusoidal_table(channels), ((1, 1), (0, 0)), constant_values=np.nan)
    with jax.debug_nans(False):  # whoever looks for NaN has not found one here
        rows = jnp.asarray(table, dtype)
    step = jnp.asarray(step)
    place = (step if step.dtype.itemsize >= 4 else step.astype(jnp.int32)) + 1
    return rows.at[place].get(mode="clip", wrap_negative_indices=False)


class Block(nn.Module):
    """GroupNorm - SiLU - channel dropout - 3x3 convolution."""

    features: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    kernels: Kernels = PLAIN

    @nn.compact
    def __call__(self, h: Array, keep: Array | None = None) -> Array:
        """(batch, height, width, any) to (batch, height, width, features), dropping channels."""
        h = GroupNorm(self.dtype, silu=True, kernels=self.kernels, name="norm")(h)
        if keep is not None:
            h = channel_dropout(h, self.dropout, keep)
        return Conv(self.features, dtype=self.dtype, kernels=self.kernels, name="conv")(h)


class SelfAttention(nn.Module):
    """GroupNorm, 4-head self-attention over the pixels with packed q, k, v, and the residual."""

    dtype: DTypeLike = jnp.float32
    kernels: Kernels = PLAIN

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(batch, height, width, channels) to the same shape."""
        batch, height, width, channels = h.shape
        dense = partial(
            Dense, dtype=self.dtype, bias_init=nn.initializers.zeros, kernels=self.kernels
        )
        pixels = GroupNorm(self.dtype, kernels=self.kernels, name="norm")(h)
        pixels = pixels.reshape(batch, height * width, channels)
        # PyTorch's MultiheadAttention: Xavier over the packed (3C, C) weight, both biases zero.
        xavier = nn.initializers.xavier_uniform()
        qkv = dense(3 * channels, kernel_init=xavier, name="in_proj")(pixels)
        q, k, v = jnp.split(qkv.reshape(batch, -1, 3 * HEADS, channels // HEADS), 3, axis=2)
        out = self.kernels.attention(q, k, v).reshape(pixels.shape)
        return h + dense(channels, name="out_proj")(out).reshape(h.shape)


class ResidualBlock(nn.Module):
    """Two blocks with the time added between them, the residual, and attention where asked."""

    features: int
    attention: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    kernels: Kernels = PLAIN

    @nn.compact
    def __call__(self, x: Array, time: Array, keep: Array | None = None) -> Array:
        """(batch, height, width, any) and time (batch, 4C) to (batch, height, width, features)."""
        both: dict[str, Any] = {"dtype": self.dtype, "kernels": self.kernels}
        h = Block(self.features, **both, name="block1")(x)
        shift = Dense(self.features, time.dtype, kernels=self.kernels, name="dense")(nn.silu(time))
        h = self.kernels.add(h, shift[:, None, None, :])
        h = Block(self.features, self.dropout, **both, name="block2")(h, keep)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, **both, name="res_conv")(x)
        h = h + x
        return SelfAttention(**both, name="attention")(h) if self.attention else h


_Blocks = list[Conv | ResidualBlock]


class UNet(nn.Module):
    """Noise predictor eps_theta(x_s, s); the defaults are the paper's model.

    That is 25.64 M trained parameters, 25.70 M as the original counts them, with its fixed time
    table of 1000 x C entries among them.

    Encoder: 3x3 convolution to C channels; a level has `num_res_blocks` residual blocks of width
    C x multiple and, except for the last, a 3x3 stride-2 convolution; every output is kept as a
    skip.
    Bottleneck: a residual block with attention and one without. Decoder, from the deepest level:
    `num_res_blocks` + 1 residual blocks, each on [h, skip], and, except for the last, nearest
    up-sampling and a 3x3 convolution. Source: the PyTorch code of Biroli et al. (2024).

    Attributes:
      channels: channels of the images.
      base_channels: width C of the first level, a multiple of 8.
      multiples: width of each level in units of C.
      attention_levels: the levels with self-attention, counted from 1 (the full resolution).
      num_res_blocks: residual blocks per level of the encoder.
      dropout: probability of dropping a channel in a residual block's second half.
      dtype: compute type; parameters, norms' statistics and softmax stay float32 (or float64).
      remat: keep only the inputs of the residual blocks for the backward pass and compute the rest
        again: less memory, more time, the same gradients.
      kernels: what computes the layers: plain JAX, or a device's own functions, which are faster
        there and define reverse differentiation alone. `ModelConfig.build` chooses these.
    """

    channels: int = 3
    base_channels: int = 64
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    attention_levels: tuple[int, ...] = (2, 3)
    num_res_blocks: int = 2
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    kernels: Kernels = PLAIN

    @property
    def num_steps(self) -> int:
        """The steps that the model knows, 0..num_steps - 1."""
        return TIME_STEPS

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
                f"the UNet needs at least one level, multiples >= 1 and one residual block per "
                f"level, not multiples = {self.multiples}, num_res_blocks = {self.num_res_blocks}"
            )
        if not set(self.attention_levels) <= set(range(1, len(self.multiples) + 1)):
            raise UserError(
                f"attention_levels = {self.attention_levels} must lie between 1 and the number of "
                f"levels, {len(self.multiples)}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout = {self.dropout} must lie in [0, 1)")

    def plain(self) -> "UNet":
        """The same model in plain JAX, which has jax.jvp, jax.linearize and jax.hessian."""
        return self.clone(kernels=PLAIN)

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

    def blocks(self) -> tuple[_Blocks, _Blocks, _Blocks]:
        """Encoder, bottleneck and decoder: residual blocks, and convolutions that resize.

        Residual blocks are called in this order, by which each has its dropout mask.
        """
        make = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        both: dict[str, Any] = {"dtype": self.dtype, "kernels": self.kernels}

        def residual(blocks: _Blocks, name: str, features: int, attention: bool) -> None:
            name = f"{name}{len(blocks)}"
            blocks.append(make(features, attention, self.dropout, **both, name=name))

        widths = [self.base_channels * multiple for multiple in self.multiples]
        levels = list(enumerate(widths, 1))
        encoder: _Blocks = []
        for level, width in levels:
            for _ in range(self.num_res_blocks):
                residual(encoder, "encoder", width, level in self.attention_levels)
            if level < len(levels):
                encoder.append(Conv(width, stride=2, **both, name=f"encoder{len(encoder)}"))

        bottleneck: _Blocks = []
        residual(bottleneck, "bottleneck", widths[-1], attention=True)
        residual(bottleneck, "bottleneck", widths[-1], attention=False)

        decoder: _Blocks = []
        for level, width in reversed(levels):
            for _ in range(self.num_res_blocks + 1):
                residual(decoder, "decoder", width, level in self.attention_levels)
            if level > 1:
                decoder.append(Conv(width, upsample=True, **both, name=f"decoder{len(decoder)}"))
        return encoder, bottleneck, decoder

    @nn.compact
    def __call__(self, x: Array, step: Array, dropout_keys: Array | None = None) -> Array:
        """Predicts the noise in x.

        Args:
          x: noisy images (batch, height, width, channels), both sides divisible by 2^(levels-1).
          step: integer steps in 0..999, shape (batch,); see `time_embedding` for others.
          dropout_keys: one PRNG key per example (batch,) to train with dropout; None: no dropout.

        Returns:
          Predicted noise, shape and dtype of x.

        Raises:
          UserError: the configuration, the images' shape or a step is impossible.
        """
        self.check(*x.shape[1:])
        width, wide = self.base_channels, param_dtype(self.dtype)
        both: dict[str, Any] = {"dtype": self.dtype, "kernels": self.kernels}
        # The time in float32: its few numbers reach all features.
        dense = partial(Dense, 4 * width, wide, kernels=self.kernels)
        time = dense(name="time_dense1")(time_embedding(width, wide, step))
        time = dense(name="time_dense2")(nn.gelu(time, approximate=False))

        encoder, bottleneck, decoder = self.blocks()
        masks = self._masks([*encoder, *bottleneck, *decoder], dropout_keys)

        def run(block: Conv | ResidualBlock, h: Array) -> Array:
            return block(h) if isinstance(block, Conv) else block(h, time, masks.get(block.name))

        h = Conv(width, **both, name="init_conv")(x)
        skips = [h]
        for block in encoder:
            h = run(block, h)
            skips.append(h)
        for block in bottleneck:
            h = run(block, h)
        for block in decoder:
            if not isinstance(block, Conv):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = run(block, h)
        return Block(self.channels, **both, name="final_block")(h).astype(x.dtype)

    def _masks(self, blocks: _Blocks, keys: Array | None) -> dict[str | None, Array]:
        """The channels that dropout leaves in each residual block, (batch, features), by name."""
        if keys is None or self.dropout == 0:
            return {}
        residual = [block for block in blocks if not isinstance(block, Conv)]
        widest = max(block.features for block in residual)
        kept = kept_channels(keys, self.dropout, len(residual), widest)
        return {b.name: keep[:, : b.features] for b, keep in zip(residual, kept, strict=True)}
