"""Denoisers: anything that predicts the noise in x_t, a network or a closed form."""

from collections.abc import Callable

import numpy as np

from diffusion_jax.denoisers.clipped import ClippedDenoiser
from diffusion_jax.denoisers.exact import EmpiricalDenoiser
from diffusion_jax.denoisers.mixture import GaussianMixtureDenoiser
from diffusion_jax.denoisers.protocol import Denoiser
from diffusion_jax.denoisers.trained import TrainedDenoiser
from diffusion_jax.schedule import NoiseSchedule

# Denoisers in closed form that a training set makes, for experiments.cloning --score NAME: each is
# called with the schedule, the points (n, ...), mean removed, and their labels (n,) or None.
DENOISERS: dict[str, Callable[[NoiseSchedule, np.ndarray, np.ndarray | None], Denoiser]] = {
    "exact": EmpiricalDenoiser.fit,
}

__all__ = [
    "DENOISERS",
    "ClippedDenoiser",
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianMixtureDenoiser",
    "TrainedDenoiser",
]
