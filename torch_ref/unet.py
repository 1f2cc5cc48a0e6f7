"""The original UNet of Biroli et al. (2024) in PyTorch, NCHW: what the Flax model must equal.

Its state dict has the names and shapes of the original's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8
HEADS = 4
TIME_STEPS = 1000


def sinusoidal_table(channels: int, dtype: torch.dtype) -> Tensor:
    """Time embedding of the steps 0..999, shape (1000, channels).

    Row s is [sin(s w_0), ..., sin(s w_k), cos(s w_0), ..., cos(s w_k)], k = channels/2 - 1, with
    w_i = exp(-log(10000) i/k). The w_i and the angles s w_i are rounded to float32 whatever the
    type of the table, since the original rounded them: that is a part of its model.
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32) * (-math.log(10000) / (half - 1))
    frequency = exponent.double().exp().float()
    angle = (torch.arange(TIME_STEPS, dtype=torch.float32)[:, None] * frequency).to(dtype)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """The step's sinusoids through a perceptron with the exact GELU: (batch,) to (batch, 4C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        table = sinusoidal_table(channels, torch.get_default_dtype())
        self.time_mlp = nn.Sequential(
            nn.Embedding.from_pretrained(table, freeze=True),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, 4 * channels),
        )

    def forward(self, step: Tensor) -> Tensor:
        """Embeds integer steps in 0..999."""
        return self.time_mlp(step)


class Block(nn.Module):
    """GroupNorm - SiLU - dropout of whole channels - 3x3 convolution."""

    def __init__(self, in_channels: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, in_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, channels, height, width)."""
        return self.conv(self.dropout(F.silu(self.norm(h))))


class SelfAttention(nn.Module):
    """GroupNorm, 4-head self-attention over the pixels, and the residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, channels)
        self.mhsa = nn.MultiheadAttention(channels, HEADS, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same shape."""
        pixels = self.group_norm(h).flatten(2).transpose(1, 2)
        out, _ = self.mhsa(pixels, pixels, pixels, need_weights=False)
        return h + out.transpose(1, 2).reshape(h.shape)


class ResidualBlock(nn.Module):
    """Two blocks with the time added between them, the residual, and attention where asked."""

    def __init__(
        self, in_channels: int, channels: int, time_channels: int, attention: bool, dropout: float
    ) -> None:
        super().__init__()
        self.block1 = Block(in_channels, channels)
        self.dense = nn.Linear(time_channels, channels)
        self.block2 = Block(channels, channels, dropout)
        same = in_channels == channels
        self.res_conv = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)
        self.attention = SelfAttention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Images (batch, in_channels, height, width), time (batch, time_channels)."""
        h = self.block1(x) + self.dense(F.silu(time))[:, :, None, None]
        return self.attention(self.block2(h) + self.res_conv(x))


class Downsample(nn.Module):
    """3x3 convolution with stride 2, padded by 1 on every side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, channels, height, width) to half the height and width."""
        return self.downsample(h)


class Upsample(nn.Module):
    """Nearest up-sampling by 2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, h: Tensor) -> Tensor:
        """(batch, channels, height, width) to twice the height and width."""
        return self.upsample(h)


class UNet(nn.Module):
    """Noise predictor eps_theta(x_s, s), 25.70 M parameters by default.

    Encoder: 3x3 convolution to C channels; per level `num_res_blocks` residual blocks and, but for
    the last, a down-sampling; every output is kept as a skip. Bottleneck: a residual block with
    attention, one without. Decoder, from the deepest level: `num_res_blocks` + 1 residual blocks,
    each on [h, skip], and, except for the last, an up-sampling.
    """

    def __init__(
        self,
        channels: int = 3,
        base_channels: int = 64,
        multiples: Sequence[int] = (1, 2, 4, 4),
        attention_levels: Sequence[int] = (2, 3),
        num_res_blocks: int = 2,
        dropout: float = 0.1,
    ) -> None:
        """Makes the model with torch's default initial values.

        Args:
          channels: channels of the images.
          base_channels: width C of the first level, a multiple of 8.
          multiples: width of each level in units of C.
          attention_levels: the levels with self-attention, counted from 1 (the full resolution).
          num_res_blocks: residual blocks a level of the encoder.
          dropout: probability of dropping a channel in a residual block's second half.
        """
        super().__init__()
        width, time_channels = base_channels, 4 * base_channels

        def residual(in_channels: int, channels: int, attention: bool) -> ResidualBlock:
            return ResidualBlock(in_channels, channels, time_channels, attention, dropout)

        self.time_embeddings = TimeEmbedding(base_channels)
        self.init_conv = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder_blocks = nn.ModuleList()
        skips = [width]
        for level, multiple in enumerate(multiples, 1):
            for _ in range(num_res_blocks):
                out = base_channels * multiple
                self.encoder_blocks.append(residual(width, out, level in attention_levels))
                width = out
                skips.append(width)
            if level < len(multiples):
                self.encoder_blocks.append(Downsample(width))
                skips.append(width)

        self.bottleneck_blocks = nn.ModuleList(
            [residual(width, width, True), residual(width, width, False)]
        )

        self.decoder_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(multiples, 1))):
            for _ in range(num_res_blocks + 1):
                out, attention = base_channels * multiple, level in attention_levels
                self.decoder_blocks.append(residual(width + skips.pop(), out, attention))
                width = out
            if level > 1:
                self.decoder_blocks.append(Upsample(width))
        self.final_block = Block(width, channels)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Predicts the noise in x.

        Args:
          x: noisy images (batch, channels, height, width), sides divisible by 2^(levels-1).
          step: integer steps in 0..999, shape (batch,).

        Returns:
          Predicted noise, the shape of x.
        """
        time = self.time_embeddings(step)
        h = self.init_conv(x)
        skips = [h]
        for block in self.encoder_blocks:
            h = block(h) if isinstance(block, Downsample) else block(h, time)
            skips.append(h)
        for block in self.bottleneck_blocks:
            h = block(h, time)
        for block in self.decoder_blocks:
            if isinstance(block, Upsample):
                h = block(h)
            else:
                h = block(torch.cat([h, skips.pop()], dim=1), time)
        return self.final_block(h)
