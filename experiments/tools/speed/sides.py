"""The two models that `benchmark` compares, and what both are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import TrainingConfig
from diffusion_jax.nn import kernels
from diffusion_jax.nn.unet import UNet
from experiments.tools.speed import programs
from experiments.tools.speed.notes import note

if TYPE_CHECKING:  # it needs torch, which may be missing
    from experiments.tools.speed.reference import Reference


@dataclass(frozen=True)
class Sides:
    """The two models with the same weights.

    Attributes:
      model: JAX's, with the device's kernels.
      params: its parameters.
      reference: PyTorch's, or None where JAX is measured alone.
      batch: images per batch.
      fields: the UNet's fields that are not the paper's.
    """

    model: UNet
    params: Any
    reference: "Reference | None"
    batch: int
    fields: Mapping[str, Any]

    def model_in(self, bfloat16: bool) -> UNet:
        """JAX's model in bfloat16 or float32."""
        return self.model.copy(dtype=jnp.bfloat16) if bfloat16 else self.model

    @property
    def config(self) -> TrainingConfig:
        """How both train."""
        return TrainingConfig(batch_size=self.batch)

    def inputs(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Noise (batch, size, size, channels) and steps (batch,)."""
        rng = np.random.default_rng(0)
        shape = (self.batch, size, size, self.model.channels)
        return rng.standard_normal(shape, np.float32), rng.integers(0, 1000, self.batch)

    def images(self, size: int) -> np.ndarray:
        """Images uint8 (batch, size, size, channels)."""
        return programs.pixels(self.batch, size, self.model.channels)


def on_gpu() -> bool:
    """Whether both run on a GPU."""
    return jax.default_backend() == "gpu"


def make_sides(batch: int, threads: int, **fields: Any) -> Sides:
    """Makes both models, or JAX's alone where torch is missing.

    Args:
      batch: images per batch.
      threads: of the reference, as many as JAX takes.
      **fields: the UNet's fields, by default the paper's.
    """
    reference = _reference(threads, fields)
    if reference is None:
        model = UNet(**fields, kernels=kernels.best())
        return Sides(model, programs.drawn_params(model), None, batch, fields)
    return Sides(*reference.weights(), reference, batch, fields)


def _reference(threads: int, fields: Mapping[str, Any]) -> "Reference | None":
    try:
        from experiments.tools.speed.reference import make_reference
    except ModuleNotFoundError as missing:
        note(
            f"{missing.name} is not installed (extra: torch), so JAX is measured alone and "
            f"there are no ratios"
        )
        return None
    return make_reference(on_gpu(), threads, fields)
