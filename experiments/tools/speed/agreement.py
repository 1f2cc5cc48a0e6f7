"""Holds the two models against each other: models that disagree are not timed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from diffusion_jax.errors import UserError
from experiments.tools.speed.programs import Program
from experiments.tools.speed.sides import on_gpu

if TYPE_CHECKING:  # it needs torch, which may be missing
    from experiments.tools.speed.reference import Call

# What float32 may differ by on a GPU, where both round products to TF32, and bfloat16.
COARSE = 0.05


def gradients(size: int, channels: int, fields: Mapping[str, Any]) -> dict[str, float]:
    """Errors of a model's output, loss and gradients; see `torch_ref.compare.compare_model`.

    Args:
      size: pixels per side.
      channels: of an image.
      fields: the UNet's.

    Raises:
      UserError: one is over the parity bounds.
    """
    from torch_ref import compare

    model = compare.perturbed(**fields)
    arrays = compare.batch(0, channels, size, size, num=1)
    with jax.default_matmul_precision("highest"):
        errors = compare.compare_model(model, arrays)
    return _checked(f"{size} px", errors, compare.BOUNDS["float32"])


def outputs(name: str, program: Program, call: "Call") -> dict[str, float]:
    """The error of a forward pass as it is timed.

    Args:
      name: of its row.
      program: JAX's.
      call: the reference's.

    Raises:
      UserError: it is over its bound.
    """
    from torch_ref.compare import BOUNDS, nhwc, relative_error

    want = nhwc(call().float().cpu().contiguous())
    error = relative_error(np.asarray(program.call()), want)
    bound = COARSE if on_gpu() else BOUNDS["float32"]["output"]
    return _checked(name, {"output": error}, {"output": bound})


def _checked(
    what: str, errors: Mapping[str, float], bounds: Mapping[str, float]
) -> dict[str, float]:
    for name, error in errors.items():
        if not error <= bounds[name]:
            raise UserError(
                f"the two models disagree, so nothing is timed: {what}, {name}: relative "
                f"error {error:.2g}, allowed {bounds[name]:.0e}; see python -m experiments.parity"
            )
    return dict(errors)
