"""Gaussians of low rank under the forward process: never a d x d matrix.

A covariance C = V'diag(l) V + f (1 - V'V), with k orthonormal modes V (k, d) and one variance f for
all directions that they leave out, goes with the same modes from data to noise: x_t has the mean
e^-t m and the covariance e^-2t C + Delta. Every function of C costs two products with V.
"""

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from diffusion_jax.covariance import Rows, principal_modes
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule

Floor = float | Literal["rest"]


def _product(one: Array, other: Array) -> Array:
    return jnp.matmul(one, other, precision="highest")


@pytrees.dataclass
class LowRankGaussian:
    """The law N(m, C) of data in d dimensions, C = V'diag(l) V + f (1 - V'V), and that of x_t.

    Data are flattened. e^-t and Delta = 1 - e^-2t are numbers of each example. Modes that are zero,
    with l = f, change nothing: so laws of different ranks are made alike, and stacked.

    Attributes:
      mean: m (d,).
      modes: V, orthonormal rows (k, d).
      eigenvalues: l, their variances (k,), >= 0.
      floor: f, the variance of every direction across them, a scalar >= 0.
    """

    mean: Array
    modes: Array
    eigenvalues: Array
    floor: Array

    @classmethod
    def fit(cls, points: np.ndarray, rank: int | None = None, floor: Floor = 0.0) -> Self:
        """The law with the first two moments of points.

        m is their mean and C their covariance, divided by n. On the host in float64, from the
        smaller of C and the points' n x n products, a block of points at a time where they are
        many; then in JAX's default float type.

        Args:
          points: (n, ...), flattened; uint8 is scaled to [0, 1].
          rank: how many of the largest modes are kept; by default, and at most, all whose variance
            is not zero.
          floor: variance of every direction that is left out, or "rest": what the modes kept leave
            of the variance, spread evenly over it, (tr C - sum of l)/(d - k).

        Raises:
          UserError: no points, or values that are not finite; a rank that is no whole number from 0
            to d; a floor that is negative or not finite; n and d both over 20 000.
        """
        flat = checked(points, rank, floor)
        if len(flat) == 1:
            flat = np.concatenate([flat, flat])  # no variance: what `Rows` needs two points for
        rows = Rows(flat, dtype=np.float64)
        eigenvalues, modes, left = principal_modes(rows, rank)
        across = rows.d - len(modes)
        outside = (left / across if across else 0.0) if floor == "rest" else floor
        arrays = (rows.mean, modes, eigenvalues, np.float64(outside))
        return cls(*map(jnp.asarray, arrays))

    def astype(self, dtype: DTypeLike) -> Self:
        """The same law in another float type."""
        return jax.tree.map(lambda leaf: leaf.astype(dtype), self)

    def split(self, vectors: Array) -> tuple[Array, Array]:
        """Components of vectors (batch, d) along the modes (batch, k), and the rest (batch, d)."""
        along = _product(vectors, self.modes.T)
        return along, vectors - _product(along, self.modes)

    def filtered(self, vectors: Array, function: Callable[[Array], Array]) -> Array:
        """F(C) v of vectors (batch, d), for a function of eigenvalues (1, k) and of f (1, 1)."""
        outside = function(self.floor[None, None])
        along = _product(vectors, self.modes.T)
        inside = (function(self.eigenvalues[None, :]) - outside) * along
        return outside * vectors + _product(inside, self.modes)

    def denoised(self, x: Array, signal: Array, variance: Array) -> Array:
        """D = E[a | x_t] = m + e^-t C (e^-2t C + Delta)^-1 (x_t - e^-t m).

        Args:
          x: x_t (batch, d).
          signal: e^-t (batch,).
          variance: Delta (batch,), positive.
        """
        s, delta = signal[:, None], variance[:, None]
        mean = self.mean[None]
        return mean + self.filtered(x - s * mean, lambda c: s * c / (s * s * c + delta))

    def moved(self, x: Array, start: tuple[Array, Array], end: tuple[Array, Array]) -> Array:
        """Along the probability flow, x_u = e^-u m + sqrt(G_u/G_t) (x_t - e^-t m).

        G_t = e^-2t C + Delta, a function of C; t > 0, and u may be 0.

        Args:
          x: x_t (batch, d).
          start: e^-t and Delta, each (batch,).
          end: e^-u and its Delta, each (batch,).
        """
        (s, delta), (s_end, delta_end) = (
            (signal[:, None], variance[:, None]) for signal, variance in (start, end)
        )

        def growth(c: Array) -> Array:
            return jnp.sqrt((s_end * s_end * c + delta_end) / (s * s * c + delta))

        mean = self.mean[None]
        return s_end * mean + self.filtered(x - s * mean, growth)

    def across(self, signal: Array, variance: Array) -> Array:
        """E|r|^2 = (d - k)(e^-2t f + Delta) of what the modes leave, r, (batch,)."""
        k, d = self.modes.shape
        return (d - k) * (signal * signal * self.floor[None] + variance)

    def log_density(self, along: Array, excess: Array, signal: Array, variance: Array) -> Array:
        """Log p_t(x_t) + d/2 log(2 pi e Delta), by Woodbury's identity.

        = -1/2 sum_i [w_i^2/(e^-2t l_i + Delta) - 1 + log(1 + e^-2t l_i/Delta)]
          - 1/2 [(|r|^2 - E|r|^2)/(e^-2t f + Delta) + (d - k) log(1 + e^-2t f/Delta)]

        The parts w and r of x_t - e^-t m are given, see `split`: a difference of squared norms in
        place of |r|^2 would be wrong by 1e-7 |x|^2/Delta; and without the part d/2 that all laws
        share, rounding is that of numbers of the size of sqrt(d).

        Args:
          along: components w along the modes (batch, k).
          excess: |r|^2 minus its mean, see `across` (batch,).
          signal: e^-t (batch,).
          variance: Delta (batch,), positive.

        Returns:
          In nats (batch,).
        """
        s, delta = signal[:, None], variance[:, None]
        ratio, (k, d) = s * s / delta, self.modes.shape
        values, floor = self.eigenvalues[None], self.floor[None, None]
        each = along * along / (s * s * values + delta) - 1 + jnp.log1p(ratio * values)
        rest = excess[:, None] / (s * s * floor + delta) + (d - k) * jnp.log1p(ratio * floor)
        return -0.5 * (jnp.sum(each, axis=1) + rest[:, 0])


def level(schedule: NoiseSchedule, step: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """e^-t and Delta of steps (batch,); of t = 0 at step -1, which is after the step 0."""
    place, clean = jnp.maximum(step, 0), step < 0
    signal = jnp.where(clean, 1, jnp.sqrt(schedule.alpha_bar[place]))
    variance = jnp.where(clean, 0, schedule.noise_variance[place])
    return signal.astype(dtype), variance.astype(dtype)


def checked(points: np.ndarray, rank: int | None, floor: Floor) -> np.ndarray:
    """The points flattened (n, d), and with what else `LowRankGaussian.fit` takes not refused."""
    points = np.asarray(points)
    if points.ndim < 2 or not points.size:
        raise UserError(f"points of shape {points.shape}: a Gaussian needs one point at least")
    if points.dtype.kind not in "fiu":
        raise UserError(f"points of type {points.dtype}: give real numbers")
    points = points.reshape(len(points), -1)
    d = points.shape[1]
    if not (finite := np.isfinite(points).all(axis=1)).all():
        raise UserError(f"training point {np.argmin(finite)} holds values that are not finite")
    if rank is not None:
        try:
            fits = 0 <= operator.index(rank) <= d
        except TypeError:
            fits = False
        if not fits:
            raise UserError(
                f"rank = {rank} must be a whole number from 0 to {d}, the components of a point"
            )
    if floor != "rest" and not (isinstance(floor, numbers.Real) and 0 <= floor < math.inf):
        raise UserError(
            f'floor = {floor!r} must be a variance, finite and at least 0, or "rest" for what the '
            f"modes leave"
        )
    return points


def stacked(laws: Sequence[LowRankGaussian]) -> LowRankGaussian:
    """Laws as one, with an axis (C, ...) of laws in front.

    Those of lower rank get modes that are zero, see `LowRankGaussian`.
    """
    rank = max(len(law.modes) for law in laws)

    def padded(law: LowRankGaussian) -> LowRankGaussian:
        more = rank - len(law.modes)
        modes = jnp.pad(law.modes, ((0, more), (0, 0)))
        eigenvalues = jnp.concatenate([law.eigenvalues, jnp.repeat(law.floor, more)])
        return LowRankGaussian(law.mean, modes, eigenvalues, law.floor)

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(padded, laws))
