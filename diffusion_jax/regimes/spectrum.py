"""The spectrum of the data's covariance, and what it says about the forward process.

With eigenvalues lambda_i of the data's covariance C_0, the covariance of x_t has the same modes and

    eigenvalues lambda_i e^-2t + Delta_t,   Delta_t = 1 - e^-2t.

Everything works on the data itself, a block of rows at a time: neither the d x d covariance nor,
for large data, a float copy of them is formed.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import eigvalsh, eigvalsh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh

from diffusion_jax.covariance import Rows, gram
from diffusion_jax.regimes.curves import Estimate


class Covariance(Protocol):
    """A covariance matrix of size d that is known by its products, as `Rows` know theirs."""

    @property
    def n(self) -> int:
        """Number of images."""

    @property
    def d(self) -> int:
        """Its size."""

    def covariance_product(self, v: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """C v of vectors (d, k), float32; see `Rows`."""


def eigenmodes(rows: Covariance, num_modes: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of the covariance and their modes, by Lanczos iteration.

    Args:
      rows: the data, or what else gives the products.
      num_modes: how many, less than d.

    Returns:
      Eigenvalues, decreasing (k,), in squared pixel units of the [0, 1] scale, and unit modes
      (k, d).
    """
    d = rows.d
    if d == 1:
        return rows.covariance_product(np.ones((1, 1)))[0].astype(float), np.ones((1, 1))
    start = np.random.default_rng(0).standard_normal(d)
    if not np.any(rows.covariance_product(start[:, None])):
        return np.zeros(num_modes), np.eye(num_modes, d)
    operator = LinearOperator(
        (d, d),
        matvec=lambda v: rows.covariance_product(v.reshape(d, 1))[:, 0],
        dtype=np.float32,
    )
    # A small subspace: each product passes over the whole data.
    subspace = min(d, max(8, 2 * num_modes + 1))
    values, modes = eigsh(operator, k=num_modes, ncv=subspace, v0=start, tol=1e-5)
    return np.maximum(values[::-1], 0).astype(float), modes.T[::-1]


def signed(modes: np.ndarray) -> np.ndarray:
    """Modes (k, d) in the sign in which the largest component is positive."""
    largest = np.take_along_axis(modes, np.abs(modes).argmax(axis=1)[:, None], axis=1)
    return np.where(largest < 0, -modes, modes)


def largest_eigenvalue(images: np.ndarray, all_channels: bool = False) -> float:
    """Largest eigenvalue Lambda of the covariance of the flattened images.

    C = 1/(n - 1) sum_i (a_i - mean)(a_i - mean)^T, with a_i the pixels in [0, 1].

    Args:
      images: (n, height, width, channels) or (n, d); uint8 is scaled to [0, 1].
      all_channels: all channels flattened together; by default the first alone, as in the values
        that Biroli et al. (2024) publish.

    Returns:
      Lambda, in squared pixel units of the [0, 1] scale; 0 for constant images.

    Raises:
      UserError: fewer than two images.
    """
    return float(eigenmodes(Rows(images, all_channels), 1)[0][0])


def full_spectrum(rows: Rows) -> np.ndarray:
    """All eigenvalues that can differ from zero, min(n, d) of them, decreasing.

    From the smaller of the covariance (d x d) and the Gram matrix of the images (n x n), in
    float64.

    Raises:
      UserError: both n and d are over 20 000.
    """
    return np.maximum(eigvalsh(gram(rows) / (rows.n - 1), overwrite_a=True)[::-1], 0)


def resampled(n: int, num_replicates: int, rng: np.random.Generator) -> np.ndarray:
    """How often each image counts in data sets resampled with replacement (num_replicates, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), num_replicates)


def bootstrap_largest_eigenvalue(
    rows: Covariance,
    mode: np.ndarray,
    num_replicates: int = 200,
    seed: int = 0,
    num_steps: int = 12,
) -> np.ndarray:
    """Lambda of data sets resampled with replacement, all replicates at once.

    Each replicate takes some Lanczos steps of its own from the data's first mode, which is nearly
    its own already; the products with the data are shared.

    Args:
      rows: the data.
      mode: the first mode (d,).
      num_replicates: number of resampled data sets.
      seed: of the resampling.
      num_steps: Lanczos steps.

    Returns:
      Lambda in each replicate (num_replicates,).
    """
    rng = np.random.default_rng(seed)
    counts = resampled(rows.n, num_replicates, rng)
    weights = counts.T.astype(np.float32)
    num_steps = min(num_steps, rows.d)
    # A little noise, so that no replicate's first mode is out of reach.
    v = mode[:, None] + 0.01 / math.sqrt(rows.d) * rng.standard_normal((rows.d, num_replicates))
    v /= np.linalg.norm(v, axis=0)
    basis = [v]
    diagonal, off_diagonal = [], []
    for _ in range(num_steps):
        product = rows.covariance_product(basis[-1], weights).astype(np.float64)
        diagonal.append(np.sum(product * basis[-1], axis=0))
        for _ in range(2):  # once is not enough to keep the basis orthogonal
            for u in basis:
                product -= u * np.sum(u * product, axis=0)
        off_diagonal.append(np.linalg.norm(product, axis=0))
        basis.append(product / np.maximum(off_diagonal[-1], 1e-30))
    return np.array(
        [
            eigvalsh_tridiagonal(a, b[:-1], select="i", select_range=(num_steps - 1, num_steps - 1))
            for a, b in zip(np.transpose(diagonal), np.transpose(off_diagonal), strict=True)
        ]
    )[:, 0]


def speciation_time(eigenvalue: float) -> float:
    """t_S = 1/2 log Lambda (Biroli et al. 2024), in Ornstein-Uhlenbeck time.

    NaN where Lambda <= 1: at no time t > 0 is the signal of the first mode, Lambda e^-2t, 1.
    """
    return 0.5 * math.log(eigenvalue) if eigenvalue > 1 else math.nan


def mode_times(eigenvalues: np.ndarray) -> np.ndarray:
    """The time at which signal and noise of each mode are equal, lambda e^-2t = Delta_t.

    t_i = 1/2 log(1 + lambda_i), which is not t_S = 1/2 log Lambda.
    """
    return 0.5 * np.log1p(eigenvalues)


def eigenvalues_at(eigenvalues: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance of x_t, lambda_i e^-2t + Delta_t, shape (T, modes)."""
    times = np.asarray(times)[:, None]
    return eigenvalues * np.exp(-2 * times) - np.expm1(-2 * times)


@dataclass(frozen=True)
class SquaredNorm:
    """E|x_t|^2 = d + e^-2t (E|a|^2 - d).

    Attributes:
      dimension: d.
      initial: E|a|^2 of the data as the process starts from them; the mean image counts, so that
        this is not the covariance's trace.
    """

    dimension: int
    initial: float

    def at(self, times: np.ndarray) -> np.ndarray:
        """E|x_t|^2 (T,)."""
        return self.dimension + np.exp(-2 * np.asarray(times)) * (self.initial - self.dimension)

    @property
    def critical_point(self) -> str:
        """Where the derivative in t vanishes: "everywhere" if E|a|^2 = d, else "nowhere"."""
        return "everywhere" if math.isclose(self.initial, self.dimension) else "nowhere"


def speciation_estimate(
    eigenvalue: float, replicates: np.ndarray
) -> tuple[Estimate, Estimate, float]:
    """Lambda and t_S = 1/2 log Lambda with 95 % bootstrap intervals, and their bias.

    log Lambda plus and minus 1.96 standard deviations of its replicates. Sampling shifts the
    largest eigenvalue upwards, as resampling does again; where no mode stands out or images are
    few, by more than the interval: the replicates' mean tells.

    Args:
      eigenvalue: Lambda.
      replicates: from `bootstrap_largest_eigenvalue`.

    Returns:
      Lambda, t_S, and how many standard deviations the replicates lie above log Lambda in the mean.
      NaN ends where the images are so few that resampling leaves copies of a single one. t_S is
      NaN throughout where Lambda <= 1; where the interval of Lambda alone reaches down to 1, that
      of t_S begins at 0.
    """
    center = math.log(eigenvalue)
    low, high, shift = math.nan, math.nan, math.inf
    if np.mean(replicates <= 1e-6 * eigenvalue) <= 0.025:
        logs = np.log(np.maximum(replicates, 1e-6 * eigenvalue))
        deviation = float(np.std(logs, ddof=1))
        low, high = center - 1.96 * deviation, center + 1.96 * deviation
        shift = (float(np.mean(logs)) - center) / deviation
    lam = Estimate(*(math.exp(end) for end in (center, low, high)))
    t_S = Estimate(math.nan, math.nan, math.nan)
    if eigenvalue > 1:
        t_S = Estimate(center / 2, low / 2 if not low < 0 else 0.0, high / 2)
    return lam, t_S, shift
