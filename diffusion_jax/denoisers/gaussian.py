"""The score of one Gaussian: the Wiener filter."""

from typing import Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffusion_jax.denoisers.low_rank import Floor, LowRankGaussian, level
from diffusion_jax.denoisers.protocol import require_inputs
from diffusion_jax.process import x_0_to_noise
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule


@pytrees.dataclass
class GaussianDenoiser:
    """The exact score of a Gaussian with the mean and the covariance of a training set.

    D(x) = m + V'diag(e^-t l/(e^-2t l + Delta)) V (x - e^-t m)
               + e^-t f/(e^-2t f + Delta) (1 - V'V)(x - e^-t m)

    Of all denoisers linear in x it has the least loss. Early on, at large t, networks resemble it
    (Wang & Vastola 2024, arXiv:2412.09726). The mode i is half open, e^-t dD/dx = 1/2, at
    t_i = 1/2 log(1 + l_i).

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta.
      mean: m, the shape of one example.
      modes: V, orthonormal rows (k, d), of flattened examples.
      eigenvalues: l, the variances along the modes (k,); the covariance's, divided by n.
      floor: f, the variance of the directions that the modes leave out, a scalar.
    """

    schedule: NoiseSchedule
    mean: Array
    modes: Array
    eigenvalues: Array
    floor: Array

    @classmethod
    def fit(
        cls,
        schedule: NoiseSchedule,
        points: np.ndarray,
        rank: int | None = None,
        floor: Floor = 0.0,
    ) -> Self:
        """The denoiser of a training set.

        It takes k d numbers; to fit it, min(n, d)^2 and k d in float64.

        Args:
          schedule: the noise schedule.
          points: training points (n, ...), in the units of x.
          rank: see `LowRankGaussian.fit`, as for the other arguments and the errors.
          floor: see there.
        """
        law = LowRankGaussian.fit(points, rank, floor)
        arrays = (law.mean.reshape(points.shape[1:]), law.modes, law.eigenvalues, law.floor)
        return cls(schedule, *arrays)

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    @property
    def law(self) -> LowRankGaussian:
        """The law of the data, flattened."""
        return LowRankGaussian(self.mean.reshape(-1), self.modes, self.eigenvalues, self.floor)

    def predict_x_0(self, x: Array, step: Array) -> Array:
        """D = E[a | x_t], the shape of x, for x (batch, ...) and steps (batch,).

        Raises:
          UserError: see `require_inputs`.
        """
        require_inputs(x, step, self.mean.shape, self.num_steps)
        law, flat = self.law.astype(x.dtype), x.reshape(len(x), -1)
        return law.denoised(flat, *level(self.schedule, step, x.dtype)).reshape(x.shape)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`: the noise is (x - e^-t D)/sqrt(Delta)."""
        return x_0_to_noise(self.schedule, self.predict_x_0(x, step), x, step)

    def flow(self, x: Array, step: ArrayLike, end: ArrayLike) -> Array:
        """The probability-flow ODE in closed form, from one step's time t to another's, u.

        x_u = e^-u m + V'diag(sqrt(G_u/G_t)) V (x - e^-t m),   G_t = Delta + l e^-2t,

        and with f in place of l across the modes. Samplers without noise tend to it with ever more
        steps.

        Args:
          x: x_t (batch, ...).
          step: whose time is t: an integer, or integers (batch,).
          end: likewise u's, smaller or larger; -1 for u = 0, which is after the step 0.

        Returns:
          x_u, the shape of x.
        """
        start, stop = (
            level(self.schedule, jnp.broadcast_to(jnp.asarray(each), (len(x),)), x.dtype)
            for each in (step, end)
        )
        law, flat = self.law.astype(x.dtype), x.reshape(len(x), -1)
        return law.moved(flat, start, stop).reshape(x.shape)
