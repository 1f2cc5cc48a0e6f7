"""Arrays that are kept in files of their own, and made again where they are damaged."""

from pathlib import Path

import numpy as np

from diffusion_jax.runtime.patience import patiently, refusal


def is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file holds a finite array of this shape.

    Raises:
      UserError: the system does not let it be read.
    """
    try:
        found = patiently(path, lambda: np.load(path, allow_pickle=False))
    except Exception as error:  # a damaged file raises almost anything
        if refusal(error) is not None:
            raise
        return False
    return bool(found.shape == shape and np.isfinite(found).all())
