"""Deterministic samplers: the probability-flow ODE in few steps.

With alpha = e^-t, sigma = sqrt(1 - e^-2t) and lambda = log(alpha/sigma), the ODE that carries the
laws of x_t backwards without noise (Song et al. 2021) reads, for the data that the denoiser
predicts, D(x, t) = (x - sigma eps(x, t))/alpha,

    d(x/sigma)/d lambda = e^lambda D(x, t),

so that a step to lambda + h is exact except for D's change along it:

    x <- (sigma'/sigma) x + alpha' (1 - e^-h) D~,    D~ some mean of D over the step,

primes at the step's end. The samplers take the steps of their schedule; `respacing` makes one of
few steps. After step 0, at sigma' = 0, x is D.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffusion_jax.denoisers import Denoiser
from diffusion_jax.process import noise_to_x_0
from diffusion_jax.runtime import pytrees
from diffusion_jax.sampling.loop import Sampler
from diffusion_jax.schedule import NoiseSchedule


def _predict_data(schedule: NoiseSchedule, denoiser: Denoiser, x: Array, step: Array) -> Array:
    """D = (x - sqrt(1 - alpha_bar_s) eps(x, s))/sqrt(alpha_bar_s)."""
    steps = jnp.full(x.shape[0], step)
    return noise_to_x_0(schedule, denoiser(x, steps), x, steps)


def _exponential_step(schedule: NoiseSchedule, x: Array, data: Array, step: Array) -> Array:
    """(sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D~; alpha' = 1, sigma' = 0 after step 0."""
    end = jnp.maximum(step - 1, 0)
    alpha, variance = schedule.alpha_bar[step] ** 0.5, schedule.noise_variance[step]
    alpha_end = jnp.where(step == 0, 1, schedule.alpha_bar[end] ** 0.5)
    ratio = jnp.where(step == 0, 0, jnp.sqrt(schedule.noise_variance[end] / variance))
    return ratio.astype(x.dtype) * x + (alpha_end - alpha * ratio).astype(x.dtype) * data


@pytrees.dataclass
class DDIMSampler(Sampler):
    """DDIM without noise (Song, Meng & Ermon 2021, eq. 12 with sigma = 0): D~ = D at the start.

    x <- sqrt(alpha_bar_{s-1}) D + sqrt(1 - alpha_bar_{s-1}) eps(x, s)

    The exponential Euler method of the ODE above; of first order in the steps.

    Attributes:
      schedule: noise schedule whose steps are taken.
    """

    schedule: NoiseSchedule

    def step(self, denoiser: Denoiser, state: Array, step: Array, keys: Array) -> Array:
        """See `Sampler`; the keys are not used."""
        data = _predict_data(self.schedule, denoiser, state, step)
        return _exponential_step(self.schedule, state, data, step)


class _TwoStep(NamedTuple):
    """State of a two-step method: D of the step before, and where that was.

    -inf stands for no step before: no step is infinitely long, so nothing is extrapolated from it.
    """

    x: Array
    data: Array
    log_snr: Array


@pytrees.dataclass
class DPMSolver2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): D extrapolated from two steps.

    D~ = D + (h/(2 h_before)) (D - D_before),    h = lambda_{s-1} - lambda_s

    One denoiser call per step, and of second order, except for the first step of a run and step 0,
    where D~ = D.

    Attributes:
      schedule: noise schedule whose steps are taken.
    """

    schedule: NoiseSchedule

    def init(self, x: Array) -> _TwoStep:
        """See `Sampler`."""
        nowhere = jnp.full_like(self.schedule.log_snr[0], -jnp.inf)
        return _TwoStep(x, jnp.zeros_like(x), nowhere)

    def step(self, denoiser: Denoiser, state: _TwoStep, step: Array, keys: Array) -> _TwoStep:
        """See `Sampler`; the keys are not used."""
        x = state.x
        data = _predict_data(self.schedule, denoiser, x, step)
        here = self.schedule.log_snr[step]
        h = self.schedule.log_snr[jnp.maximum(step - 1, 0)] - here  # zero at step 0
        weight = h / (2 * (here - state.log_snr))
        mean = data + weight.astype(x.dtype) * (data - state.data)
        after = _exponential_step(self.schedule, x, mean, step)
        return _TwoStep(after, data, here)

    def output(self, state: _TwoStep) -> Array:
        """See `Sampler`."""
        return state.x
