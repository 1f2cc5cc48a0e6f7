"""The discrete forward process and the ancestral sampler in PyTorch, all randomness given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """Tables of the noise schedule, each (num_steps,), of torch's default type.

    Attributes:
      beta: variance of the noise that step s adds.
      alpha_bar: prod_{i <= s} (1 - beta_i).
      noise_variance: 1 - alpha_bar.
    """

    beta: Tensor
    alpha_bar: Tensor
    noise_variance: Tensor


def linear_schedule(num_steps: int = 1000) -> Schedule:
    """Linear schedule (Ho et al. 2020): beta from 1e-4 to 2e-2, both ends times 1000/num_steps.

    Computed in float64.
    """
    scale = 1000 / num_steps
    beta = torch.linspace(scale * 1e-4, scale * 2e-2, num_steps, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    dtype = torch.get_default_dtype()
    return Schedule(beta.to(dtype), alpha_bar.to(dtype), (1 - alpha_bar).to(dtype))


def diffuse(schedule: Schedule, x_0: Tensor, step: Tensor, noise: Tensor) -> Tensor:
    """Draws x_t from the forward process in closed form.

    x_t = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) noise        (Ho et al. 2020, eq. 4)

    Args:
      schedule: noise schedule of L steps.
      x_0: clean images (batch, channels, height, width), mean removed.
      step: integer steps s in 0..L-1, shape (batch,).
      noise: standard normal noise, the shape of x_0.
    """
    signal = schedule.alpha_bar[step].sqrt()[:, None, None, None]
    sigma = schedule.noise_variance[step].sqrt()[:, None, None, None]
    return signal * x_0 + sigma * noise


def ancestral_step(
    schedule: Schedule,
    denoiser: Denoiser,
    x: Tensor,
    step: int,
    noise: Tensor,
    faithful: bool = False,
) -> Tensor:
    """One backward step of ancestral sampling with variance beta (Ho et al. 2020, alg. 2).

    x <- (x - beta_s/sqrt(1 - alpha_bar_s) eps(x, s))/sqrt(1 - beta_s) + sqrt(beta_s) z

    Args:
      schedule: noise schedule of L steps.
      denoiser: predicts the noise in x from x and steps (batch,).
      x: state before step s, (batch, channels, height, width).
      step: the step s.
      noise: standard normal noise z, the shape of x.
      faithful: no noise at both steps 1 and 0, as in the original; else at step 0 alone.

    Returns:
      The state after step s.
    """
    beta, sigma = schedule.beta[step], schedule.noise_variance[step].sqrt()
    eps = denoiser(x, torch.full((len(x),), step))
    mean = (x - beta / sigma * eps) / (1 - beta).sqrt()
    return mean + beta.sqrt() * noise if step > int(faithful) else mean


@torch.no_grad()
def ancestral_chain(
    schedule: Schedule, denoiser: Denoiser, x: Tensor, noise: Tensor, faithful: bool = False
) -> Tensor:
    """All steps from L-1 down to 0.

    Args:
      schedule: noise schedule of L steps.
      denoiser: predicts the noise in x from x and steps (batch,).
      x: standard normal noise (batch, channels, height, width).
      noise: that of each step (L, *x.shape), indexed by s.
      faithful: see `ancestral_step`.

    Returns:
      Samples, the shape of x.
    """
    for step in reversed(range(len(schedule.beta))):
        x = ancestral_step(schedule, denoiser, x, step, noise[step], faithful)
    return x
