"""Backward processes: the samplers, the loop that runs any of them, and likelihoods."""

from diffusion_jax.sampling.ancestral import AncestralSampler
from diffusion_jax.sampling.backward import SAMPLERS, Backward, backward, check_sampler
from diffusion_jax.sampling.loop import (
    START,
    Sampler,
    Start,
    keys_of_step,
    normal,
    pure_noise,
    sample,
    sample_batches,
    sampling_loop,
)
from diffusion_jax.sampling.ode import DDIMSampler, DPMSolver2M
from diffusion_jax.sampling.start import GaussianStart, matched_start

__all__ = [
    "SAMPLERS",
    "START",
    "AncestralSampler",
    "Backward",
    "DDIMSampler",
    "DPMSolver2M",
    "GaussianStart",
    "Sampler",
    "Start",
    "backward",
    "check_sampler",
    "keys_of_step",
    "matched_start",
    "normal",
    "pure_noise",
    "sample",
    "sample_batches",
    "sampling_loop",
]
