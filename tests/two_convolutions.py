"""A model that compiles at once, in place of the UNet; as a program, training with it."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from unrendered import render_nothing

from diffusion_jax.config import ModelConfig
from diffusion_jax.nn.dropout import channel_dropout, kept_channels
from experiments import train_lsun


class TwoConvolutions(nn.Module):
    channels: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def check(self, *shape):
        pass

    def cast(self, params):
        return params

    @nn.compact
    def __call__(self, x_t, step, dropout_keys=None):
        hidden = nn.tanh(nn.Conv(4, (3, 3), dtype=self.dtype, name="first")(x_t))
        if self.dropout > 0 and dropout_keys is not None:
            (keep,) = kept_channels(dropout_keys, self.dropout, 1, hidden.shape[-1])
            hidden = channel_dropout(hidden, self.dropout, keep)
        last = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="last")
        return last(hidden).astype(x_t.dtype)


def build(config, channels):
    """In place of ModelConfig.build."""
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else jnp.float32
    return TwoConvolutions(channels, dtype=dtype)


if __name__ == "__main__":
    ModelConfig.build = build
    render_nothing()
    train_lsun.main()
