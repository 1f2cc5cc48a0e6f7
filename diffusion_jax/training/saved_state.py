"""The train state as a checkpoint holds it, today and in earlier versions."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import pytrees
from diffusion_jax.training.step import TrainState

# Of what a checkpoint holds; its metadata say which, as `format`. Raise it with every change, and
# teach `upgrade` the one before.
#   0  an array of the optimizer's for each parameter; its metadata name no format
#   1  a vector of the optimizer's for all parameters, which the metadata call
#      {"optimizer_state": "vectors"}
#   2  the same, and the metadata name the format
FORMAT = 2


@pytrees.dataclass
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
      NumPy arrays, except for the key.
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


def upgrade(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's metadata as today's code takes them, whichever version wrote them.

    Args:
      saved: the metadata as they are saved; see `run.metadata_of`.

    Returns:
      The same with `format`, the one of the checkpoint's arrays, and with a `fingerprint`, None
      where none was kept.

    Raises:
      UserError: a newer version wrote them.
    """
    number = 1 if saved.get("optimizer_state") == "vectors" else 0
    known = {"format": number, "fingerprint": None, "network": None}
    upgraded = known | saved
    if upgraded["format"] > FORMAT:
        raise UserError(
            f"the checkpoint was made by a newer version (its format is {upgraded['format']}, and "
            f"this version knows those up to {FORMAT}): update diffusion_jax to use the run"
        )
    return upgraded


def structure_of(like: TrainState, saved: dict[str, Any]) -> SavedState:
    """The structure of a checkpoint's arrays, which may be an earlier version's.

    Args:
      like: a train state as it is today, or its shapes.
      saved: the checkpoint's metadata.

    Raises:
      UserError: see `upgrade`.
    """
    params = jax.eval_shape(like.unravel, like.flat_params)
    opt_state = like.opt_state
    if upgrade(saved)["format"] == 0:
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
