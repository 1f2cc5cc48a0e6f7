"""Denoisers: anything that predicts the noise in x_t."""

from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from diffusion_jax.nn.unet import UNet
from diffusion_jax.process import score_to_noise
from diffusion_jax.schedule import NoiseSchedule, broadcast_right


class Denoiser(Protocol):
    """A noise predictor, eps(x_t, s).

    To be compiled with its arrays as arguments, not as constants, a denoiser is a pytree too: see
    `TrainedDenoiser`.
    """

    def __call__(self, x: Array, step: Array) -> Array:
        """Predicts the noise.

        Args:
          x: noisy data (batch, ...), at the noise level of `step`.
          step: integer steps s in 0..L-1, shape (batch,).

        Returns:
          Predicted noise, shape of x. The score is -noise / sqrt(1 - alpha_bar_s).
        """


@struct.dataclass
class TrainedDenoiser:
    """The UNet with its parameters, without dropout."""

    params: Any
    model: UNet = struct.field(pytree_node=False)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        return cast(Array, self.model.apply({"params": self.params}, x, step))


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
        signal = jnp.sqrt(self.schedule.alpha_bar[step]).astype(x.dtype)
        variance = self.schedule.noise_variance[step].astype(x.dtype)
        signal, variance = broadcast_right(signal, x.ndim), broadcast_right(variance, x.ndim)
        return (x - signal * mean) / jnp.sqrt(variance)


@struct.dataclass
class GaussianMixtureDenoiser:
    """The exact score of two balanced Gaussians N(+-m, sigma^2 I).

    score(x) = m e^-t/Gamma_t tanh(e^-t m.x/Gamma_t) - x/Gamma_t,
    Gamma_t = Delta_t + sigma^2 e^-2t        (Biroli et al. 2024)

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta_t.
      centre: m, the shape of one example.
      sigma: standard deviation of each Gaussian, a scalar.
    """

    schedule: NoiseSchedule
    centre: Array
    sigma: Array

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`."""
        alpha_bar = self.schedule.alpha_bar[step].astype(x.dtype)
        variance = self.schedule.noise_variance[step].astype(x.dtype)
        gamma = variance + jnp.asarray(self.sigma, x.dtype) ** 2 * alpha_bar
        centre = self.centre.astype(x.dtype)[None]
        overlap = jnp.sum((x * centre).reshape(len(x), -1), axis=1)
        pull = jnp.sqrt(alpha_bar) * jnp.tanh(jnp.sqrt(alpha_bar) * overlap / gamma)
        score = (broadcast_right(pull, x.ndim) * centre - x) / broadcast_right(gamma, x.ndim)
        return score_to_noise(self.schedule, score, step)
