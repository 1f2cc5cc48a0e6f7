"""Denoisers: anything that predicts the noise in x_t, a network or a closed form."""

from collections.abc import Callable

from diffusion_jax.denoisers.clipped import ClippedDenoiser
from diffusion_jax.denoisers.exact import EmpiricalDenoiser
from diffusion_jax.denoisers.mixture import GaussianMixtureDenoiser
from diffusion_jax.denoisers.protocol import Denoiser, require_steps
from diffusion_jax.denoisers.symmetric import SymmetricDenoiser
from diffusion_jax.denoisers.trained import TrainedDenoiser

# Denoisers in closed form that a training set makes, for experiments.cloning --score NAME: each is
# called with the schedule, the points (n, ...), mean removed, and their labels (n,) or None.
DENOISERS: dict[str, Callable[..., Denoiser]] = {
    "exact": EmpiricalDenoiser.fit,
}

__all__ = [
    "DENOISERS",
    "ClippedDenoiser",
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianMixtureDenoiser",
    "SymmetricDenoiser",
    "TrainedDenoiser",
    "require_steps",
]
