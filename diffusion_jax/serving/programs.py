"""What is compiled once and run for every request: one step of a sampler, and what is read off x_t.

A request's arrays have one of two batch sizes, 1 and `clone_batch()`, whatever it asks for, and are
never joined with another request's: its bytes depend on nothing but itself. All of it runs on the
first device. The tables of a schedule of N steps are padded to the L of the whole one, so that
every N runs the same program.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers import Denoiser, EmpiricalDenoiser
from diffusion_jax.process import diffuse, noise_to_x_0
from diffusion_jax.regimes.cloning import clone_keys
from diffusion_jax.sampling import Backward, Sampler, Start, keys_of_step, pure_noise
from diffusion_jax.sampling.respacing import RespacedDenoiser
from diffusion_jax.schedule import NoiseSchedule, linear_schedule

# Nearest training images that are told of a noisy one.
NEAREST = 8


def clone_batch() -> int:
    """Clones, returns or samples at a time: few on CPUs, where they end one batch after another."""
    return 8 if jax.default_backend() == "cpu" else 32


@dataclass(frozen=True)
class Process:
    """A backward process of N calls, in tables of the length of the whole schedule.

    Attributes:
      sampler: its step number k, from N - 1 to 0, is the schedule's step `steps[k]`.
      denoiser: of these steps.
      start: what the pure noise becomes.
      steps: the steps of the whole schedule that are taken, increasing (N,).
    """

    sampler: Sampler
    denoiser: Denoiser
    start: Start | None
    steps: np.ndarray

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.steps)

    def number(self, step: int) -> int:
        """The k of the step taken that is nearest to a step of the whole schedule."""
        return int(np.abs(self.steps - step).argmin())


def padded(process: Backward, num_steps: int) -> Process:
    """A process whose arrays have one shape for every number of calls.

    Args:
      process: see `sampling.backward`.
      num_steps: L of the whole schedule.
    """
    denoiser, taken = process.denoiser, np.arange(num_steps)
    if isinstance(denoiser, RespacedDenoiser):
        taken, denoiser = np.asarray(denoiser.steps), denoiser.denoiser

    def pad(table: Any) -> Array:
        table = np.asarray(table)
        return jnp.asarray(np.pad(table, (0, num_steps - len(table)), "edge"))

    sampler = jax.tree.map(pad, process.sampler)
    respaced = RespacedDenoiser(denoiser, pad(taken.astype(np.int32)))
    return Process(sampler, respaced, process.start, taken)


@partial(jax.jit, static_argnames="shape")
def begin(
    sampler: Sampler, start: Start | None, keys: Array, shape: tuple[int, ...]
) -> tuple[Any, Array]:
    """The sampler's state before its first step, and its x (batch, *shape)."""
    noise = pure_noise(keys, shape)
    x = noise if start is None else start(noise)
    return sampler.init(x), x


@jax.jit
def resume(sampler: Sampler, x: Array) -> Any:
    """The sampler's state at x (batch, ...), without a memory of steps before."""
    return sampler.init(x)


@jax.jit
def advance(
    sampler: Sampler, denoiser: Denoiser, state: Any, keys: Array, k: Array
) -> tuple[Any, Array]:
    """The sampler's state after its step number k, and its x; see `sampling_loop`."""
    state = sampler.step(denoiser, state, k, keys_of_step(keys, k))
    return state, sampler.output(state)


@jax.jit
def keys_of_clones(key: Array, fork: Array, numbers: Array) -> Array:
    """The keys of some clones (batch,) of the trunk with a key, see `cloning.clone_keys`."""
    return jax.vmap(lambda clone: clone_keys(key[None], fork, clone)[0])(numbers)


@jax.jit
def noised(schedule: NoiseSchedule, x_0: Array, keys: Array, k: Array) -> Array:
    """x_t at the step number k of a sampler's schedule, with the noise of `pure_noise`."""
    noise = pure_noise(keys, x_0.shape[1:])
    return diffuse(schedule, x_0, jnp.full(len(x_0), k), noise)


@jax.jit
def denoised(schedule: NoiseSchedule, denoiser: Denoiser, x: Array, step: Array) -> Array:
    """E[x_0 | x_t] of a denoiser: (x - sqrt(1 - alpha_bar_s) eps(x, s))/sqrt(alpha_bar_s)."""
    steps = jnp.full(len(x), step)
    return noise_to_x_0(schedule, denoiser(x, steps), x, steps)


class Reading(NamedTuple):
    """What the exact posterior over the training images says of x_t; B images.

    Attributes:
      classes: p(c | x_t), (B, C); of no columns without classes.
      class_entropy: H(c | x_t) in nats (B,).
      entropy: H(p(. | x_t)) in nats (B,).
      nearest: the training images of the largest weights (B, 8), fewer where there are fewer.
      weights: p(nu | x_t) of these.
    """

    classes: Array
    class_entropy: Array
    entropy: Array
    nearest: Array
    weights: Array


@jax.jit
def read(exact: EmpiricalDenoiser, member: Array, x: Array, step: Array) -> Reading:
    """Reads x_t (B, ...) at a step, with `member` (n, C) one where an image is of a class."""
    log_p = exact.posterior(x, jnp.full(len(x), step))
    p = jax.nn.softmax(log_p)  # again: what rounding all logarithms share is gone
    classes = jnp.matmul(p, member, precision="highest")
    # By the logarithms, which tell points apart whose weights are all 0 to rounding.
    _, nearest = jax.lax.top_k(log_p, min(NEAREST, p.shape[1]))
    weights = jnp.take_along_axis(p, nearest, axis=1)
    entropy = -jnp.sum(p * _finite(log_p), 1)
    return Reading(classes, _entropy(classes), entropy, nearest, weights)


def _finite(log_p: Array) -> Array:
    return jnp.maximum(log_p, jnp.finfo(log_p.dtype).min / 1e3)  # zero times it is zero


def _entropy(p: Array) -> Array:
    return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=1)


@jax.jit
def project(modes: Array, x: Array) -> Array:
    """Components of x (B, ...) along two orthonormal directions (2, d): (B, 2)."""
    return jnp.matmul(x.reshape(len(x), -1), modes.T, precision="highest")


def is_noisy(kind: Any) -> bool:
    """Whether a sampler's steps draw noise, so that two clones of one state part."""
    schedule = linear_schedule(100)
    sampler, x = kind(schedule), jnp.zeros((2, 1))
    keys = jax.random.split(jax.random.key(0), 2)

    def nothing(x: Array, step: Array) -> Array:
        return jnp.zeros_like(x)

    state = sampler.step(nothing, sampler.init(x), jnp.int32(50), keys)
    first, second = np.asarray(sampler.output(state))
    return bool((first != second).any())
