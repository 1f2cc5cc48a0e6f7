"""The numbers of classes that come with training points."""

import numpy as np

from diffusion_jax.errors import UserError


def class_counts(labels: np.ndarray, num_points: int) -> np.ndarray:
    """How many points each class has.

    Args:
      labels: classes 0..C-1 (n,).
      num_points: n.

    Returns:
      Integers (C,), none of them zero.

    Raises:
      UserError: another number of labels, one that is no class's number, or a class without points.
    """
    if labels.shape != (num_points,):
        raise UserError(f"labels of shape {labels.shape} for {num_points} training points")
    wrong = labels < 0 if labels.dtype.kind in "iu" else np.ones(num_points, bool)
    if wrong.any():
        value = labels[np.argmax(wrong)]
        raise UserError(f"labels are the numbers of the classes, integers from 0 on, not {value}")
    counts = np.bincount(labels)
    if not counts.all():
        raise UserError(f"class {int(np.argmin(counts))} has no training points")
    return counts
