"""In which order a training learns the data's modes: the variance of samples along each of them.

Of a linear network trained on a Gaussian, the mode of variance l is learned after a number of
updates that falls with l, as 1/l for gradient descent at a small rate (Wang & Pehlevan 2025,
arXiv:2503.03206): in order of variance.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import Curve, Estimate, average

# Of its variance, at which a mode counts as learned.
HALF = 0.5


@dataclass(frozen=True)
class LearnedModes:
    """Variances of samples along the training set's modes.

    Attributes:
      eigenvalues: variances of the training set along its modes, decreasing (k,).
      curves: of each mode, the samples' variance over that of the training set, against the update;
        `Curve.times` are updates.
      learned: of each mode, the update from which on its variance is at least half of the training
        set's; NaN where it is less at the last one, or never was less.
      at_once: whether it is half or more at every checkpoint (k,).
    """

    eigenvalues: np.ndarray
    curves: list[Curve]
    learned: list[Estimate]
    at_once: np.ndarray


def learned_modes(
    samples: Sequence[np.ndarray],
    updates: Sequence[int],
    modes: np.ndarray,
    eigenvalues: np.ndarray,
    seed: int = 0,
) -> LearnedModes:
    """The variance of each checkpoint's samples along some modes, over the training set's.

    sum_i (v.(x_i - mean x))^2/((N - 1) l), of N samples x_i of a checkpoint. Between checkpoints
    the ratio is a monotone cubic in the logarithm of the update. Intervals are a bootstrap over
    samples, which are one at all updates where they come from one seed.

    Args:
      samples: of each checkpoint (N, ...), N the same for all.
      updates: of the checkpoints (T,), increasing, from 1 on.
      modes: unit vectors of the training set's covariance (k, d).
      eigenvalues: their variances (k,), positive.
      seed: of the bootstrap.

    Raises:
      UserError: fewer than two samples or checkpoints.
    """
    count = min(map(len, samples), default=0)
    if len(samples) < 2 or count < 2:
        raise UserError(
            f"{len(samples)} checkpoints of {count} samples each: variances along training need "
            f"two of both at least"
        )
    along = np.stack([each.reshape(count, -1) @ modes.T.astype(np.float64) for each in samples], 1)
    squares = (along - along.mean(axis=0)) ** 2 * (count / (count - 1) / eigenvalues)
    curves = average(np.asarray(updates, float), np.moveaxis(squares, 2, 0), seed)
    return LearnedModes(
        np.asarray(eigenvalues),
        curves,
        [_for_good(curve) for curve in curves],
        np.array([bool(np.all(curve.mean >= HALF)) for curve in curves]),
    )


def _for_good(curve: Curve) -> Estimate:
    """The last update at which the curve rises to the level, if it ends above."""
    if curve.mean[-1] < HALF:
        return Estimate(np.nan, np.nan, np.nan)
    low = curve.replicates[:, -1:] < HALF
    kept = np.where(low, np.nan, curve.replicates)  # those that end below cross it for no good
    return dataclasses.replace(curve, replicates=kept).crossing(HALF)
