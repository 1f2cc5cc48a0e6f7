"""Training a random-features score, without training: both losses at all times, of one realisation.

For given weights W (p, d) and training points a_nu of N(0, diag(variances)), the score
s(x) = A sigma(W x/sqrt(d))/sqrt(p) has at a diffusion time t the losses

    L(A) = E |sqrt(Delta) s(x_t) + xi|^2/d
         = 1 + 2 sqrt(Delta/p) tr(A V)/d + Delta tr(A U A^T)/(p d),
    U = E h h^T,  V = E h xi^T,  h = sigma(W x_t/sqrt(d)),

E over xi, and over the training points or all data. From A = 0, dA/dtau = -(d^2/2) dL_train/dA,
the unit of tau in which rates are of order 1 in high dimension, with U = O diag(lambda) O^T gives

    A(tau) = -sqrt(p/Delta) V^T O diag((1 - e^(-Delta lambda tau/psi_p))/lambda) O^T.

U and V are those of the network, not of its Gaussian equivalent: V by Stein's lemma and a
quadrature in one dimension, U by Mehler's formula, whose remainder is bounded below 1e-9 of U's
diagonal. The loss of the true score, -(e^-2t variances + Delta)^-1 x, is
L* = mean of e^-2t variances/(e^-2t variances + Delta), and E |s - s*|^2/d = (L_test - L*)/Delta.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.random_features import Activation, checked_time, hermite

_NODES, _FEW_NODES = 128, 48  # of quadrature; few where the noise is narrow
_NARROW = 0.6  # deviation of a pre-activation: the poles of tanh are then 2.6 deviations away
_ORDERS = (8, 24, 40, 96)  # of Mehler's series, until the remainder is small
_REMAINDER = 1e-9
_BLOCK = 2**22  # numbers held at once


@dataclass(frozen=True)
class RandomFeatures:
    """A layer of fixed random weights, at one diffusion time.

    Attributes:
      weights: W (p, d); standard normal in the theory.
      activation: sigma, elementwise and smooth.
      time: Ornstein-Uhlenbeck t > 0.
      variances: of the data's components (d,); by default 1.

    Raises:
      UserError: weights that are not a matrix with finite rows other than 0; variances of another
        size, or negative; a time that is not positive and finite.
    """

    weights: np.ndarray
    activation: Activation = np.tanh
    time: float = 0.1
    variances: np.ndarray | None = None

    def __post_init__(self) -> None:
        checked_time(self.time)
        w = self.weights
        if w.ndim != 2 or w.size == 0 or not np.all(np.isfinite(w)) or not np.all(w.any(axis=1)):
            raise UserError(
                f"random features need finite weights (p, d) without rows of zeros, not {w.shape}"
            )
        v = self.spread
        if v.shape != (w.shape[1],) or not np.all(np.isfinite(v) & (v >= 0)):
            raise UserError(
                f"the data's variances must be {w.shape[1]} numbers of at least 0, one for each "
                f"dimension of the weights, not {v.shape}"
            )

    @property
    def spread(self) -> np.ndarray:
        """The data's variances (d,)."""
        ones = np.ones(self.weights.shape[1])
        return ones if self.variances is None else np.asarray(self.variances, np.float64)

    @property
    def signal(self) -> float:
        """e^-t."""
        return math.exp(-self.time)

    @property
    def noise(self) -> float:
        """Delta = 1 - e^-2t."""
        return -math.expm1(-2 * self.time)

    @property
    def best_loss(self) -> float:
        """L*, of the true score, the least that any function's test loss can be."""
        kept = self.signal**2 * self.spread
        return float(np.mean(kept / (kept + self.noise)))

    def features(self, x: np.ndarray) -> np.ndarray:
        """Features sigma(W x/sqrt(d)) of x (n, d): (n, p)."""
        d = self.weights.shape[1]
        return np.asarray(self.activation(np.asarray(x) @ self.weights.T / math.sqrt(d)))

    def averages(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """U (p, p) and V (p, d) over training points (n, d) and all noise.

        Raises:
          UserError: data of another shape, or not finite; features so alike that Mehler's series
            does not converge.
        """
        data, w = np.asarray(data, np.float64), self.weights
        if data.ndim != 2 or len(data) == 0 or data.shape[1] != w.shape[1]:
            raise UserError(f"training points must be (n, {w.shape[1]}), not {data.shape}")
        if not np.all(np.isfinite(data)):
            raise UserError("training points must be finite")
        centres = self.signal * data @ w.T / math.sqrt(w.shape[1])
        return self._moments(centres, self.noise * np.ones(w.shape[1]))

    @cached_property
    def population(self) -> tuple[np.ndarray, np.ndarray]:
        """U (p, p) and V (p, d) over all data and noise; see `averages`."""
        total = self.signal**2 * self.spread + self.noise
        return self._moments(np.zeros((1, len(self.weights))), total)

    def _moments(self, centres: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """U and V for pre-activations centres (n, p) + W z/sqrt(d), z ~ N(0, diag(spread))."""
        w = self.weights / math.sqrt(self.weights.shape[1])
        covariance = (w * spread) @ w.T
        deviation = np.sqrt(np.diag(covariance))
        correlation = covariance / np.multiply.outer(deviation, deviation)
        away = np.abs(correlation - np.diag(np.diag(correlation)))
        largest = min(1.0, float(away.max()))
        nodes = _FEW_NODES if deviation.max() < _NARROW else _NODES
        for order in (each for each in _ORDERS if each < nodes):
            g, squares = self._coefficients(centres, deviation, order, nodes)
            left = np.maximum(squares - np.mean(g**2, axis=1).sum(axis=0), 0)
            if largest ** (order + 1) * left.max() <= _REMAINDER * squares.max():
                break
        else:
            raise UserError(
                f"two of the random features have a correlation of {largest:.4f} and Mehler's "
                "series does not converge: take more dimensions or a smoother activation"
            )
        u = g[order].T @ g[order]
        for k in range(order - 1, -1, -1):
            u = u * correlation + g[k].T @ g[k]
        u /= len(centres)
        np.fill_diagonal(u, squares)
        # E h xi^T = E sigma' sqrt(Delta) W/sqrt(d), and g_1 = E sigma' times the deviation.
        slope = g[1].mean(axis=0) / deviation
        return u, math.sqrt(self.noise) * slope[:, None] * w

    def _coefficients(
        self, centres: np.ndarray, deviation: np.ndarray, order: int, nodes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """g_k = E sigma(centre + deviation z) He_k(z)/sqrt(k!) (order + 1, n, p), mean squares."""
        z, weights, polynomials = hermite(order, nodes)
        g = np.empty((order + 1, *centres.shape))
        squares = np.zeros(len(deviation))
        rows = max(1, _BLOCK // (len(deviation) * nodes))
        for start in range(0, len(centres), rows):
            part = slice(start, start + rows)
            values = self.activation(centres[part, :, None] + deviation[:, None] * z)
            g[:, part] = np.moveaxis(values @ (polynomials * weights).T, -1, 0)
            squares += (values**2 @ weights).sum(axis=0)
        return g, squares / len(centres)


@dataclass(frozen=True)
class FeatureFlow:
    """Gradient flow of a random-features score on its training points, solved; see the module.

    Attributes:
      features: the layer.
      data: training points (n, d).
    """

    features: RandomFeatures
    data: np.ndarray

    @cached_property
    def _averages(self) -> tuple[np.ndarray, np.ndarray]:
        return self.features.averages(self.data)

    @cached_property
    def _modes(self) -> tuple[np.ndarray, np.ndarray]:
        values, modes = np.linalg.eigh(self._averages[0])
        return np.maximum(values, 0), modes  # U is positive; rounding alone is not

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of U, increasing (p,)."""
        return self._modes[0]

    @property
    def rates(self) -> np.ndarray:
        """Delta lambda/psi_p, at which A approaches its end along U's eigenvectors (p,)."""
        p, d = self.features.weights.shape
        return self.features.noise * d / p * self.eigenvalues

    def _filter(self, training_time: float) -> np.ndarray:
        """(1 - e^(-rate tau))/lambda, which is Delta tau/psi_p at lambda = 0 (p,)."""
        p, d = self.features.weights.shape
        if not training_time >= 0:
            raise UserError(f"training times must be at least 0, not {training_time}")
        slow = self.eigenvalues <= 1e-14 * self.eigenvalues[-1]
        if math.isinf(training_time):
            return np.where(slow, 0.0, 1 / np.where(slow, 1.0, self.eigenvalues))
        limit = self.features.noise * d / p * training_time
        done = -np.expm1(-limit * self.eigenvalues)
        return np.where(slow, limit, done / np.where(slow, 1.0, self.eigenvalues))

    def weights(self, training_time: float) -> np.ndarray:
        """A (d, p) after training for tau, infinity included.

        Raises:
          UserError: a negative time.
        """
        f, modes = self.features, self._modes[1]
        cross = self._averages[1].T @ modes
        scale = -math.sqrt(len(f.weights) / f.noise)
        return scale * (cross * self._filter(training_time)) @ modes.T

    def losses_of(self, weights: np.ndarray) -> tuple[float, float]:
        """Training and test loss L(A) of any last layer A (d, p), however it was trained.

        Raises:
          UserError: weights of another shape.
        """
        p, d = self.features.weights.shape
        if np.shape(weights) != (d, p):
            raise UserError(f"the last layer must be ({d}, {p}), not {np.shape(weights)}")
        noise = self.features.noise
        found = []
        for u, v in (self._averages, self.features.population):
            cross = float(np.sum(weights * v.T))
            square = float(np.sum((weights @ u) * weights))
            found.append(1 + 2 * math.sqrt(noise / p) * cross / d + noise * square / (p * d))
        return found[0], found[1]

    def losses(self, training_times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training and test loss L of A(tau), exact in noise and data, at times (T,), each (T,).

        Raises:
          UserError: a negative time.
        """
        d, modes = self.features.weights.shape[1], self._modes[1]
        cross = self._averages[1].T @ modes
        u, v = self.features.population
        rotated = modes.T @ u @ modes
        power = np.sum(cross**2, axis=0)
        linear = np.sum(cross * (v.T @ modes), axis=0)
        quadratic = (cross.T @ cross) * rotated
        rows = []
        for tau in np.asarray(training_times, np.float64):
            f = self._filter(float(tau))
            train = 1 - float(power @ (f * (2 - f * self.eigenvalues))) / d
            rows.append((train, 1 + float(f @ quadratic @ f - 2 * linear @ f) / d))
        train, test = np.array(rows, np.float64).reshape(-1, 2).T
        return train, test

    def distance(self, training_times: np.ndarray) -> np.ndarray:
        """E |s - s*|^2/d from the true score over all data and noise (T,)."""
        excess = self.losses(training_times)[1] - self.features.best_loss
        return np.asarray(excess / self.features.noise)


def random_features(
    dimension: int,
    num_features: int,
    num_points: int,
    time: float,
    seed: int = 0,
    activation: Activation = np.tanh,
) -> FeatureFlow:
    """A realisation of the theory's setting: W and the data of independent standard normals.

    Two sizes of the training set with one seed share the weights and their first points.

    Raises:
      UserError: a size below 1, or a time that is not positive and finite.
    """
    if min(dimension, num_features, num_points) < 1:
        raise UserError(
            "the dimension, the features and the training points must be at least 1, not "
            f"{dimension}, {num_features} and {num_points}"
        )
    rng, draw = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    weights = rng.standard_normal((num_features, dimension))
    layer = RandomFeatures(weights, activation, time)
    return FeatureFlow(layer, draw.standard_normal((num_points, dimension)))
