"""Forks of a backward process in mid-course: the cloning experiment, for any denoiser and sampler.

A trunk runs from pure noise to data. A fork at b means that the steps L-1..b are shared: from the
state with b steps still to go, at noise level alpha_bar_{b-1}, clones go on with noise of their
own. The probability that two of them end in the same class is phi; that they end nearest to the
same training point, phi_C (Biroli et al. 2024).

The trunk is run once for all its forks and may serve as one of the two clones. With B forks at b_i
a trunk of L steps then costs L + sum b_i calls of the denoiser, L + 2 sum b_i with two fresh
clones, and sum (L + b_i) where each fork is generated from pure noise, as the published code does.
Forks of one trunk are correlated; trunks are independent, so the interval at each fork is binomial.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import binomtest

from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.process import diffuse
from diffusion_jax.runtime.devices import fetch, fold_in_each, replicate, shard
from diffusion_jax.sampling import START, Sampler, Start, pure_noise, sampling_loop

# What a clone's key is folded with, less the clone's number: no step, and not the start.
_CLONE = START - 1


@dataclass(frozen=True)
class Cloning:
    """What a cloning experiment counted.

    Attributes:
      times: branch times (T,), Ornstein-Uhlenbeck.
      same: pairs that ended in the same class, or nearest to the same training point (T,).
      pairs: pairs for each branch time.
    """

    times: np.ndarray
    same: np.ndarray
    pairs: int

    @property
    def phi(self) -> np.ndarray:
        """Fraction of the pairs that ended alike, (T,)."""
        return self.same / self.pairs

    @property
    def stderr(self) -> np.ndarray:
        """Standard error of phi, sqrt(phi (1 - phi)/pairs), (T,); zero where phi is 0 or 1."""
        return np.sqrt(self.phi * (1 - self.phi) / self.pairs)

    def interval(self) -> np.ndarray:
        """Wilson's 95 % interval of phi, (T, 2), which is not empty at 0 and 1 either."""
        tests = [binomtest(int(same), self.pairs) for same in self.same]
        return np.array([test.proportion_ci(method="wilson") for test in tests])

    def p_values(self, phi: np.ndarray) -> np.ndarray:
        """Two-sided p-values of the exact binomial test against the probabilities phi (T,)."""
        probabilities = np.clip(phi, 0, 1)  # a quadrature's 1 + 1e-16
        return np.array(
            [
                binomtest(int(same), self.pairs, float(p)).pvalue
                for same, p in zip(self.same, probabilities, strict=True)
            ]
        )


@dataclass(frozen=True)
class Forks:
    """Where trunks and clones end, in the units of the training data; N trunks, B forks.

    Attributes:
      steps: number of steps b that each fork's clones have to go (B,), descending.
      trunk: the trunks' ends (N, ...).
      clones: the clones' ends (N, B, clones, ...).
      path: the trunks' states along the way, where asked for (N, W, ...).
    """

    steps: np.ndarray
    trunk: np.ndarray
    clones: np.ndarray
    path: np.ndarray

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The two ends of each fork (N, B, ...): trunk and clone, or the first two clones."""
        first = self.clones[:, :, 0]
        if self.clones.shape[2] > 1:
            return first, self.clones[:, :, 1]
        return np.broadcast_to(self.trunk[:, None], first.shape), first


def denoiser_calls(steps: Sequence[int], num_steps: int, clones: int = 1) -> int:
    """Calls of the denoiser for a trunk and its forks: L + clones * sum b."""
    return num_steps + clones * sum(steps)


def separate_calls(steps: Sequence[int], num_steps: int) -> int:
    """Calls where every fork is generated from pure noise, and cloned once: sum (L + b)."""
    return sum(num_steps + b for b in steps)


def _checked(steps: Sequence[int], num_steps: int) -> np.ndarray:
    result = np.asarray(steps)
    if (
        result.ndim != 1
        or not len(result)
        or not np.issubdtype(result.dtype, np.integer)
        or result.min() < 1
        or result.max() > num_steps
        or (result[1:] >= result[:-1]).any()
    ):
        raise UserError(
            f"forks at {list(steps)}: give whole numbers of steps still to go, in descending "
            f"order, from {num_steps} (pure noise) to 1"
        )
    return result.astype(np.int64)


_noise = jax.jit(pure_noise, static_argnames="shape")
_advance = jax.jit(sampling_loop)


@jax.jit
def clone_keys(keys: Array, fork: Array, clone: Array) -> Array:
    """The keys of one clone of each trunk (batch,), from the trunks' own.

    Args:
      keys: the trunks' typed keys (batch,).
      fork: steps b that the clone has still to go, a scalar.
      clone: its number, a scalar.
    """

    def of_one(key: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, _CLONE - clone), fork)

    return jax.vmap(of_one)(keys)


def _keys(key: Array, first: int, count: int) -> Array:
    """The keys of samples first.. on the devices, padded to a multiple of their number."""
    padded = -(-count // jax.device_count()) * jax.device_count()
    numbers = np.arange(first, first + padded)
    return shard(fold_in_each(key, numbers))


def trunks(
    sampler: Sampler,
    denoiser: Denoiser,
    x: Array,
    keys: Array,
    steps: Sequence[int],
    at: int | None = None,
) -> Iterator[tuple[int, Array]]:
    """Runs trunks from pure noise down, stopping along the way.

    Args:
      sampler: see `sampling.Sampler`. What it remembers of its past steps, if anything, is
        forgotten at each stop.
      denoiser: see `denoisers.Denoiser`.
      x: pure noise (batch, ...), or the states with `at` steps to go.
      keys: one PRNG key per trunk (batch,).
      steps: steps still to go at each stop, descending; 0 is clean data.
      at: steps to go of x; by default all.

    Yields:
      b and the states with b steps to go (batch, ...), for each stop.
    """
    at = sampler.schedule.num_steps if at is None else at
    for b in steps:
        x = _advance(sampler, denoiser, x, keys, jnp.int32(at), jnp.int32(b))
        at = int(b)
        yield at, x


def fork(
    sampler: Sampler,
    denoiser: Denoiser,
    key: Array,
    steps: Sequence[int],
    shape: tuple[int, ...],
    first: int,
    last: int,
    clones: int = 1,
    watch: Sequence[int] = (),
    progress: Callable[[int], None] = lambda calls: None,
    start: Start | None = None,
) -> Forks:
    """Runs the trunks number first..last-1 and their clones, all of one batch on all devices.

    Trunk i and its clones depend on `key` and i alone, up to rounding; the trunk ends where
    `sampling.sample` with this key ends its sample i. So many trunks can be run batch by batch, and
    an interrupted run can be taken up. All this is true of samplers without memory: one that
    remembers its past steps forgets them at each stop, and ends elsewhere with other stops.

    Args:
      sampler: see `sampling.Sampler`; clones of one without noise are equal.
      denoiser: a denoiser that is a pytree, see `denoisers.Denoiser`.
      key: typed PRNG key.
      steps: steps b that the clones of each fork have to go, from L to 1, descending.
      shape: shape of one sample.
      first: number of the first trunk.
      last: number after that of the last trunk.
      clones: clones of each fork, besides the trunk.
      watch: steps to go at which the trunks' states are kept, from L to 1, descending.
      progress: called with the calls of the denoiser made for each trunk so far.
      start: what the trunks' pure noise becomes before the first step; see `sampling.sample`.

    Returns:
      See `Forks`.

    Raises:
      UserError: forks outside the schedule or not descending; no trunk; no clone.
    """
    num_steps = sampler.schedule.num_steps
    forks = _checked(steps, num_steps)
    watched = _checked(watch, num_steps) if len(watch) else np.zeros(0, np.int64)
    if last <= first or clones < 1:
        raise UserError(f"{last - first} trunks with {clones} clones: at least one of each")
    sampler, denoiser, start = replicate((sampler, denoiser, start))
    keys, count = _keys(key, first, last - first), last - first
    ends, path, calls, at = [], [], 0, num_steps
    noise = _noise(keys, shape)
    end = begun = noise if start is None else start(noise)
    stops = sorted({*forks.tolist(), *watched.tolist(), 0}, reverse=True)
    for b, end in trunks(sampler, denoiser, begun, keys, stops):
        calls, at = calls + at - b, b
        if b in watched:
            path.append(fetch(end)[:count])
        if b in forks:
            each = [_clone(sampler, denoiser, end, keys, b, c)[:count] for c in range(clones)]
            ends.append(np.stack(each, axis=1))
            calls += clones * b
        progress(calls * sampler.calls_per_step)
    kept = np.stack(path, axis=1) if path else np.zeros((count, 0, *shape), np.float32)
    return Forks(forks, fetch(end)[:count], np.stack(ends, axis=1), kept)


def _clone(
    sampler: Sampler, denoiser: Denoiser, x: Array, keys: Array, b: int, clone: int
) -> np.ndarray:
    own = clone_keys(keys, jnp.int32(b), jnp.int32(clone))
    return fetch(_advance(sampler, denoiser, x, own, jnp.int32(b), jnp.int32(0)))


@partial(jax.jit, static_argnames="shape")
def _noised(
    sampler: Sampler, points: Array, keys: Array, b: Array, shape: tuple[int, ...]
) -> Array:
    # The noise of pure noise: an image's path up is the same for every b.
    noise = pure_noise(keys, shape)
    return diffuse(sampler.schedule, points, jnp.full(len(points), b - 1), noise)


def turning_points(
    sampler: Sampler, key: Array, b: int, points: np.ndarray, first: int = 0
) -> np.ndarray:
    """Where `u_turns` with b steps to go turn: x_t (N, ...); see there for arguments and errors."""
    _checked([b], sampler.schedule.num_steps)
    keys = _keys(key, first, len(points))
    up = _noised(replicate(sampler), _spread(points, keys), keys, jnp.int32(b), points.shape[1:])
    return fetch(up)[: len(points)]


def _spread(points: np.ndarray, keys: Array) -> Array:
    """The points on the devices, some of them again where there are more keys."""
    return cast(Array, shard(np.resize(points, (len(keys), *points.shape[1:])).astype(np.float32)))


def u_turns(
    sampler: Sampler,
    denoiser: Denoiser,
    key: Array,
    steps: Sequence[int],
    points: np.ndarray,
    first: int = 0,
) -> np.ndarray:
    """Diffuses data to the noise level with b steps to go, and comes back.

    x_t = sqrt(alpha_bar_{b-1}) a + sqrt(1 - alpha_bar_{b-1}) z, then the steps b-1..0.

    Args:
      sampler: see `sampling.Sampler`.
      denoiser: a denoiser that is a pytree, see `denoisers.Denoiser`.
      key: typed PRNG key; with that of `fork`, the noise is that of its trunks and clones.
      steps: numbers of steps b of each turn, from L to 1, descending.
      points: data a (N, ...), in the units of the training data (mean removed).
      first: number of the first point, by which its noise is drawn.

    Returns:
      Where the points come back to (N, B, ...).

    Raises:
      UserError: turns outside the schedule or not descending; no points.
    """
    turns = _checked(steps, sampler.schedule.num_steps)
    if not len(points):
        raise UserError("no points to diffuse")
    sampler, denoiser = replicate((sampler, denoiser))
    keys = _keys(key, first, len(points))
    start, ends = _spread(points, keys), []
    for b in turns:
        x = _noised(sampler, start, keys, jnp.int32(b), points.shape[1:])
        ends.append(_clone(sampler, denoiser, x, keys, int(b), 0))
    return np.stack(ends, axis=1)[: len(points)]
