"""Denoisers: anything that predicts the noise in x_t, a network or a closed form."""

from diffusion_jax.denoisers.exact import EmpiricalDenoiser
from diffusion_jax.denoisers.mixture import GaussianMixtureDenoiser
from diffusion_jax.denoisers.protocol import Denoiser, require_steps
from diffusion_jax.denoisers.trained import TrainedDenoiser

__all__ = [
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianMixtureDenoiser",
    "TrainedDenoiser",
    "require_steps",
]
