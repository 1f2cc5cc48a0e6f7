"""Denoisers: anything that predicts the noise in x_t, a network or a closed form."""

from collections.abc import Callable

from diffusion_jax.denoisers.clipped import ClippedDenoiser
from diffusion_jax.denoisers.equivariant import EquivariantLocalDenoiser
from diffusion_jax.denoisers.exact import EmpiricalDenoiser
from diffusion_jax.denoisers.gaussian import GaussianDenoiser
from diffusion_jax.denoisers.gaussian_classes import GaussianClassesDenoiser
from diffusion_jax.denoisers.guided import GuidanceWeight, GuidedDenoiser, guidance_window
from diffusion_jax.denoisers.local import LocalDenoiser
from diffusion_jax.denoisers.mixture import GaussianMixtureDenoiser
from diffusion_jax.denoisers.protocol import Denoiser, require_steps
from diffusion_jax.denoisers.shifted import ShiftedDenoiser
from diffusion_jax.denoisers.symmetric import SymmetricDenoiser
from diffusion_jax.denoisers.trained import TrainedDenoiser

# Denoisers in closed form that a training set makes, for experiments.cloning --score NAME: each is
# called with the schedule, the points (n, ...), mean removed, and their labels (n,) or None. One
# that has an argument `patch` takes --patch.
DENOISERS: dict[str, Callable[..., Denoiser]] = {
    "exact": EmpiricalDenoiser.fit,
    "gaussian": lambda schedule, points, labels: GaussianDenoiser.fit(schedule, points),
    "classes": GaussianClassesDenoiser.fit,
    "local": LocalDenoiser.fit,
    "equivariant": EquivariantLocalDenoiser.fit,
}

__all__ = [
    "DENOISERS",
    "ClippedDenoiser",
    "Denoiser",
    "EmpiricalDenoiser",
    "EquivariantLocalDenoiser",
    "GaussianClassesDenoiser",
    "GaussianDenoiser",
    "GaussianMixtureDenoiser",
    "GuidanceWeight",
    "GuidedDenoiser",
    "LocalDenoiser",
    "ShiftedDenoiser",
    "SymmetricDenoiser",
    "TrainedDenoiser",
    "guidance_window",
    "require_steps",
]
