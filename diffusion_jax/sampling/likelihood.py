"""Log-likelihood by the probability-flow ODE.

Without noise the backward process is an ODE (Song et al. 2021), whose flow is invertible and
carries densities. In x_hat = e^t x and rho = sqrt(e^2t - 1) it is d x_hat/d rho = eps(x, t), and

    d log p_hat/d rho = -e^-t div_x eps(x, t),    p_t(x) = e^(d t) p_hat(x_hat)

so that, from the noise level t_0 of step 0 to the last, T,

    log p_hat(x_hat at t_0) = log N(x_T; 0, I) - d T + int e^-t div_x eps d rho.

The trace is Hutchinson's, E v.(J v) over probes v with E v v^T = I (Grathwohl et al. 2019).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers import Denoiser, require_steps
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.devices import few_sizes, fold_in_each, in_batches, replicate, shard
from diffusion_jax.schedule import NoiseSchedule


def rademacher_probes(keys: Array, num_probes: int, shape: tuple[int, ...]) -> Array:
    """Random signs (num_probes, len(keys), *shape), an example's from its own key."""
    draw = jax.vmap(lambda key: jax.random.rademacher(key, (num_probes, *shape), jnp.float32))
    return jnp.moveaxis(draw(keys), 0, 1)


def basis_probes(batch: int, shape: tuple[int, ...]) -> Array:
    """sqrt(d) e_i for every axis i, (d, batch, *shape): their mean is the trace, exactly."""
    dimension = math.prod(shape)
    axes = jnp.sqrt(jnp.asarray(dimension, float)) * jnp.eye(dimension)
    return jnp.broadcast_to(axes.reshape(dimension, 1, *shape), (dimension, batch, *shape))


@jax.jit
def _slope(
    denoiser: Denoiser, schedule: NoiseSchedule, x_hat: Array, step: Array, probes: Array
) -> tuple[Array, Array]:
    """The velocity eps, and for each example e^-t div eps minus that of unit Gaussian data.

    The latter is d sqrt(alpha_bar (1 - alpha_bar)), whose integral over rho is d (T - t_0): left
    in, it would make up most of the method's error.
    """
    scale = jnp.exp(-schedule.time[step]).astype(x_hat.dtype)
    steps = jnp.full(len(x_hat), step)
    eps, pullback = jax.vjp(lambda y: denoiser(scale * y, steps), x_hat)
    axes = tuple(range(1, x_hat.ndim))
    products = jax.vmap(lambda v: jnp.sum(v * pullback(v)[0], axes))(probes)
    noise = jnp.sqrt(schedule.noise_variance[step]).astype(x_hat.dtype)
    return eps, jnp.mean(products, axis=0) - noise * scale * math.prod(x_hat.shape[1:])


def log_likelihood(
    denoiser: Denoiser, schedule: NoiseSchedule, x_hat: Array, probes: Array
) -> tuple[Array, Array]:
    """Log-density of data under the flow, by Heun's method over the levels of the schedule.

    The density is that of e^t x_t at the first level: the data's, blurred with Gaussian noise of
    deviation rho_0 (0.01 for the linear schedule of 1000 steps), as the denoiser knows it. Of
    second order in the steps; two denoiser calls and their derivatives per step. The loop over
    steps is not compiled: within one, XLA's CPU backend takes five times as long for the UNet's
    derivative (measured with the preset `sample`, batch 32).

    Args:
      denoiser: a denoiser that is a pytree; reverse differentiation is all it needs.
      schedule: its schedule, or, with a `RespacedDenoiser`, one of fewer steps.
      x_hat: data (batch, ...), in the units of the training data.
      probes: (k, batch, ...), from `rademacher_probes` or `basis_probes`; the same all the way.

    Returns:
      Log-densities in nats (batch,), and x_T, the shape of x_hat.

    Raises:
      UserError: the schedule has more steps than the denoiser knows.
    """
    require_steps(denoiser, schedule.num_steps)
    dtype, axes = x_hat.dtype, tuple(range(1, x_hat.ndim))
    dimension = math.prod(x_hat.shape[1:])
    probes = probes.astype(dtype)
    increments = jnp.diff(jnp.sqrt(jnp.expm1(2 * schedule.time))).astype(dtype)
    trace = jnp.zeros(len(x_hat), dtype)
    for step, h in enumerate(increments):
        here, there = jnp.int32(step), jnp.int32(step + 1)
        velocity, growth = _slope(denoiser, schedule, x_hat, here, probes)
        end = x_hat + h * velocity
        end_velocity, end_growth = _slope(denoiser, schedule, end, there, probes)
        x_hat = x_hat + h / 2 * (velocity + end_velocity)
        trace = trace + h / 2 * (growth + end_growth)
    x_t = x_hat * jnp.exp(-schedule.time[-1]).astype(dtype)
    normal = -0.5 * jnp.sum(x_t**2, axes) - dimension / 2 * math.log(2 * math.pi)
    return normal + trace - (schedule.time[0] * dimension).astype(dtype), x_t


def dequantize(keys: Array, images: Array) -> Array:
    """Images of grey levels k/255 as (k + u)/255, u uniform in [-1/2, 1/2), from its own key."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype))(keys)
    return images + (noise - 0.5) / 255


def bits_per_dimension(log_density: Array, dimension: int) -> Array:
    """(-log p/d + log 255)/log 2 for densities in units where grey levels are 1/255 apart.

    By Jensen's inequality, its mean over `dequantize` is at least the code length of the grey
    levels under P(k) = int p over the cube of side 1/255 around k/255 (Theis et al. 2016).

    Args:
      log_density: in nats (batch,).
      dimension: d.
    """
    return (math.log(255) - log_density / dimension) / math.log(2)


def image_bits(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    images: np.ndarray,
    mean: np.ndarray,
    key: Array,
    num_probes: int = 1,
    batch_size: int = 64,
) -> np.ndarray:
    """Bits per dimension of images of grey levels, dequantized once each, on all devices.

    An image's value depends on `key`, its place and the image alone, up to rounding.

    Args:
      denoiser: a denoiser that is a pytree, see `Denoiser`.
      schedule: its schedule.
      images: grey levels, uint8 (n, height, width, channels).
      mean: per-channel mean of the training set on the scale of [0, 1], (channels,).
      key: typed PRNG key.
      num_probes: Hutchinson's probes per image.
      batch_size: images at a time, rounded up to a multiple of the number of devices.

    Returns:
      float32 (n,).

    Raises:
      UserError: no images, probes or batch size.
    """
    if min(len(images), num_probes, batch_size) < 1:
        raise UserError(
            f"likelihood of {len(images)} images with {num_probes} probes, {batch_size} at a time: "
            f"give at least one of each"
        )
    denoiser, schedule = replicate((denoiser, schedule))
    offset = replicate(mean.astype(np.float32).reshape(1, 1, 1, -1))

    def batch(numbers: np.ndarray) -> Array:
        part = images[np.minimum(numbers, len(images) - 1)].astype(np.float32) / np.float32(255)
        part, keys = shard((part, fold_in_each(key, numbers)))
        halves = jax.vmap(jax.random.split)(keys)
        x = dequantize(halves[:, 0], part) - offset
        probes = rademacher_probes(halves[:, 1], num_probes, part.shape[1:])
        log_density, _ = log_likelihood(denoiser, schedule, x, probes)
        return bits_per_dimension(log_density, math.prod(images.shape[1:]))

    return in_batches(batch, len(images), few_sizes(len(images), batch_size))
