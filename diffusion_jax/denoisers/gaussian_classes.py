"""The score of a mixture of Gaussians, one per class."""

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers.labels import class_counts
from diffusion_jax.denoisers.low_rank import Floor, LowRankGaussian, checked, level, stacked
from diffusion_jax.denoisers.protocol import require_inputs
from diffusion_jax.errors import UserError
from diffusion_jax.process import x_0_to_noise
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule


@pytrees.dataclass
class GaussianClassesDenoiser:
    """The exact score of sum_c pi_c N(m_c, C_c): of each class its first two moments alone.

    D(x) = sum_c p(c | x) D_c(x),   p(c | x) = pi_c N(x; e^-t m_c, S_c)/sum of the same over c,
    S_c = e^-2t C_c + Delta,   C_c = V'diag(l) V + f (1 - V'V),

    D_c as in `GaussianDenoiser`. By Woodbury's identity S_c costs two products with V: with the
    components w = V y of y = x - e^-t m_c and what they leave, r = y - V'w,

    log N = -1/2 sum_i [w_i^2/(e^-2t l_i + Delta) + log(e^-2t l_i + Delta)]
            - |r|^2/(2 (e^-2t f + Delta)) - (d - k)/2 log(2 pi (e^-2t f + Delta)) + const.

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta.
      means: m_c (C, *shape of one example).
      modes: V of each class (C, k, d), k the largest rank of a class; others have modes that are
        zero, whose eigenvalue is the class's floor.
      eigenvalues: l (C, k).
      floors: f (C,).
      weights: pi_c (C,).
    """

    schedule: NoiseSchedule
    means: Array
    modes: Array
    eigenvalues: Array
    floors: Array
    weights: Array

    @classmethod
    def fit(
        cls,
        schedule: NoiseSchedule,
        points: np.ndarray,
        labels: np.ndarray | None,
        rank: int | None = None,
        floor: Floor = 0.0,
    ) -> Self:
        """The denoiser of a training set with classes; pi_c is a class's share of the points.

        It takes C k d numbers; with all modes, about as many as the points themselves.

        Args:
          schedule: the noise schedule.
          points: training points (n, ...), in the units of x.
          labels: classes 0..C-1 (n,).
          rank: of every class, see `LowRankGaussian.fit`.
          floor: of every class, see there; "rest" gives each its own.

        Raises:
          UserError: no labels, or see `class_counts` and `LowRankGaussian.fit`.
        """
        if labels is None:
            raise UserError(
                "Gaussians of classes need labels, and these images have none: take one Gaussian "
                "for all of them"
            )
        labels, flat = np.asarray(labels), checked(points, rank, floor)
        counts = class_counts(labels, len(flat))
        laws = stacked(
            [LowRankGaussian.fit(flat[labels == c], rank, floor) for c in range(len(counts))]
        )
        means = laws.mean.reshape(len(counts), *points.shape[1:])
        weights = jnp.asarray(counts / len(points))
        return cls(schedule, means, laws.modes, laws.eigenvalues, laws.floor, weights)

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    @property
    def laws(self) -> LowRankGaussian:
        """The laws of the classes, flattened, with an axis of classes in front."""
        means = self.means.reshape(len(self.means), -1)
        return LowRankGaussian(means, self.modes, self.eigenvalues, self.floors)

    def class_log_probability(self, x: Array, step: Array) -> Array:
        """Log p(c | x_t), (batch, C), for x (batch, ...) and steps (batch,).

        Raises:
          UserError: see `require_inputs`.
        """
        return _log_probability(self._at(x), *self._inputs(x, step))

    def predict_x_0(self, x: Array, step: Array) -> Array:
        """D = E[a | x_t], the shape of x, for x (batch, ...) and steps (batch,).

        Raises:
          UserError: see `require_inputs`.
        """
        classes, (flat, signal, variance) = self._at(x), self._inputs(x, step)
        probability = jnp.exp(_log_probability(classes, flat, signal, variance))

        def add(total: Array, each: tuple[LowRankGaussian, Array]) -> tuple[Array, None]:
            law, share = each
            return total + share[:, None] * law.denoised(flat, signal, variance), None

        # A class at a time: (C, batch, d) need not fit.
        total, _ = jax.lax.scan(add, jnp.zeros_like(flat), (classes[0], probability.T))
        return total.reshape(x.shape)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`: the noise is (x - e^-t D)/sqrt(Delta)."""
        return x_0_to_noise(self.schedule, self.predict_x_0(x, step), x, step)

    def _at(self, x: Array) -> tuple[LowRankGaussian, Array]:
        """The laws and the weights' logarithms, in the type of x."""
        return self.laws.astype(x.dtype), jnp.log(self.weights).astype(x.dtype)

    def _inputs(self, x: Array, step: Array) -> tuple[Array, Array, Array]:
        """X flattened, e^-t and Delta."""
        require_inputs(x, step, self.means.shape[1:], self.num_steps)
        return x.reshape(len(x), -1), *level(self.schedule, step, x.dtype)


def _log_probability(
    classes: tuple[LowRankGaussian, Array], x: Array, signal: Array, variance: Array
) -> Array:
    """Log p(c | x_t), (batch, C), of x (batch, d) with e^-t and Delta (batch,)."""

    def of_class(each: tuple[LowRankGaussian, Array]) -> Array:
        law, log_weight = each
        along, left = law.split(x - signal[:, None] * law.mean[None])
        mean = law.across(signal, variance) / x.shape[1]
        excess = jnp.sum(left * left - mean[:, None], axis=1)
        return log_weight + law.log_density(along, excess, signal, variance)

    return jax.nn.log_softmax(jax.lax.map(of_class, classes).T, axis=1)
