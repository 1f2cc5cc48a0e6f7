"""Backward processes: the samplers, the loop that runs any of them, and likelihoods."""

from diffusion_jax.sampling.ancestral import AncestralSampler
from diffusion_jax.sampling.loop import START, Sampler, normal, sample, sampling_loop
from diffusion_jax.sampling.ode import DDIMSampler, DPMSolver2M

__all__ = [
    "START",
    "AncestralSampler",
    "DDIMSampler",
    "DPMSolver2M",
    "Sampler",
    "normal",
    "sample",
    "sampling_loop",
]
