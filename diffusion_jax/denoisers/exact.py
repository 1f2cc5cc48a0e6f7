"""The exact score of a training set."""

from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from diffusion_jax.denoisers.protocol import require_inputs
from diffusion_jax.errors import UserError
from diffusion_jax.process import x_0_to_noise
from diffusion_jax.runtime import pytrees
from diffusion_jax.schedule import NoiseSchedule, broadcast_right
from diffusion_jax.symmetry import Group, require_group


@pytrees.dataclass
class EmpiricalDenoiser:
    """The exact score of the noisy training set: a denoiser that needs no training.

    P_t(x) = 1/n sum_nu N(x; e^-t a_nu, Delta_t I),   Delta_t = 1 - e^-2t
    score(x) = (e^-t sum_nu p(nu | x) a_nu - x)/Delta_t,
    p(nu | x) = softmax_nu(-|x - e^-t a_nu|^2 / (2 Delta_t))        (Biroli et al. 2024)

    Followed backwards it ends on the training points themselves. The logits are products of the
    size of |a|^2/Delta_t: in float32 points nearer to each other than sqrt(Delta_t), at the first
    few steps, share their probability with an error of up to about 1e-7 |a|^2/Delta_t.

    With a group G it is the score of the training set together with all its images g a_nu, n |G|
    points that weigh alike, which are not stored: since |x - e^-t g a| = |g^-1 x - e^-t a|,

    D(x) = sum_g g sum_nu w_{g,nu} a_nu,
    w_{g,nu} = softmax_{g,nu}(-|g^-1 x - e^-t a_nu|^2 / (2 Delta_t))

    is equivariant, and is computed one map after another with a running log-sum-exp, in the memory
    of one map and |G| times the time. A point that some maps fix is there as often as they are.

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta_t.
      points: training points a_nu (n, ...), in the units of x.
      group: maps of the points, images (height, width, channels); None for the points alone.

    Raises:
      UserError: when it is called with images that the group does not map to such; see also
        `require_inputs`.
    """

    schedule: NoiseSchedule
    points: Array
    group: Group | None = struct.field(pytree_node=False, default=None)

    @classmethod
    def fit(cls, schedule: NoiseSchedule, points: np.ndarray, labels: np.ndarray | None) -> Self:
        """The exact score of training points (n, ...), mean removed; labels change nothing.

        Raises:
          UserError: points that are no floats, none, or values that are not finite.
        """
        points = np.asarray(points)
        if points.ndim < 2 or not points.size or points.dtype.kind != "f":
            raise UserError(
                f"training points of shape {points.shape} and type {points.dtype}: give floats, "
                f"one point at least"
            )
        if not (finite := np.isfinite(points.reshape(len(points), -1)).all(axis=1)).all():
            raise UserError(f"training point {np.argmin(finite)} holds values that are not finite")
        return cls(schedule, jax.device_put(points))

    def __post_init__(self) -> None:
        require_group(self.group)

    @property
    def num_steps(self) -> int:
        """How many steps it knows."""
        return self.schedule.num_steps

    def posterior(self, x: Array, step: Array) -> Array:
        """Log p(nu | x), shape (batch, n), for x (batch, ...) and steps (batch,).

        With a group, that x comes from any of the images of a_nu: p(nu | x) = sum_g w_{g,nu}.
        """
        require_inputs(x, step, self.points.shape[1:], self.num_steps)
        if self.group is not None:
            return _orbit_posterior(self, self.group, x, step)
        return jax.nn.log_softmax(self._logits(x, step), axis=1)

    def _logits(self, x: Array, step: Array) -> Array:
        """Log p(nu | x) up to a constant that every map of x leaves as it is (batch, n)."""
        signal = jnp.sqrt(self.schedule.alpha_bar[step]).astype(x.dtype)[:, None]
        variance = self.schedule.noise_variance[step].astype(x.dtype)[:, None]
        points = self.points.reshape(len(self.points), -1)
        inner = jnp.matmul(x.reshape(len(x), -1), points.T, precision="highest")
        squared = jnp.sum(points * points, axis=1)[None, :]
        return signal * (inner - signal * squared / 2) / variance

    def predict_x_0(self, x: Array, step: Array) -> Array:
        """D = E[a | x], shape of x (batch, ...), steps (batch,)."""
        require_inputs(x, step, self.points.shape[1:], self.num_steps)
        if self.group is not None:
            mean: Array = _orbit_mean(self, self.group, x, step)
            return mean
        return self._sum(jnp.exp(self.posterior(x, step))).reshape(x.shape)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`: the noise is (x - e^-t E[a | x])/sqrt(Delta_t)."""
        return x_0_to_noise(self.schedule, self.predict_x_0(x, step), x, step)

    def _sum(self, weights: Array) -> Array:
        """Sum_nu weights_nu a_nu, flat, of weights (batch, n)."""
        points = self.points.reshape(len(self.points), -1)
        return jnp.matmul(weights, points, precision="highest")


# Compiled by themselves: else calls outside of compiled code would each compile the loop again.
@partial(jax.jit, static_argnums=1)
def _orbit_posterior(denoiser: EmpiricalDenoiser, group: Group, x: Array, step: Array) -> Array:
    group.require(x.shape[1:])

    def add(total: Array, index: Array) -> tuple[Array, None]:
        return jnp.logaddexp(total, denoiser._logits(group.inverse(index, x), step)), None

    nothing = jnp.full((len(x), len(denoiser.points)), -jnp.inf, x.dtype)
    total, _ = jax.lax.scan(add, nothing, jnp.arange(group.order))
    return jax.nn.log_softmax(total, axis=1)


@partial(jax.jit, static_argnums=1)
def _orbit_mean(denoiser: EmpiricalDenoiser, group: Group, x: Array, step: Array) -> Array:
    """E[a | x] over the points and all maps, x's shape."""
    group.require(x.shape[1:])

    def add(carry: tuple[Array, Array, Array], index: Array) -> tuple[Any, None]:
        top, total, mean = carry
        logits = denoiser._logits(group.inverse(index, x), step)
        # The result does not depend on it.
        higher = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(logits, axis=1)))
        weights, kept = jnp.exp(logits - higher[:, None]), jnp.exp(top - higher)
        image = group(index, denoiser._sum(weights).reshape(x.shape))
        total = kept * total + jnp.sum(weights, axis=1)
        return (higher, total, broadcast_right(kept, x.ndim) * mean + image), None

    zeros = jnp.zeros(len(x), x.dtype)
    first = (zeros - jnp.inf, zeros, jnp.zeros_like(x))
    # No map's weights are kept for the derivative.
    body = jax.checkpoint(add, prevent_cse=False)
    (_, total, mean), _ = jax.lax.scan(body, first, jnp.arange(group.order))
    return mean / broadcast_right(total, x.ndim)
