"""Means under softmax weights over more points than fit into memory at once, block by block."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

# Logit of what only fills up a block: finite, as a derivative of it would otherwise be 0 * inf.
_ABSENT = -1e30


def in_blocks(array: Array, size: int, axis: int = 0) -> Array:
    """Splits an axis into blocks (blocks, ..., size, ...), the last one filled up with zeros."""
    count = array.shape[axis]
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -count % size)
    padded = jnp.pad(array, widths)
    split = padded.reshape(*array.shape[:axis], -1, size, *array.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)


def softmax_mean(
    of_block: Callable[[Any], tuple[Array, Array, Callable[[Array], Array]]],
    blocks: Any,
    shape: tuple[int, ...],
    axis: int,
    dtype: DTypeLike,
) -> Array:
    """sum_n e^l_n v_n / sum_n e^l_n, with a running maximum: the blocks change it by rounding only.

    Of all blocks no more than one is in memory, forwards and, as each is computed again there,
    in derivatives backwards, which keep what was summed before each block.

    Args:
      of_block: takes a block, and returns logits l, its points along `axis`; which of them are
        there, an array that broadcasts to theirs; and a function that sums weights like them over
        the points: sum w_n (v_n, 1), shape (*shape[:-1], V + 1).
      blocks: a pytree of arrays whose first axis is that of the blocks.
      shape: of the mean, values last (..., V).
      axis: that of the points among the logits'.
      dtype: of the mean.

    Returns:
      The mean, of that shape.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def add(state: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], None]:
        before, sums = state
        logits, present, summed = of_block(block)
        # It also keeps products apart from reductions, which XLA (0.10.2) miscompiles where it
        # fuses them on the CPU: jax-ml/jax issue 39103.
        logits = jnp.where(present, logits, _ABSENT)
        # The maximum cancels: the mean's derivative does not depend on its own.
        largest = jnp.maximum(before, jax.lax.stop_gradient(jnp.max(logits, axis=axis)))
        weights = jnp.exp(logits - jnp.expand_dims(largest, axis))
        sums = sums * jnp.exp(before - largest)[..., None] + summed(weights)
        return (largest, sums), None

    start = jnp.full(shape[:-1], -jnp.inf, dtype), jnp.zeros((*shape[:-1], shape[-1] + 1), dtype)
    (_, sums), _ = jax.lax.scan(add, start, blocks)
    return sums[..., :-1] / sums[..., -1:]
