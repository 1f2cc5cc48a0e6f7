"""The published memorised fraction, in PyTorch: what `regimes.neighbours` is held against.

Written from the rule of "Why diffusion models don't memorize" (Bonnaire et al. 2025,
arXiv:2505.17638) as the authors' program applies it: distances in float32 from the differences
themselves, their ratio against 1/3, and a bootstrap over the ratios.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MemorisedFraction:
    """A fraction of the samples, and what is written of it.

    Attributes:
      fraction: of the samples.
      mean: of the fraction over bootstrap resamples, which is the number that the authors write; it
        scatters about the fraction by the standard error over sqrt(resamples).
      standard_error: standard deviation of the fraction over the resamples.
      low: the 2.5 % quantile over the resamples.
      high: the 97.5 % quantile.
    """

    fraction: float
    mean: float
    standard_error: float
    low: float
    high: float


def distance_ratio(samples: Tensor, points: Tensor, chunk: int = 16) -> Tensor:
    """d_1/d_2 of the two smallest Euclidean distances to the training set, plain, not squared.

    Of a sample on a training point that has a copy it is 0/0, NaN.

    Args:
      samples: (N, ...).
      points: training points (n, ...), n >= 2.
      chunk: samples at a time; chunk n d floats are in memory.

    Returns:
      The ratios, in the samples' type (N,).
    """
    flat = points.flatten(1)
    parts = [
        torch.linalg.vector_norm(part[:, None] - flat, dim=2).topk(2, dim=1, largest=False).values
        for part in samples.flatten(1).split(chunk)
    ]
    smallest = torch.cat(parts)
    return smallest[:, 0] / smallest[:, 1]


def memorised(ratio: Tensor) -> Tensor:
    """Whether d_1/d_2 < 1/3 (N,). Not so where it is NaN: a copy of a point that has a copy."""
    return ratio < 1 / 3


def memorised_fraction(ratio: Tensor, seed: int, num_resamples: int = 1000) -> MemorisedFraction:
    """The fraction of samples that are memorised, and its bootstrap.

    Where none is, all is 0: the authors draw no resamples then, which would all give 0 too.

    Args:
      ratio: `distance_ratio` of the samples (N,).
      seed: of the resamples, each of N samples with replacement.
      num_resamples: at least 2.
    """
    flags = memorised(ratio).double()
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            flags[torch.randint(len(flags), (len(flags),), generator=generator)].mean()
            for _ in range(num_resamples)
        ]
    )
    ends = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype))
    return MemorisedFraction(
        float(flags.mean()), float(means.mean()), float(means.std()), float(ends[0]), float(ends[1])
    )
