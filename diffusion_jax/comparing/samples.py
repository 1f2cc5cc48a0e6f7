"""Samples of a network and of theories from one seed: the same noise, and no other chance.

By DDIM, which draws none. A theory of patches goes on with another patch where that resembles the
network more: the sampler has no memory, so stretches of steps, one per patch, make one run.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.comparing.cells import Found
from diffusion_jax.comparing.kept import is_whole
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import resemblance
from diffusion_jax.regimes.theories import Theory
from diffusion_jax.runtime.devices import (
    fetch,
    fold_in_each,
    is_first_process,
    replicate,
    shard,
    whole,
)
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.sampling import Backward, pure_noise, sampling_loop
from diffusion_jax.schedule import NoiseSchedule

SAMPLER = "ddim"

_noise = jax.jit(pure_noise, static_argnames="shape")
_advance = jax.jit(sampling_loop)


def nearest_times(times: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Places in a grid of the times nearest to given ones, by their ratio; (T,) integers."""
    distance = np.abs(np.log(times)[:, None] - np.log(grid)[None])
    return np.asarray(distance.argmin(axis=1))


def chosen(
    found: Mapping[str, Found],
    theories: Sequence[Theory],
    source: str,
    steps: Sequence[int],
    schedule: NoiseSchedule,
    times: np.ndarray,
) -> dict[str, list[str]]:
    """The theory of each family that takes each step of a sampler: of the largest R^2 at that time.

    All processes call it; the first one has the cells.

    Args:
      found: the cells by the theory's name.
      theories: the theories.
      source: on which R^2 is taken.
      steps: of the schedule at which there are cells.
      schedule: that schedule.
      times: of the sampler's steps (N,); the nearest of the steps above speaks for each.
    """
    place = nearest_times(times, np.asarray(schedule.time, np.float64)[list(steps)])

    def choices() -> str:
        best = {}
        for family in dict.fromkeys(each.family for each in theories):
            names = [each.name for each in theories if each.family == family]
            winners = [
                resemblance.closest({name: found[name][source, step] for name in names}).name
                for step in steps
            ]
            best[family] = [winners[i] for i in place]
        return json.dumps(best)

    best: dict[str, list[str]] = json.loads(from_first(choices))
    return best


def stretches(choice: Sequence[str]) -> list[tuple[str, int, int]]:
    """Stretches of equal choices, from the last step down: the choice, and steps first, ..., stop.

    As `sampling_loop` counts: with `first` steps to go, down to the step `stop`.

    Args:
      choice: of each step, from step 0 on.
    """
    found, first = [], len(choice)
    for each, steps in groupby(reversed(choice)):
        stop = first - len(list(steps))
        found.append((each, first, stop))
        first = stop
    return found


def drawn(
    folder: Path,
    name: str,
    choice: Sequence[str],
    process: Callable[[str], Backward],
    key: Array,
    count: int,
    shape: tuple[int, ...],
) -> np.ndarray:
    """The samples number 0..count - 1 from a key, kept in a folder, or found there.

    Sample i starts from the noise of sample i of `sampling.sample`. All processes call it.

    Args:
      folder: where they are kept.
      name: of what draws them.
      choice: which denoiser takes each step, from step 0 on.
      process: the backward process of each choice: all of one sampler and start.
      key: typed PRNG key.
      count: how many.
      shape: of an image.

    Returns:
      The samples (count, ...), mean removed; in processes other than the first zeros, if they were
      kept.

    Raises:
      UserError: they are not finite.
    """
    plan = hashlib.blake2b("/".join([*choice, str(count)]).encode(), digest_size=4).hexdigest()
    path = folder / f"samples_{name}_{plan}.npy"

    if from_first(lambda: "kept" if is_whole(path, (count, *shape)) else ""):
        return (
            np.load(path, allow_pickle=False)
            if is_first_process()
            else np.zeros((count, *shape), np.float32)
        )
    keys = shard(fold_in_each(key, np.arange(whole(count))))
    x: Array | None = None
    for each, first, stop in stretches(choice):
        sampler, denoiser, start, _ = replicate(process(each))
        if x is None:
            noise = _noise(keys, shape)
            x = noise if start is None else start(noise)
        x = _advance(sampler, denoiser, x, keys, jnp.int32(first), jnp.int32(stop))
    assert x is not None
    samples = fetch(x)[:count]
    if not np.isfinite(samples).all():
        raise UserError(f"samples of {name} are not finite: the denoiser is broken")
    if is_first_process():
        write_npy(path, samples)
    return samples
