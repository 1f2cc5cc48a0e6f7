"""The published way to the dynamical regimes, in PyTorch: what our speed is measured against.

Written from the formulas of Biroli et al. (2024): the entropy of the noisy data from averages of
log P_t^e, clones of a Gaussian mixture in all d dimensions with every fork time from scratch, and
the largest eigenvalue of a covariance that is formed whole.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LogDensity = Callable[[Tensor, Tensor, float], Tensor]


def log_density_one_by_one(points: Tensor, x: Tensor, time: float) -> Tensor:
    """Log P_t^e at several places, one after the other, from the differences to all points.

    P_t^e(x) = 1/n sum_nu (2 pi Delta_t)^(-d/2) exp(-|x - e^-t a_nu|^2/(2 Delta_t)),
    Delta_t = 1 - e^-2t        (Biroli et al. 2024)

    The published form for images.

    Args:
      points: training points (n, d).
      x: places (N, d).
      time: Ornstein-Uhlenbeck time t > 0.

    Returns:
      log P_t^e at each place (N,), in nats.
    """
    n, d = points.shape
    variance = -math.expm1(-2 * time)
    centres = math.exp(-time) * points
    normalization = math.log(n) + d / 2 * math.log(2 * math.pi * variance)
    values = []
    difference = torch.empty_like(centres)  # used again: a new one costs more than the arithmetic
    for place in x:
        squared = torch.sub(place, centres, out=difference).square_().sum(1)
        values.append(torch.logsumexp(-squared / (2 * variance), 0) - normalization)
    return torch.stack(values)


def log_density_batched(points: Tensor, x: Tensor, time: float, chunk: int = 500) -> Tensor:
    """The same with |x|^2 + |e^-t a|^2 - 2 e^-t x.a, one matrix product a chunk.

    Args:
      points: training points (n, d).
      x: places (N, d).
      time: Ornstein-Uhlenbeck time t > 0.
      chunk: places at a time.

    Returns:
      log P_t^e at each place (N,), in nats.
    """
    n, d = points.shape
    variance = -math.expm1(-2 * time)
    signal = math.exp(-time)
    normalization = math.log(n) + d / 2 * math.log(2 * math.pi * variance)
    norms = signal**2 * points.square().sum(1)
    parts = []
    for part in x.split(chunk):
        squared = part.square().sum(1, keepdim=True) + norms - 2 * signal * part @ points.T
        parts.append(torch.logsumexp(-squared / (2 * variance), 1) - normalization)
    return torch.cat(parts)


def excess_entropy(
    points: Tensor,
    time: float,
    index: Tensor,
    noise: Tensor,
    log_density: LogDensity = log_density_one_by_one,
) -> tuple[float, float]:
    """Excess entropy of the noisy data from an average of log P_t^e over draws.

    f^e = s_sep + E[log P_t^e(x_t)]/d,    x_t = e^-t a_mu + sqrt(Delta_t) z,
    s_sep = alpha + 1/2 log(2 pi Delta_t) + 1/2,    alpha = log(n)/d        (Biroli et al. 2024)

    s_sep is the entropy per dimension of n Gaussians so far apart that they do not overlap: f^e is
    what overlap takes away from it, and runs from 0 at t = 0 to alpha.

    Args:
      points: training points (n, d).
      time: Ornstein-Uhlenbeck time t > 0.
      index: the point mu that each draw starts from (N,).
      noise: the noise z of each draw (N, d).
      log_density: how log P_t^e is computed.

    Returns:
      Mean and standard error, in nats per dimension.
    """
    n, d = points.shape
    variance = -math.expm1(-2 * time)
    x = math.exp(-time) * points[index] + math.sqrt(variance) * noise
    values = log_density(points, x, time).double() / d
    separated = math.log(n) / d + (math.log(2 * math.pi * variance) + 1) / 2
    standard_error = values.std() / math.sqrt(len(values))
    return float(values.mean()) + separated, float(standard_error)


def mixture_backward(
    x: Tensor, centre: Tensor, sigma: float, first: int, last: int, step_size: float
) -> Tensor:
    """Euler-Maruyama steps of the backward process of two balanced Gaussians N(+-m, sigma^2 I).

    x <- x + (x + 2 score(x, t)) eta + sqrt(2 eta) z,    t = k eta for k = first, ..., last + 1,
    score = m e^-t/Gamma_t tanh(e^-t m.x/Gamma_t) - x/Gamma_t,    Gamma_t = 1 + (sigma^2 - 1) e^-2t

    Args:
      x: states at time first * eta (batch, d).
      centre: m (d,).
      sigma: standard deviation of each Gaussian.
      first: number of steps still to go down to t = 0.
      last: the same at the end.
      step_size: eta, in Ornstein-Uhlenbeck time.

    Returns:
      States at time last * eta, the shape of x.
    """
    for k in range(first, last, -1):
        signal = math.exp(-k * step_size)
        gamma = 1 + (sigma**2 - 1) * signal**2
        pull = 2 * step_size * signal / gamma * torch.tanh(signal / gamma * (x @ centre))
        noise = torch.randn_like(x).mul_(math.sqrt(2 * step_size))
        x = noise.add_(x, alpha=1 + step_size * (1 - 2 / gamma)).addr_(pull, centre)
    return x


def mixture_clones(
    centre: Tensor,
    sigma: float,
    fork_time: float,
    num_pairs: int,
    final_time: float = 10.0,
    num_steps: int = 1000,
) -> float:
    """Share of clone pairs that end on the same side, simulated in all d dimensions.

    Every fork time starts anew from noise at `final_time`, in Euler-Maruyama steps of equal size
    (the protocol of Biroli et al. 2024: T = 10, 1000 steps, 10 000 pairs).

    Args:
      centre: m (d,).
      sigma: standard deviation of each Gaussian.
      fork_time: Ornstein-Uhlenbeck time at which two clones part, a multiple of the step.
      num_pairs: pairs of clones.
      final_time: T.
      num_steps: steps from T to 0.

    Returns:
      phi(fork_time).
    """
    step_size = final_time / num_steps
    fork = round(fork_time / step_size)
    x = torch.randn(num_pairs, len(centre), dtype=centre.dtype)
    x = mixture_backward(x, centre, sigma, num_steps, fork, step_size)
    ends = [mixture_backward(x, centre, sigma, fork, 0, step_size) @ centre for _ in range(2)]
    return float(((ends[0] > 0) == (ends[1] > 0)).double().mean())


def largest_eigenvalue(images: Tensor) -> float:
    """Largest eigenvalue of the covariance of flattened images, from the whole d x d matrix.

    Args:
      images: uint8 (n, ...), taken in [0, 1].

    Returns:
      Lambda, in squared pixel units of the [0, 1] scale.
    """
    covariance = torch.cov((images.flatten(1).float() / 255).T)
    values, _ = torch.lobpcg(covariance, k=1)
    return float(values[0])
