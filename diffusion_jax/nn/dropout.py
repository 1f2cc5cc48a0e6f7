"""Dropout of whole channels, with masks that are an example's own."""

import jax
import jax.numpy as jnp
from jax import Array


def kept_channels(keys: Array, rate: float, blocks: int, channels: int) -> Array:
    """The channels that dropout leaves, (blocks, batch, channels), of all blocks in one draw.

    Args:
      keys: one PRNG key per example (batch,), so that an example's mask does not depend on the
        device that computes it.
      rate: probability of dropping, in [0, 1).
      blocks: how many masks an example has.
      channels: of the widest block.
    """
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (blocks, channels)))
    return jnp.swapaxes(draw(keys), 0, 1)


def channel_dropout(h: Array, rate: float, keep: Array) -> Array:
    """Drops whole channels and scales the rest by 1/(1 - rate).

    Args:
      h: features (batch, height, width, channels).
      rate: probability of dropping, in [0, 1).
      keep: the channels that stay (batch, channels).
    """
    return jnp.where(keep[:, None, None, :], h / (1 - rate), jnp.zeros_like(h))
