"""When a random-features score learns what: the spectrum of its features in high dimension.

Data a ~ N(0, I_d); x_t = c a + sqrt(Delta) xi with c = e^-t, Delta = 1 - c^2; n training points; p
features h = sigma(W x_t/sqrt(d)), W (p, d) of standard normals; score A h/sqrt(p), A (d, p) trained
from 0 by gradient flow on the denoising loss at one t, exact in the noise. It is the setting of
Bonnaire et al. (2025, arXiv:2505.17638); the formulas here are derived anew. The flow is linear,
and its rates are Delta lambda/psi_p with lambda the eigenvalues of

    U = 1/n sum_nu E_xi[h_nu h_nu^T],     psi_p = p/d,  psi_n = n/d.

**The features are equivalent to a linear model.** With f_k the coefficients of sigma in normalised
Hermite polynomials, for pre-activations of variance 1, and mu = f_1 = E sigma': given a, Mehler's
formula is a series in the correlations W_i.W_j/d = O(d^-1/2) of the noise of two features. Its
order 0 is the covariance of the noise-averaged features, which act as c mu W a/sqrt(d) + v omega
with omega standard normal; its order 1 tends to its mean over a; of the others the diagonal stays:

    U = G G^T/n + Delta mu^2 K + s^2 I,    K = W W^T/d,    G = c mu W X/sqrt(d) + v Omega,
    v^2 = sum_{k >= 2} f_k^2 c^2k,    s^2 = sum_{k >= 2} f_k^2 (1 - c^2k).

**The spectrum.** Given W, the columns of G are Gaussian with covariance C = c^2 mu^2 K + v^2 I, so
the resolvent of M = U - s^2 I is (Delta mu^2 K + q C - z)^-1 in the mean, 1/q = 1 + tr[C R]/n. With
m_K the Stieltjes transform of K's (Marchenko-Pastur) law, alpha = mu^2 (Delta + c^2 q) and
zeta = (z - v^2 q)/alpha, that is one equation,

    m(z) = m_K(zeta)/alpha,   1/q - 1 = psi_p/(psi_n alpha) (c^2 mu^2 (1 + zeta m_K) + v^2 m_K).

As psi_p zeta m_K^2 + (zeta + psi_p - 1) m_K + 1 = 0, q is a root of a polynomial of degree 5: with
F = psi_n/psi_p (1 - q) alpha - c^2 mu^2 q, Z = z - v^2 q and P = mu^2 (c^2 z + v^2 Delta),

    psi_p Z F^2 + psi_n/psi_p Z (1 - q) q P + (psi_p - 1) F q P + v^2 q^2 P = 0.

For psi_p > 1 the d largest eigenvalues, of order psi_p, come from K: there the score generalises.
Below them, for d < n < p, are the training points'. With psi_p >> psi_n >> 1, M in the span of W
and Omega is made of 2 x 2 blocks, psi_p (mu^2, c mu v/sqrt(psi_n); c mu v/sqrt(psi_n), v^2/psi_n)
for each of the d data directions, and psi_p v^2/psi_n for n - d directions of Omega, so U has
eigenvalues about

    psi_p mu^2                      d of them
    s^2 + v^2 psi_p/psi_n           n - d of them
    s^2 + Delta v^2 psi_p/psi_n     d of them, the blocks' determinants over their traces

The rest, if any, is a delta mass at s^2, which the flow never enters. The cross matrix V lies in
the range of W: nearly all that the training loss falls by below the true score's comes from the
last d, not from the n - d that are the bulk of the training points. Both have times proportional to
n, the first psi_n/(Delta v^2), the second psi_n/(Delta^2 v^2) where s^2, of order Delta too, is
small beside Delta v^2 psi_p/psi_n.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import roots_hermitenorm

from diffusion_jax.errors import UserError

_NODES = 200  # of Gauss-Hermite quadrature: 1e-12 for tanh
_SCAN = 2000  # places in log lambda where bulks are looked for
_REACH = 1e-12  # smallest eigenvalue of M looked for, over the largest
_IMAGINARY = 1e-10  # of z, over its real part
_MET = 1e-6  # a root meets the equation: double ones, at edges, are known to 1e-8
_EMPTY = 1e-7  # density times eigenvalue below which there is no bulk

Activation = Callable[[np.ndarray], np.ndarray]


def hermite(order: int, nodes: int = _NODES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Hermite nodes and weights of N(0, 1), and the normalised polynomials He_k/sqrt(k!).

    Args:
      order: the largest k, less than the number of nodes.
      nodes: how many.

    Returns:
      Nodes (Q,), weights that sum to 1 (Q,), polynomials at the nodes (order + 1, Q).
    """
    z, weights = roots_hermitenorm(nodes)
    values = [np.ones_like(z), z]
    for k in range(1, order):
        values.append((z * values[k] - math.sqrt(k) * values[k - 1]) / math.sqrt(k + 1))
    return z, weights / weights.sum(), np.array(values[: order + 1])


@dataclass(frozen=True)
class FeatureCoefficients:
    """What high dimension keeps of an activation at a time; see the module.

    mean^2 + slope^2 + data_residual + noise_residual = E sigma^2.

    Attributes:
      signal: c = e^-t.
      slope: mu = E sigma'(h), h ~ N(0, 1).
      data_residual: v^2, of what is not linear, the part that the noise leaves.
      noise_residual: s^2, the rest of it.
      mean: f_0 = E sigma. Where it, or f_2, is not 0, single eigenvalues lie above the bulks.
    """

    signal: float
    slope: float
    data_residual: float
    noise_residual: float
    mean: float

    @property
    def noise(self) -> float:
        """Delta = 1 - e^-2t."""
        return 1 - self.signal**2


def feature_coefficients(activation: Activation, time: float) -> FeatureCoefficients:
    """The coefficients of an activation at an Ornstein-Uhlenbeck time, by quadrature.

    Args:
      activation: sigma, elementwise; smooth (1e-12 for tanh, some 1e-3 with a kink).
      time: t > 0.

    Raises:
      UserError: a time that is not positive and finite, values that are not finite, or an
        activation that is linear or has no linear part.
    """
    checked_time(time)
    z, weights, polynomials = hermite(_NODES - 1)
    values = np.asarray(activation(z), np.float64)
    if values.shape != z.shape or not np.all(np.isfinite(values)):
        raise UserError("the activation must give one finite number for each number")
    f = polynomials @ (weights * values)
    kept = np.exp(-2 * time * np.arange(2, _NODES))
    v2, s2 = float(f[2:] ** 2 @ kept), float(f[2:] ** 2 @ (1 - kept))
    total = float(weights @ values**2)
    if f[1] ** 2 <= 1e-12 * total or v2 + s2 <= 1e-12 * total:
        raise UserError(
            "the activation must have a linear part and one that is not: take tanh, or another"
        )
    return FeatureCoefficients(math.exp(-time), float(f[1]), v2, s2, float(f[0]))


def checked_time(time: float) -> None:
    """Raises UserError unless 0 < t < inf."""
    if not 0 < time < math.inf:
        raise UserError(f"the diffusion time must be positive and finite, not {time}")


@dataclass(frozen=True)
class FeatureSpectrum:
    """The law of U's eigenvalues as d, p, n go to infinity together; see the module.

    Attributes:
      coefficients: of the activation at t.
      psi_p: features over dimensions, p/d.
      psi_n: training points over dimensions, n/d.

    Raises:
      UserError: ratios that are not positive and finite.
    """

    coefficients: FeatureCoefficients
    psi_p: float
    psi_n: float

    def __post_init__(self) -> None:
        if not (0 < self.psi_p < math.inf and 0 < self.psi_n < math.inf):
            raise UserError(
                "psi_p = p/d and psi_n = n/d must be positive and finite, not "
                f"{self.psi_p} and {self.psi_n}"
            )

    def stieltjes(self, z: np.ndarray) -> np.ndarray:
        """E 1/(lambda - z) over the spectrum of U, at complex z with Im z > 0 (any shape).

        Raises:
          UserError: z elsewhere.
        """
        z = np.asarray(z, np.complex128)
        if not np.all(z.imag > 0):
            raise UserError("the Stieltjes transform is asked for above the real line, Im z > 0")
        return self._resolvents(z - self.coefficients.noise_residual)[0]

    def density(self, eigenvalues: np.ndarray) -> np.ndarray:
        """The density of U's eigenvalues, without the delta mass, at real places (any shape)."""
        return self._densities(np.asarray(eigenvalues, np.float64))[0]

    @property
    def atom(self) -> tuple[float, float]:
        """Place and mass of the delta: s^2, and max(0, 1 - (1 + psi_n)/psi_p)."""
        return self.coefficients.noise_residual, max(0.0, 1 - (1 + self.psi_n) / self.psi_p)

    @cached_property
    def bulks(self) -> list[tuple[float, float]]:
        """Intervals of positive density, increasing; the delta mass is none of them."""
        c, base = self.coefficients, self.coefficients.noise_residual
        wide = (1 + math.sqrt(self.psi_p)) ** 2 * c.slope**2
        sample = (1 + math.sqrt(self.psi_p / self.psi_n)) ** 2
        top = c.noise * wide + (c.signal**2 * wide + c.data_residual) * sample  # above all of M
        grid = np.linspace(math.log(_REACH * top), math.log(1.01 * top), _SCAN)

        def inside(place: np.ndarray) -> np.ndarray:
            w = np.exp(place)
            return np.asarray(w * self.density(base + w) > _EMPTY)

        found = inside(grid)
        changes = np.flatnonzero(found[1:] != found[:-1])
        low, high, before = grid[changes], grid[changes + 1], found[changes]
        for _ in range(40):
            middle = (low + high) / 2
            same = inside(middle) == before
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        edges = (base + np.exp(high)).tolist()
        if found[0]:
            edges.insert(0, base + math.exp(grid[0]))
        return list(zip(edges[::2], edges[1::2], strict=True))

    def quadrature(self, nodes: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nodes for averages over the bulks, increasing, spectrally accurate at their edges.

        Args:
          nodes: for each bulk.

        Returns:
          Eigenvalues (N,), their masses in the spectrum (N,), which sum to 1 minus the delta's (to
          1e-8; to 1e-5 where two bulks all but touch and to 1e-4 at p = n + d), and their masses
          in the measure 1/d sum_k |V^T o_k|^2 delta(lambda - lambda_k), of the cross
          matrix V = E h xi^T in U's eigenvectors o_k: how much there is to learn (N,).

        Raises:
          UserError: fewer than 2 nodes.
        """
        if nodes < 2:
            raise UserError(f"a bulk needs at least 2 nodes, not {nodes}")
        base = self.coefficients.noise_residual
        angle = math.pi * (np.arange(nodes) + 0.5) / nodes
        rows = []
        for low, high in self.bulks:
            start, end = math.log(low - base), math.log(high - base)
            w = np.exp((start + end) / 2 - (end - start) / 2 * np.cos(angle))
            step = w * (end - start) / 2 * np.sin(angle) * math.pi / nodes
            rows.append([base + w, *(step * each for each in self._densities(base + w))])
        values, masses, learned = np.concatenate(rows, axis=1)
        return values, masses, learned

    def training_loss(self, training_times: np.ndarray) -> np.ndarray:
        """The training loss E |sqrt(Delta) s + xi|^2/d along the flow, in the limit.

        1 - int dnu(lambda) (1 - e^(-2 Delta lambda tau/psi_p))/lambda, nu as in `quadrature`.

        Args:
          training_times: tau >= 0 (T,), in units that `random_features_flow` defines.
        """
        values, _, learned = self.quadrature()
        rates = 2 * self.coefficients.noise / self.psi_p * values
        done = -np.expm1(-np.multiply.outer(np.asarray(training_times, np.float64), rates))
        return np.asarray(1 - done @ (learned / values))

    @property
    def generalisation_time(self) -> float:
        """tau_gen = psi_p/(Delta lambda) for lambda the mean of the d largest eigenvalues."""
        return self._time(0.0, min(1.0, 1 / self.psi_p))

    @property
    def memorisation_time(self) -> float:
        """tau_mem = psi_p/(Delta lambda) for lambda the mean of the next, to the n-th largest.

        That is the training points' bulk. About psi_n/(Delta v^2), proportional to n and the same
        for all p, where 1 << psi_n << psi_p and s^2 << v^2 psi_p/psi_n, as at early t. It ends at
        psi_p/(Delta s^2) at late t; for n > p, where the network cannot memorise, it is that of the
        p - d lower eigenvalues and about psi_p/(Delta (v^2 + s^2)).

        Raises:
          UserError: p <= d or n <= d, where there is no such bulk.
        """
        self._check_lower()
        if self.psi_n <= 1:
            raise UserError(
                f"at psi_n = {self.psi_n} the training points have no bulk of their own: take more "
                "training points than dimensions, or ask for overfitting_time"
            )
        return self._time(1 / self.psi_p, min(1.0, self.psi_n / self.psi_p))

    @property
    def overfitting_time(self) -> float:
        """The mean of psi_p/(Delta lambda) below the d largest, by the training loss taken off.

        Each eigenvalue counts with nu(lambda)/lambda, see `quadrature`, which is what the training
        loss falls by along it. A loss falls at twice the rate of its weights, so this is twice the
        mean time of that fall. About psi_n/(Delta^2 v^2) for psi_n >> 1 and
        psi_p >> psi_n s^2/(Delta v^2); for fewer features it ends at psi_p/(Delta s^2).

        Raises:
          UserError: p <= d.
        """
        self._check_lower()
        values, masses, learned = self.quadrature()
        share = self._taken(masses, 1 / self.psi_p, 1.0) / np.maximum(masses, 1e-300)
        fall = share * learned / values
        return self.psi_p / self.coefficients.noise * float((fall / values).sum() / fall.sum())

    def _check_lower(self) -> None:
        if self.psi_p <= 1:
            raise UserError(
                f"at psi_p = {self.psi_p} there are no eigenvalues below those of generalisation: "
                "take more features than dimensions"
            )

    def _time(self, above: float, to: float) -> float:
        """psi_p/(Delta lambda), lambda the mean eigenvalue of ranks from the top, as shares."""
        values, masses, _ = self.quadrature()
        taken = self._taken(masses, above, to)
        return self.psi_p / (self.coefficients.noise * float(taken @ values / taken.sum()))

    @staticmethod
    def _taken(masses: np.ndarray, above: float, to: float) -> np.ndarray:
        """What of each node's mass has ranks between two shares, counted from the top."""
        ends = np.append(np.cumsum(masses[::-1])[::-1], 0.0)  # the mass from each node upwards
        return np.asarray(np.maximum(np.minimum(ends[:-1], to) - np.maximum(ends[1:], above), 0))

    def _densities(self, eigenvalues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Densities of the spectrum and of the measure nu at real places."""
        w = eigenvalues - self.coefficients.noise_residual
        m, learned = self._resolvents(np.where(w > 0, w, 1.0) * (1 + 1j * _IMAGINARY))
        inside = w > 0
        return np.where(inside, m.imag / math.pi, 0), np.where(inside, learned.imag / math.pi, 0)

    def _resolvents(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Traces tr R/p and tr V^T R V/d of R = (M - z)^-1, by the q that meets the equation."""
        c, shape, z = self.coefficients, z.shape, z.ravel()[:, None]
        q = _roots(_polynomial(c, self.psi_p, self.psi_n, z[:, 0]))
        alpha = c.slope**2 * (c.noise + c.signal**2 * q)
        zeta = (z - c.data_residual * q) / alpha
        m_k = _marchenko_pastur(zeta, self.psi_p)
        linear = c.signal**2 * c.slope**2 * (1 + zeta * m_k) + c.data_residual * m_k
        right = 1 + self.psi_p / (self.psi_n * alpha) * linear
        miss = np.abs(1 - q * right) / (1 + np.abs(q * right))
        # Above the real line one root alone has Im q < 0 and meets the equation; other real ones
        # near it have Im q > 0, if only just.
        slope = np.where(miss < _MET, q.imag / np.abs(q), 1 + miss)
        best = np.argmin(slope, axis=1)[:, None]
        alpha, zeta, m_k = (np.take_along_axis(e, best, 1)[:, 0] for e in (alpha, zeta, m_k))
        learned = c.noise * c.slope**2 * self.psi_p * (1 + zeta * m_k) / alpha
        return (m_k / alpha).reshape(shape), learned.reshape(shape)


def _marchenko_pastur(z: np.ndarray, ratio: float) -> np.ndarray:
    """Stieltjes transform of W W^T/d, W (p, d), p/d = ratio, off the real line."""
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    root = np.sqrt(z - low) * np.sqrt(z - high)  # its cut is the spectrum
    # Of the two forms the one that does not cancel.
    total = z + ratio - 1
    small, large = root - total, -(root + total)
    direct = small / (2 * ratio * z)
    return np.asarray(np.where(np.abs(small) >= np.abs(large), direct, 2 / large))


def _polynomial(c: FeatureCoefficients, psi_p: float, psi_n: float, z: np.ndarray) -> np.ndarray:
    """Coefficients of the module's polynomial in q at each z, increasing powers (N, 6)."""
    ratio, mu2, v2 = psi_n / psi_p, c.slope**2, c.data_residual
    alpha = mu2 * np.array([c.noise, c.signal**2])
    falling = np.array([1.0, -1.0])
    f = ratio * np.convolve(falling, alpha) - c.signal**2 * mu2 * np.array([0, 1, 0])
    one = np.convolve(f, f)  # times psi_p Z
    two = ratio * np.array([0, 1.0, -1.0, 0])  # times Z P
    rest = (psi_p - 1) * np.append(0, f) + v2 * np.array([0, 0, 1, 0])  # times P
    p = mu2 * (c.signal**2 * z + v2 * c.noise)
    total = np.zeros((len(z), 6), np.complex128)
    for first, part, factor in ((psi_p, one, 1), (1.0, two, p), (None, rest, p)):
        term = np.multiply.outer(np.broadcast_to(factor, z.shape), part)
        if first is None:
            total[:, : len(part)] += term
        else:
            total[:, : len(part)] += first * z[:, None] * term
            total[:, 1 : len(part) + 1] -= first * v2 * term
    return total


def _roots(coefficients: np.ndarray) -> np.ndarray:
    """Roots of many polynomials (N, degree + 1), increasing powers: (N, degree)."""
    degree = coefficients.shape[1] - 1
    companion = np.zeros((len(coefficients), degree, degree), np.complex128)
    companion[:, np.arange(1, degree), np.arange(degree - 1)] = 1
    companion[:, :, -1] = -coefficients[:, :-1] / coefficients[:, -1:]
    return np.asarray(np.linalg.eigvals(companion))
