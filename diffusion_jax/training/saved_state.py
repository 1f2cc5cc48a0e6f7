"""The train state as a checkpoint holds it: the model's arrays by their names."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from diffusion_jax.training.step import TrainState

# What checkpoints say of their optimizer state; without it they are of an earlier form.
VECTORS = "vectors"


@struct.dataclass
class SavedState:
    """`TrainState`, its parameters and their average as the model takes them.

    The attributes are those of `TrainState`, `params` and `ema_params` pytrees. So a checkpoint is
    read without the network that it is of.
    """

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    key: Any


def to_saved(state: TrainState) -> SavedState:
    """Copies a train state to the host, in a few large pieces.

    Args:
      state: whole on every device. It may be donated afterwards.

    Returns:
      NumPy arrays, but for the key.
    """
    like = jax.eval_shape(state.unravel, state.flat_params)

    def host(leaf: Array) -> np.ndarray:
        return np.array(leaf.addressable_data(0))

    return SavedState(
        step=host(state.step),
        params=_cut(host(state.flat_params), like),
        ema_params=_cut(host(state.flat_ema_params), like),
        opt_state=jax.tree.map(host, state.opt_state),
        key=state.key,
    )


def _cut(vector: np.ndarray, like: Any) -> Any:
    """The pytree of arrays that lie end to end in a vector: `ravel_pytree`'s inverse, of views."""
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = (
        part.reshape(leaf.shape).astype(leaf.dtype, copy=False)
        for part, leaf in zip(parts, leaves, strict=True)
    )
    return jax.tree.unflatten(structure, shaped)


def structure_of(like: TrainState, saved: dict[str, Any]) -> SavedState:
    """The structure of a checkpoint's arrays, which may be an earlier version's.

    That kept an array of the optimizer's for each parameter, in place of one vector.

    Args:
      like: a train state as it is today, or its shapes.
      saved: the checkpoint's metadata.
    """
    params = jax.eval_shape(like.unravel, like.flat_params)
    opt_state = like.opt_state
    if saved.get("optimizer_state") != VECTORS:
        opt_state = jax.tree.map(lambda leaf: params if leaf.ndim == 1 else leaf, opt_state)
    return SavedState(like.step, params, params, opt_state, like.key)


def from_saved(saved: SavedState, like: TrainState) -> TrainState:
    """The train state of a checkpoint's arrays, on the devices that they are on.

    Args:
      saved: arrays of the structure `structure_of`.
      like: a train state as it is today, or its shapes.
    """
    ravel = jax.jit(lambda tree: ravel_pytree(tree)[0])
    return dataclasses.replace(
        like,
        step=saved.step,
        flat_params=ravel(saved.params),
        flat_ema_params=ravel(saved.ema_params),
        opt_state=jax.tree.map(
            lambda leaf, tree: ravel(tree) if leaf.ndim == 1 else tree,
            like.opt_state,
            saved.opt_state,
        ),
        key=saved.key,
    )
