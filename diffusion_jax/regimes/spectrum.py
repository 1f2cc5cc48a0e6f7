"""The largest eigenvalue of the data's covariance, and the speciation time that follows from it."""

import math

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

_CHUNK_BYTES = 2**28


def largest_eigenvalue(images: np.ndarray, all_channels: bool = False) -> float:
    """Largest eigenvalue Lambda of the covariance of the flattened images.

    C = 1/(n - 1) sum_i (a_i - mean)(a_i - mean)^T, with a_i the pixels in [0, 1]. Found by Lanczos
    iteration from products with the data alone: neither C nor a float copy of the whole data is
    formed.

    Args:
      images: uint8 (n, height, width, channels).
      all_channels: all channels flattened together; by default the first alone, as in the values
        that Biroli et al. (2024) publish.

    Returns:
      Lambda, in squared pixel units of the [0, 1] scale; 0 for constant images.

    Raises:
      ValueError: fewer than two images.
    """
    n = len(images)
    if n < 2:
        raise ValueError(f"a covariance needs at least two images, not {n}")
    rows = (images if all_channels else images[..., :1]).reshape(n, -1)
    d = rows.shape[1]
    chunk = max(1, _CHUNK_BYTES // (4 * d))
    parts = [slice(i, i + chunk) for i in range(0, n, chunk)]
    mean = rows.mean(axis=0, dtype=np.float64) / 255

    def matvec(v: np.ndarray) -> np.ndarray:
        v = v.ravel()
        out = np.zeros(d)
        for part in parts:
            centred = rows[part].astype(np.float32) / np.float32(255) - mean.astype(np.float32)
            out += centred.T @ (centred @ v.astype(np.float32))
        return out / (n - 1)

    if d == 1:
        return float(matvec(np.ones(1))[0])
    start = np.random.default_rng(0).standard_normal(d)
    if not np.any(matvec(start)):
        return 0.0
    operator = LinearOperator((d, d), matvec=matvec, dtype=np.float64)
    # A small subspace: each product passes over the whole data, and eight usually do.
    found = eigsh(operator, k=1, ncv=min(8, d), v0=start, tol=1e-5, return_eigenvectors=False)
    return float(found[0])


def speciation_time(eigenvalue: float) -> float:
    """t_S = 1/2 log Lambda (Biroli et al. 2024), in Ornstein-Uhlenbeck time; -inf for Lambda 0."""
    return 0.5 * math.log(eigenvalue) if eigenvalue > 0 else -math.inf
