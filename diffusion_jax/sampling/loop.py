"""Samplers: one backward step each, and the one compiled loop that runs any of them."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffusion_jax.denoisers import Denoiser, require_steps
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.devices import batches, few_sizes, fold_in_each, replicate, shard
from diffusion_jax.schedule import NoiseSchedule

# What the start's noise is folded with: no step of any schedule, so that samplers with different
# numbers of steps start from the same noise.
START = 2**31 - 1


class Sampler(Protocol):
    """One step of a backward process. A sampler is a pytree, with its schedule in it.

    The loop carries a state: x itself, unless the sampler remembers more of its past steps and says
    how with `init` and `output`.

    Attributes:
      schedule: noise schedule whose steps are taken.
      calls_per_step: how often a step calls the denoiser.
    """

    schedule: NoiseSchedule
    calls_per_step: ClassVar[int] = 1

    def init(self, x: Array) -> Any:
        """The loop's state, any pytree, from x (batch, ...)."""
        return x

    def step(self, denoiser: Denoiser, state: Any, step: Array, keys: Array) -> Any:
        """Takes the state from before step s to after it.

        Args:
          denoiser: predicts the noise in x.
          state: of the loop, with x at noise level alpha_bar_s, shape (batch, ...).
          step: the integer step s, a scalar.
          keys: one PRNG key per example (batch,), of this step alone. `normal` draws from them; a
            sampler that draws more than once folds or splits them.

        Returns:
          State with x at noise level alpha_bar_{s-1}, or clean data after s = 0.
        """

    def output(self, state: Any) -> Array:
        """The x of a state."""
        return cast(Array, state)


class Start(Protocol):
    """Where samplers start from, made of pure noise. A start is a pytree, as a denoiser is."""

    def __call__(self, noise: Array) -> Array:
        """X at the noise level of the last step, from standard normal noise (batch, ...)."""


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise (len(keys), *shape): an example's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def keys_of_step(keys: Array, step: ArrayLike) -> Array:
    """The examples' keys for one step (batch,): functions of their own keys and the step."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, step)


def pure_noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """The noise that samplers start from (len(keys), *shape), whatever their number of steps."""
    return normal(keys_of_step(keys, START), shape)


def sampling_loop(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Array,
    keys: Array,
    start: ArrayLike | None = None,
    stop: ArrayLike = 0,
) -> Array:
    """Runs a sampler backwards through the steps start - 1, ..., stop of its schedule.

    Args:
      sampler: see `Sampler`.
      denoiser: see `Denoiser`.
      x: state at noise level alpha_bar_{start - 1}, (batch, ...).
      keys: one PRNG key per example (batch,).
      start: number of steps still to go down to 0; by default all L, from pure noise.
      stop: the last step executed; 0 ends at clean data. Two clones that share the steps L-1..b
        come from one run with stop = b, and two with start = b and keys of their own: noise is a
        function of key and step. What a sampler remembers of its past steps is not handed over.

    Returns:
      State after the step `stop`, the shape of x.

    Raises:
      UserError: the sampler's schedule has more steps than the denoiser knows.
    """
    require_steps(denoiser, sampler.schedule.num_steps)
    first = jnp.asarray(sampler.schedule.num_steps if start is None else start)

    def body(i: Array, state: Any) -> Any:
        step = first - 1 - i
        return sampler.step(denoiser, state, step, keys_of_step(keys, step))

    return sampler.output(jax.lax.fori_loop(0, first - stop, body, sampler.init(x)))


@partial(jax.jit, static_argnames="shape")
def _sample_batch(
    sampler: Sampler, denoiser: Denoiser, start: Start | None, keys: Array, shape: tuple[int, ...]
) -> Array:
    noise = pure_noise(keys, shape)
    return sampling_loop(sampler, denoiser, noise if start is None else start(noise), keys)


def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    key: Array,
    num_samples: int,
    shape: tuple[int, ...],
    batch_size: int = 64,
    start: Start | None = None,
) -> np.ndarray:
    """Draws samples on all devices.

    Sample i depends on `key` and i alone: neither on the batch size nor on the number of devices,
    up to rounding.

    Args:
      sampler: a sampler, see `Sampler`.
      denoiser: a denoiser that is a pytree, see `Denoiser`.
      key: typed PRNG key.
      num_samples: how many samples.
      shape: shape of one sample, e.g. (height, width, channels).
      batch_size: samples at a time, rounded up to a multiple of the number of devices. Fewer
        samples are padded to one of a few sizes, so that few programs are compiled.
      start: what standard normal noise becomes before the first step, see `Start`; by default it
        stays as it is.

    Returns:
      Samples (num_samples, *shape), float32, in the units of the training data (mean removed).

    Raises:
      UserError: no samples asked for, or no batch size, or see `sampling_loop`.
    """
    if num_samples < 1 or batch_size < 1:
        raise UserError(
            f"num_samples = {num_samples} and batch_size = {batch_size} must be at least 1"
        )
    size = few_sizes(num_samples, batch_size)
    numbers = range(num_samples)
    parts = sample_batches(sampler, denoiser, key, numbers, shape, size, start)
    return np.concatenate(list(parts))


def sample_batches(
    sampler: Sampler,
    denoiser: Denoiser,
    key: Array,
    numbers: range,
    shape: tuple[int, ...],
    batch_size: int = 64,
    start: Start | None = None,
) -> Iterator[np.ndarray]:
    """Draws the samples of these numbers, a batch at a time, so that no more are in memory.

    Args:
      sampler: see `sample`.
      denoiser: see `sample`.
      key: see `sample`.
      numbers: a stretch of them; sample i is the i-th of `sample`.
      shape: see `sample`.
      batch_size: samples at a time, rounded up to a multiple of the number of devices.
      start: see `sample`.

    Yields:
      The next samples (batch, *shape), float32; fewer in the last batch.
    """
    sampler, denoiser, start = replicate((sampler, denoiser, start))

    def batch(numbers: np.ndarray) -> Array:
        return _sample_batch(sampler, denoiser, start, shard(fold_in_each(key, numbers)), shape)

    yield from batches(batch, numbers, batch_size)
