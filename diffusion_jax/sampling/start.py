"""Where a backward process starts: with the first two moments that the data have left there."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule


@pytrees.dataclass
class GaussianStart:
    """A Gaussian with one variance along a direction and one across it, from pure noise z.

    x = mean + sqrt(across) (z - (u.z) u) + sqrt(along) (u.z) u

    Attributes:
      mean: the shape of one example.
      direction: u, of unit length, the shape of one example.
      along: variance along u, a scalar.
      across: variance of every direction across u, a scalar.
    """

    mean: Array
    direction: Array
    along: Array
    across: Array

    def __call__(self, noise: Array) -> Array:
        """See `Start`."""
        u = jnp.asarray(self.direction, noise.dtype)[None]
        overlap = jnp.sum(noise * u, axis=tuple(range(1, noise.ndim)), keepdims=True)
        along, across = (jnp.sqrt(jnp.asarray(v, noise.dtype)) for v in (self.along, self.across))
        mean = jnp.asarray(self.mean, noise.dtype)[None]
        return mean + across * (noise - overlap * u) + along * overlap * u


def matched_start(
    schedule: NoiseSchedule, mean: np.ndarray, mode: np.ndarray, largest: float, total: float
) -> GaussianStart:
    """The start whose mean and variances are those of x_t at a schedule's last step.

    x_t = e^-t a + sqrt(Delta_t) z has the mean e^-t m, the variance Lambda e^-2t + Delta_t along
    the data's first mode, and across it the remaining variance spread evenly:
    (tr C - Lambda)/(d - 1) e^-2t + Delta_t. The probability-flow ODE keeps what N(0, I) lacks of
    that (docs/sampling.md).

    Args:
      schedule: noise schedule.
      mean: m, the data's mean in the units of x (shape of one example).
      mode: first mode of the data's covariance C, of unit length (shape of one example).
      largest: its eigenvalue Lambda.
      total: tr C.
    """
    time = float(schedule.time[-1])
    signal, noise = np.exp(-2 * time), -np.expm1(-2 * time)
    rest = max(total - largest, 0.0) / max(mean.size - 1, 1)
    return GaussianStart(
        jnp.asarray(np.exp(-time) * mean, jnp.float32),
        jnp.asarray(mode, jnp.float32),
        jnp.float32(noise + signal * largest),
        jnp.float32(noise + signal * rest),
    )
