"""The Jacobians of the denoisers that have a closed form, on the host in float64.

Each is M = c + sum_i w_i u_i u_i', a number and a few vectors; a d x d matrix is formed only where
there are as many vectors.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from scipy.special import log_softmax

from diffusion_jax.denoisers import (
    EmpiricalDenoiser,
    GaussianClassesDenoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
)
from diffusion_jax.regimes.lanczos import Krylov

# The largest eigenproblem that is solved whole where a few eigenvalues are wanted: fewer than its
# size divided by _FEW.
_DENSE, _FEW = 1500, 8
# Numbers in a block of training points.
_BLOCK = 2**22
# The share of M that what is left out may have.
_NEGLIGIBLE = 1e-14
# Of the iteration, in units of M.
_TOLERANCE = 1e-8

Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


class Level(NamedTuple):
    """e^-2t and Delta of a step."""

    alpha_bar: float
    variance: float

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio, g = e^-2t/Delta."""
        return self.alpha_bar / self.variance

    def opening(self, variance: ArrayLike) -> np.ndarray:
        """M of a Gaussian of a variance l: e^-2t l/(e^-2t l + Delta)."""
        signal = self.alpha_bar * np.asarray(variance, np.float64)
        return np.asarray(signal / (signal + self.variance))


class Modes(NamedTuple):
    """Of M at one x: k eigenvalues, decreasing, vectors (k, d) or None, trace, and residuals."""

    values: np.ndarray
    vectors: np.ndarray | None
    trace: float
    residuals: np.ndarray


def leading_modes(
    constant: float,
    blocks: Blocks,
    count: int,
    dimension: int,
    leading: int,
    vectors: bool,
    trace: float,
) -> Modes:
    """The k largest eigenvalues of c + sum_i w_i u_i u_i'.

    From the products of the u_i where they are fewer than d, or their QR decomposition for vectors
    and negative w_i; from the d x d matrix where they are more. Where both are over 1 500 and k is
    less than an eighth of them, by Lanczos' method, in the memory of a block, to a residual of
    1e-8.

    Args:
      constant: c.
      blocks: yields u (rows, d) and w (rows,), float64, a part at a time, the same at each call.
      count: how many there are in all.
      dimension: d.
      leading: k, at most d.
      vectors: whether the eigenvectors are wanted.
      trace: of M, which is handed on.
    """
    size = min(count, dimension)
    if size > _DENSE and _FEW * leading < size:
        return _iterated(constant, blocks, dimension, leading, vectors, trace)
    if dimension <= count:
        matrix = np.zeros((dimension, dimension))
        for rows, weights in blocks():
            matrix += (rows * weights[:, None]).T @ rows
        values, found = _largest(matrix, leading)
    else:
        parts = [(np.zeros((0, dimension)), np.zeros(0)), *blocks()]
        rows, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
        values, found = _of_rows(rows, weights, leading, vectors)
    return Modes(constant + values, found if vectors else None, trace, np.zeros(leading))


def _alone(rows: np.ndarray, weights: np.ndarray) -> Blocks:
    """All vectors in one block."""
    return lambda: [(rows, weights)]


def _largest(matrix: np.ndarray, leading: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, decreasing, and rows of vectors; all where there are fewer."""
    size = len(matrix)
    if size == 0:
        return np.zeros(0), np.zeros((0, 0))
    values, found = eigh(matrix, subset_by_index=(max(size - leading, 0), size - 1))
    return values[::-1], found.T[::-1]


def _of_rows(
    rows: np.ndarray, weights: np.ndarray, leading: int, vectors: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of sum_i w_i u_i u_i', fewer u_i than d, and vectors if wanted.

    Not from products of the u_i: vectors of small eigenvalues would not be orthogonal, and negative
    weights could not be taken.
    """
    if vectors or (weights < 0).any():
        base, triangle = np.linalg.qr(rows.T)
        base = base.T
        values, found = _largest((triangle * weights) @ triangle.T, leading)
        found = found @ base
    else:
        scaled = rows * np.sqrt(weights)[:, None]
        base, (values, found) = scaled, _largest(scaled @ scaled.T, leading)
    # Across all u_i lie zeros.
    across = min(leading, rows.shape[1] - len(rows))
    values = np.concatenate([values, np.zeros(across)])
    order = np.argsort(-values, kind="stable")[:leading]
    if vectors:
        found = np.concatenate([found, completed(base, across)])[order]
    return values[order], found


def completed(rows: np.ndarray, count: int) -> np.ndarray:
    """So many unit vectors, orthogonal to each other and to orthonormal rows (r, d)."""
    more = np.random.default_rng(0).standard_normal((count, rows.shape[1]))
    for _ in range(2):
        more = np.linalg.qr((more - (more @ rows.T) @ rows).T)[0].T
    return np.asarray(more)


def _iterated(
    constant: float, blocks: Blocks, dimension: int, leading: int, vectors: bool, trace: float
) -> Modes:
    """The same by Lanczos' method."""
    rng, rounding = np.random.default_rng(0), 100 * float(np.finfo(np.float64).eps)
    space = Krylov(dimension, leading, dimension, _TOLERANCE, rounding, rng)
    while not space.done:
        v = space.direction
        product = constant * v
        for rows, weights in blocks():
            product = product + (weights * (rows @ v)) @ rows
        space.add(product)
    values, residuals, found = space.leaders()
    return Modes(values, found if vectors else None, trace, residuals)


def of_empirical(
    denoiser: EmpiricalDenoiser, level: Level, x: np.ndarray, leading: int, vectors: bool
) -> Iterator[Modes]:
    """M = g Cov(a | x_t) = g sum_nu w_nu (a_nu - D)(a_nu - D)', w = p(nu | x_t), at each x (N, d).

    The weights come from differences x - e^-t a; the trace, g sum_nu w_nu |a_nu - D|^2, is of all
    points. Of the rest those points are left out that have 1e-14 of the trace together, which no
    eigenvalue feels more than that.
    """
    points = np.asarray(denoiser.points).reshape(len(denoiser.points), -1)
    size = max(1, _BLOCK // points.shape[1])
    places = [slice(start, start + size) for start in range(0, len(points), size)]
    signal = np.sqrt(level.alpha_bar)
    for one in x:
        squared = np.concatenate(
            [cdist(one[None], signal * points[part].astype(np.float64))[0] ** 2 for part in places]
        )
        yield _of_posterior(
            points, np.exp(log_softmax(-squared / (2 * level.variance))), level, leading, vectors
        )


def _of_posterior(
    points: np.ndarray, weights: np.ndarray, level: Level, leading: int, vectors: bool
) -> Modes:
    """G times the covariance of points (n, d) that have weights (n,)."""
    size = max(1, _BLOCK // points.shape[1])

    def blocks(index: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(index), size):
            part = index[start : start + size]
            yield points[part].astype(np.float64), level.snr * weights[part]

    index = np.flatnonzero(weights)
    mean = sum(share @ rows for rows, share in blocks(index)) / level.snr
    parts = [share * np.sum((rows - mean) ** 2, axis=1) for rows, share in blocks(index)]
    shares = np.concatenate(parts)
    trace = float(shares.sum())
    order = np.argsort(shares)
    dropped = np.cumsum(shares[order]) <= _NEGLIGIBLE * trace
    kept = np.sort(index[order[~dropped]])
    return leading_modes(
        0.0,
        lambda: ((rows - mean, share) for rows, share in blocks(kept)),
        *(len(kept), points.shape[1], leading, vectors, trace),
    )


def of_gaussian(
    denoiser: GaussianDenoiser, level: Level, x: np.ndarray, leading: int, vectors: bool
) -> Iterator[Modes]:
    """M = V'diag(r(l)) V + r(f) (1 - V'V), r(l) = e^-2t l/(e^-2t l + Delta), the same at each x."""
    modes = np.asarray(denoiser.modes, np.float64)
    values, floor = level.opening(denoiser.eigenvalues), float(level.opening(denoiser.floor))
    k, d = modes.shape
    trace = float(values.sum()) + (d - k) * floor
    values = np.concatenate([values, np.full(min(leading, d - k), floor)])
    order = np.argsort(-values, kind="stable")[:leading]
    found = None
    if vectors:
        found = np.concatenate([modes, completed(modes, len(values) - k)])[order]
    for _ in x:
        yield Modes(values[order], found, trace, np.zeros(leading))


def of_mixture(
    denoiser: GaussianMixtureDenoiser, level: Level, x: np.ndarray, leading: int, vectors: bool
) -> Iterator[Modes]:
    """M = 1 - Delta/Gamma + Delta e^-2t/Gamma^2 sech^2(e^-t m.x/Gamma) m m', at each x (N, d)."""
    centre = np.asarray(denoiser.centre, np.float64).reshape(1, -1)
    clean = float(denoiser.sigma) ** 2 * level.alpha_bar
    gamma = level.variance + clean
    for one in x:
        sech = 1 / np.cosh(np.sqrt(level.alpha_bar) * (centre[0] @ one) / gamma)
        weights = np.array([level.variance * level.alpha_bar * (sech / gamma) ** 2])
        trace = one.size * clean / gamma + float(weights[0] * np.sum(centre**2))
        rest = (one.size, leading, vectors, trace)
        yield leading_modes(clean / gamma, _alone(centre, weights), 1, *rest)


def of_classes(
    denoiser: GaussianClassesDenoiser, level: Level, x: np.ndarray, leading: int, vectors: bool
) -> Iterator[Modes]:
    """M = sum_c p_c M_c + g sum_c p_c (D_c - D)(D_c - D)', p_c = p(c | x_t), at each x (N, d).

    For grad log p_c = grad log N_c - sum_b p_b grad log N_b, and the score of N_c is
    (e^-t D_c - x)/Delta, so that grad p_c = p_c (e^-t/Delta)(D_c - D), and
    J = sum_c p_c J_c + sum_c D_c (grad p_c)'. M_c is that of a Gaussian, see `of_gaussian`: a
    number and its modes, whose weights are negative where l is below the floor.
    """
    laws = _Laws(denoiser, level)
    for one in x:
        share, denoised = laws.posterior(one)
        away = denoised - share @ denoised
        own = level.snr * share * np.sum(away**2, axis=1)
        some = share + own > _NEGLIGIBLE
        constant = float(share @ laws.floors)
        trace = constant * one.size + float(own.sum() + share @ laws.excess.sum(axis=1))
        rows = np.concatenate([laws.modes[some].reshape(-1, one.size), away[some]])
        weights = (share[some, None] * laws.excess[some]).reshape(-1)
        weights = np.concatenate([weights, level.snr * share[some]])
        rest = (len(rows), one.size, leading, vectors, trace)
        yield leading_modes(constant, _alone(rows, weights), *rest)


class _Laws:
    """The Gaussians of the classes at one noise level."""

    def __init__(self, denoiser: GaussianClassesDenoiser, level: Level) -> None:
        self.level = level
        self.means, self.modes, self.values, self.floor, self.shares = (
            np.asarray(leaf, np.float64)
            for leaf in (
                denoiser.means.reshape(len(denoiser.means), -1),
                *(denoiser.modes, denoiser.eigenvalues, denoiser.floors, denoiser.weights),
            )
        )
        # M_c of the floor, and of each mode in excess of it; modes that are zero have none.
        self.floors = level.opening(self.floor)
        self.excess = level.opening(self.values) - self.floors[:, None]

    def posterior(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(c | x_t) (C,) and D_c (C, d) at one x (d,)."""
        signal, variance = np.sqrt(self.level.alpha_bar), self.level.variance
        y = x - signal * self.means
        along = np.einsum("ckd,cd->ck", self.modes, y)
        left = y - np.einsum("ck,ckd->cd", along, self.modes)
        inside = self.level.alpha_bar * self.values + variance
        outside = self.level.alpha_bar * self.floor + variance
        across = x.size - along.shape[1]
        logs = np.log(self.shares) - 0.5 * (
            np.sum(along**2 / inside + np.log(inside), axis=1)
            + np.sum(left**2, axis=1) / outside
            + across * np.log(outside)
        )
        inner = np.einsum("ck,ckd->cd", self.excess * along, self.modes)
        denoised = self.means + (self.floors[:, None] * y + inner) / signal
        return np.exp(log_softmax(logs)), denoised
