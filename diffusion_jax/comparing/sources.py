"""The noisy images on which a network and a theory are asked: x_t of images, and trajectories."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console

from diffusion_jax import data
from diffusion_jax.comparing.kept import is_whole
from diffusion_jax.comparing.progress import advancing
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.forking import branch_steps
from diffusion_jax.process import diffuse
from diffusion_jax.regimes.cloning import trunks
from diffusion_jax.runtime.devices import (
    fetch,
    fold_in_each,
    is_first_process,
    replicate,
    replicate_from_first,
    shard,
    whole,
)
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.runtime.patience import names_in
from diffusion_jax.sampling import Backward, pure_noise
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.training.run import TrainedModel

TRAINING, HELD_OUT, TRAJECTORIES = "training", "held-out", "trajectories"
OTHERS_TRAINING = "other's training"
NAMES = (TRAINING, HELD_OUT, TRAJECTORIES)


@dataclasses.dataclass(frozen=True)
class Source:
    """Noisy images at every step.

    Attributes:
      name: what it is called.
      key: the same in names of files, with what tells it from others of its name.
      count: how many images.
      at: of a step s, x_t (count, ...) and the noise in it, or None where no one knows it.
    """

    name: str
    key: str
    count: int
    at: Callable[[int], tuple[np.ndarray, np.ndarray | None]]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which sources are asked for.

    Attributes:
      names: of `NAMES`.
      count: images of each, at most.
      seed: of the noise and of the choice of images.
      batch_size: trajectories at a time.
      per_class: images of each class that are held out, where the run held out none; by default as
        many as make up the count.
    """

    names: tuple[str, ...]
    count: int
    seed: int
    batch_size: int
    per_class: int | None = None

    def check(self) -> None:
        """Raises a UserError where a name is not known, or there is none."""
        if not self.names or not set(self.names) <= set(NAMES):
            raise UserError(f"sources = {self.names} must be of {', '.join(NAMES)}")


_noise = jax.jit(pure_noise, static_argnames="shape")


def key_of(seed: int, place: int | None = None) -> Array:
    """The key of trajectories and samples, as experiments.sample has it; or of another draw."""
    key = jax.random.key(seed)
    # Sample i has the key folded with i: no draw shares its noise.
    return key if place is None else jax.random.fold_in(key, 2**32 - 1 - place)


def steps_of(times: np.ndarray, asked: tuple[float, ...] | None, default: np.ndarray) -> list[int]:
    """The steps nearest to the times asked for, increasing.

    Args:
      times: of the schedule's steps (L,).
      asked: times, each on a step of its own.
      default: times that are taken where none are asked for, as far as the schedule reaches.

    Raises:
      UserError: see `forking.branch_steps`.
    """
    if asked is not None:
        return sorted(int(b) - 1 for b in branch_steps(times, asked, "times"))
    inside = np.clip(default, times[0], times[-1])
    return sorted({int(np.abs(times - t).argmin()) for t in inside})


def _everywhere(array: np.ndarray) -> np.ndarray:
    """The first process's array, in all processes."""
    on_devices: Any = replicate_from_first(array)
    return fetch(on_devices)


@jax.jit
def _diffused(schedule: NoiseSchedule, x_0: Array, step: Array, noise: Array) -> Array:
    return diffuse(schedule, x_0, jnp.full(len(x_0), step), noise)


def noised(
    name: str, images: ImageSet, mean: np.ndarray, count: int, key: Array, schedule: NoiseSchedule
) -> Source:
    """Some of the images, in random order, each with noise of its own, the same at all times.

    The first of them are the same for every count.

    Args:
      name: see `Source`.
      images: the images.
      mean: per-channel mean that is removed from them (channels,).
      count: how many, at most all.
      key: typed PRNG key.
      schedule: noise schedule.
    """
    order_key, noise_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(order_key, len(images.images)))
    chosen = np.asarray(dataclasses.replace(images, kept_mean=mean).centred(order[:count]))
    noise = np.asarray(_noise(fold_in_each(noise_key, np.arange(len(chosen))), chosen.shape[1:]))
    known = hashlib.blake2b(np.ascontiguousarray(chosen).tobytes(), digest_size=4).hexdigest()

    def at(step: int) -> tuple[np.ndarray, np.ndarray | None]:
        return np.asarray(_diffused(schedule, chosen, jnp.int32(step), noise)), noise

    return Source(name, f"{re.sub('[^a-z]+', '-', name)}_{known}", len(chosen), at)


def held_out(model: TrainedModel, per_class: int) -> tuple[ImageSet | None, str]:
    """Images that the run was not trained on: those that it held out, or the next of its source.

    Args:
      model: the run.
      per_class: how many of each class, where the run held out none.

    Returns:
      The images and an empty string; or None, and why there are none.
    """
    config = model.config.data
    if config.held_out_per_class == 0:
        config = dataclasses.replace(config, held_out_per_class=per_class)
    if config.images_per_class is None:
        return None, "the run was trained on all images of its source"
    try:
        return data.load_split(config)[1], ""
    except UserError as error:
        return None, str(error)


def gather(
    wanted: Wanted,
    images: ImageSet,
    model: TrainedModel | None,
    schedule: NoiseSchedule,
    process: Backward,
    steps: Sequence[int],
    folder: Path,
    console: Console,
) -> tuple[list[Source], ImageSet | None, list[str]]:
    """The sources that there are; trajectories are run where they are not kept.

    Args:
      wanted: which are asked for.
      images: the training images, whose mean the noisy ones lack.
      model: the run, whose images are held out; None where there is none.
      schedule: noise schedule.
      process: the backward process of the trajectories.
      steps: at which the sources are asked.
      folder: where trajectories are kept.
      console: shows the progress.

    Returns:
      The sources, at least one, the images that are held out, and what is missing, one sentence
      each.

    Raises:
      UserError: there is none at all, or see `trajectories`.
    """
    found, others, missing, seed = [], None, [], wanted.seed

    def add(name: str, those: ImageSet, place: int) -> None:
        count = min(wanted.count, len(those.images))
        found.append(noised(name, those, images.mean, count, key_of(seed, place), schedule))

    if TRAINING in wanted.names:
        add(TRAINING, images, 1)
    if HELD_OUT in wanted.names and model is not None:
        per_class = wanted.per_class or -(-wanted.count // max(1, len(images.class_names)))
        others, why = held_out(model, per_class)
        if others is None:
            missing.append(f"no images are held out: {why}")
        elif len(others.images) < 2:
            others = None
            missing.append("one image is held out, too few for an interval")
        else:
            add(HELD_OUT, others, 2)
    if TRAJECTORIES in wanted.names:
        batch, shape, key = wanted.batch_size, images.images.shape[1:], key_of(seed)
        found.append(trajectories(process, shape, wanted.count, key, steps, folder, batch, console))
    if not found:
        raise UserError(f"there is nothing to compare on: {'; '.join(missing)}")
    return found, others, missing


def trajectories(
    process: Backward,
    shape: tuple[int, ...],
    count: int,
    key: Array,
    steps: Sequence[int],
    folder: Path,
    batch_size: int,
    console: Console,
) -> Source:
    """The states of the model's own samples along the way: sample i is that of `sampling.sample`.

    They are run where they are not kept yet, a batch after the other and from stop to stop; after
    a kill they go on from the last stop, and new stops from the one before them. All processes
    call it.

    Args:
      process: the backward process, with all of the schedule's steps and a sampler without memory.
      shape: of an image.
      count: how many trajectories.
      key: typed PRNG key, as `sampling.sample` takes it.
      steps: the steps s at which the states, not yet denoised, are wanted.
      folder: where they are kept.
      batch_size: trajectories at a time.
      console: shows the progress.

    Raises:
      UserError: a step beyond those that the process takes; a state that is not finite.
    """
    last = process.sampler.schedule.num_steps - 1
    if beyond := [step for step in steps if step > last]:
        raise UserError(
            f"trajectories begin at step {last}: they have no states at step {max(beyond)}"
        )
    size = min(whole(batch_size), whole(count))
    firsts = range(0, count, size)
    kept = json.loads(
        from_first(lambda: json.dumps([_kept(folder, i, size, shape) for i in firsts]))
    )
    missing = [sorted({*steps} - {*each}, reverse=True) for each in kept]
    calls = sum(last - min(each) for each in missing if each)  # at most
    with advancing(console, "Trajectories", calls) as advance:
        for first, own, lacking in zip(firsts, kept, missing, strict=True):
            batch = _Batch(process, shape, key, folder, first, size)
            for step, done in batch.run(lacking, own):
                time = float(process.sampler.schedule.time[step])
                those = f"{first + 1} to {min(first + size, count)} of {count}"
                advance(done, f"trajectories {those} are at t = {time:.3g}")

    def at(step: int) -> tuple[np.ndarray, np.ndarray | None]:
        def read() -> np.ndarray:
            paths = (_path(folder, step, i, size) for i in range(0, count, size))
            parts = (np.load(path, allow_pickle=False) for path in paths)
            return np.concatenate(list(parts))[:count]

        x = read() if is_first_process() else np.zeros((count, *shape), np.float32)
        return _everywhere(x), None

    return Source(TRAJECTORIES, f"{TRAJECTORIES}_{count}", count, at)


def _path(folder: Path, step: int, first: int, size: int) -> Path:
    return folder / f"states_{step:05d}_{first:06d}_{first + size:06d}.npy"


def _kept(folder: Path, first: int, size: int, shape: tuple[int, ...]) -> list[int]:
    """The steps at which the states of a batch are kept, whole."""
    pattern = rf"states_(\d+)_{first:06d}_{first + size:06d}\.npy"
    found = [int(each[1]) for name in names_in(folder) if (each := re.fullmatch(pattern, name))]
    return [step for step in found if is_whole(_path(folder, step, first, size), (size, *shape))]


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The trajectories first..first + size - 1."""

    process: Backward
    shape: tuple[int, ...]
    key: Array
    folder: Path
    first: int
    size: int

    def run(self, missing: list[int], kept: list[int]) -> Iterator[tuple[int, int]]:
        """Yields each of the missing steps once its states are kept, and how many steps it took."""
        if not missing:
            return
        parts = (self.process.sampler, self.process.denoiser, self.process.start)
        sampler, denoiser, start = replicate(parts)
        keys = shard(fold_in_each(self.key, np.arange(self.first, self.first + self.size)))
        for step in missing:
            begun = min((each for each in kept if each > step), default=sampler.schedule.num_steps)
            if begun == sampler.schedule.num_steps:
                noise = _noise(keys, self.shape)
                x, begun = noise if start is None else start(noise), begun - 1
            else:
                x = shard(self._states(begun))
            ((_, x),) = trunks(sampler, denoiser, x, keys, [step + 1], begun + 1)
            self._keep(step, fetch(x))
            kept = [*kept, step]
            yield step, begun - step

    def _states(self, step: int) -> np.ndarray:
        empty = np.zeros((self.size, *self.shape), np.float32)
        path = _path(self.folder, step, self.first, self.size)
        return _everywhere(np.load(path, allow_pickle=False) if is_first_process() else empty)

    def _keep(self, step: int, states: np.ndarray) -> None:
        if not np.isfinite(states).all():
            raise UserError("trajectories have values that are not finite: the denoiser is broken")
        if is_first_process():
            write_npy(_path(self.folder, step, self.first, self.size), states)
