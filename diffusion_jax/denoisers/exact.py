"""The exact score of a training set."""

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from diffusion_jax.process import x_0_to_noise
from diffusion_jax.schedule import NoiseSchedule


@struct.dataclass
class EmpiricalDenoiser:
    """The exact score of the noisy training set: a denoiser that needs no training.

    P_t(x) = 1/n sum_nu N(x; e^-t a_nu, Delta_t I),   Delta_t = 1 - e^-2t
    score(x) = (e^-t sum_nu p(nu | x) a_nu - x)/Delta_t,
    p(nu | x) = softmax_nu(-|x - e^-t a_nu|^2 / (2 Delta_t))        (Biroli et al. 2024)

    Followed backwards it ends on the training points themselves. The logits are products of the
    size of |a|^2/Delta_t: in float32 points nearer to each other than sqrt(Delta_t), at the first
    few steps, share their probability with an error of up to about 1e-7 |a|^2/Delta_t.

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta_t.
      points: training points a_nu (n, ...), in the units of x.
    """

    schedule: NoiseSchedule
    points: Array

    @classmethod
    def fit(cls, schedule: NoiseSchedule, points: np.ndarray, labels: np.ndarray | None) -> Self:
        """That of these training points (n, ...), mean removed; labels change nothing."""
        return cls(schedule, jax.device_put(points))

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    def posterior(self, x: Array, step: Array) -> Array:
        """Log p(nu | x), shape (batch, n), for x (batch, ...) and steps (batch,)."""
        signal = jnp.sqrt(self.schedule.alpha_bar[step]).astype(x.dtype)[:, None]
        variance = self.schedule.noise_variance[step].astype(x.dtype)[:, None]
        points = self.points.reshape(len(self.points), -1)
        inner = jnp.matmul(x.reshape(len(x), -1), points.T, precision="highest")
        squared = jnp.sum(points * points, axis=1)[None, :]
        return jax.nn.log_softmax(signal * (inner - signal * squared / 2) / variance, axis=1)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`: the noise is (x - e^-t E[a | x])/sqrt(Delta_t)."""
        weights = jnp.exp(self.posterior(x, step))
        points = self.points.reshape(len(self.points), -1)
        mean = jnp.matmul(weights, points, precision="highest").reshape(x.shape)
        return x_0_to_noise(self.schedule, mean, x, step)
