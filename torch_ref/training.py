"""The original's loss and training step in PyTorch, all randomness but dropout given."""

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_ref.process import Schedule, diffuse
from torch_ref.unet import UNet


def noise_loss(model: UNet, schedule: Schedule, x_0: Tensor, step: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, eq. 14), a scalar.

    mean |noise - eps_theta(sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) noise, s)|^2

    Args:
      model: the noise predictor.
      schedule: noise schedule of L steps.
      x_0: images (batch, channels, height, width), mean removed.
      step: integer steps (batch,).
      noise: standard normal noise, the shape of x_0.
    """
    return F.mse_loss(model(diffuse(schedule, x_0, step, noise), step), noise)


def make_optimizer(model: UNet) -> torch.optim.Adam:
    """Adam with learning rate 1e-4, betas 0.9 and 0.999, epsilon 1e-8."""
    return torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8)


def train_step(
    model: UNet,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    x_0: Tensor,
    step: Tensor,
    noise: Tensor,
    clip_norm: float | None = None,
) -> float:
    """One update.

    Args:
      model: the noise predictor.
      optimizer: from `make_optimizer`.
      schedule: noise schedule of L steps.
      x_0: images (batch, channels, height, width), mean removed.
      step: integer steps (batch,).
      noise: standard normal noise, the shape of x_0.
      clip_norm: global norm to which larger gradients are scaled down; None: they are not. Torch
        scales by clip_norm/(norm + 1e-6), Optax by clip_norm/norm.

    Returns:
      The loss before the update.
    """
    optimizer.zero_grad()
    loss = noise_loss(model, schedule, x_0, step, noise)
    loss.backward()
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()
