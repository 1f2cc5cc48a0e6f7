"""Trunks, their clones, U-turns and samples: what the worker computes, a step between two yields.

All noise is that of `sampling.sample` and `regimes.cloning`: the trunk of a seed and an index ends
where sample number `index` does, its clones where `cloning.fork` has them, up to rounding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.regimes.cloning import clone_keys
from diffusion_jax.runtime.devices import fold_in_each
from diffusion_jax.serving import programs
from diffusion_jax.serving.ids import ForkId, SampleId, TrunkId, TurnId
from diffusion_jax.serving.judging import Fate, effective, fates, reading
from diffusion_jax.serving.model import Model
from diffusion_jax.serving.programs import Process, Reading
from diffusion_jax.serving.work import Job, Steps


@dataclass
class Trunk:
    """A trunk's states and what is read off them, as far as it went.

    Attributes:
      id: which trunk.
      steps: those that it visits, descending, and -1 for clean data.
      times: of these steps; 0 for the last.
      states: x at each, mean removed (height, width, channels).
      readings: of each but the last, see `programs.read`.
      projection: components along the two first modes, a pair each.
      fate: what became of it.
    """

    id: TrunkId
    steps: list[int]
    times: list[float]
    states: list[np.ndarray] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    projection: list[list[float]] = field(default_factory=list)
    fate: Fate | None = None

    def place(self, step: int) -> int:
        """The place in `steps` of the state nearest to a step."""
        return int(np.abs(np.array(self.steps) - step).argmin())


@dataclass
class Ends:
    """Where clones, returns or samples ended, as far as they are.

    Attributes:
      id: which.
      steps: that they take from where they begin, and -1.
      ends: of each, mean removed (height, width, channels).
      fates: what became of each.
      paths: components along the two first modes at each of the steps, a list of pairs each.
      start: of a U-turn, the image that it starts from, mean removed.
      start_fate: of a U-turn, what that image is.
      turning: of a U-turn, x_t where each turns.
    """

    id: ForkId | TurnId | SampleId
    steps: list[int]
    ends: list[np.ndarray] = field(default_factory=list)
    fates: list[Fate] = field(default_factory=list)
    paths: list[list[list[float]]] = field(default_factory=list)
    start: np.ndarray | None = None
    start_fate: Fate | None = None
    turning: list[np.ndarray] = field(default_factory=list)


def begun(model: Model, process: Process, trunk: TrunkId) -> Trunk:
    """An empty trunk, which knows its steps and times."""
    steps = [int(step) for step in process.steps[::-1]]
    times = np.asarray(model.schedule.time, np.float64)[steps]
    return Trunk(trunk, [*steps, -1], [*map(float, times), 0.0])


def keys_of(seed: int, numbers: np.ndarray) -> Array:
    """The keys of samples by number, as `sampling.sample` has them."""
    return fold_in_each(jax.random.key(seed), numbers)


def states(model: Model, process: Process, trunk: TrunkId) -> Iterator[tuple[int, Array, Array]]:
    """A trunk's states from pure noise on.

    Yields:
      The number k of the step that comes next (-1 at the end), x before it (1, ...), and the keys
      that it goes on with (1,).
    """
    keys = keys_of(trunk.seed, np.array([trunk.index]))
    branches = {process.number(step): clone for step, clone in trunk.branches}
    state, x = programs.begin(process.sampler, process.start, keys, model.shape)
    for k in range(process.num_steps - 1, -1, -1):
        if k in branches:
            keys = clone_keys(keys, jnp.int32(k + 1), jnp.int32(branches[k]))
            state = programs.resume(process.sampler, x)
        yield k, x, keys
        state, x = programs.advance(process.sampler, process.denoiser, state, keys, jnp.int32(k))
    yield -1, x, keys


def run_trunk(model: Model, process: Process, job: Job) -> Steps:
    """Runs a trunk, and tells of each state as it is reached."""
    trunk: Trunk = job.result
    job.of = len(trunk.steps)
    for number, (_, x, _) in enumerate(states(model, process, trunk.id)):
        step, on_host = trunk.steps[number], np.asarray(x)[0]
        along = [float(each) for each in np.asarray(programs.project(model.modes, x))[0]]
        event: dict[str, Any] = {"number": number, "step": step, "time": trunk.times[number]}
        if step >= 0:
            found = jax.tree.map(lambda leaf: leaf[0], reading(model, x, step))
            trunk.readings.append(found)
            event |= light(model, found)
        trunk.states.append(on_host)
        trunk.projection.append(along)
        job.num_bytes += on_host.nbytes + 4000  # with its event and what is read off it
        if step < 0:
            trunk.fate = fates(model, trunk.id.denoiser, on_host[None], 1)[0]
        job.tell("state", event | {"projection": along})
        if step >= 0:
            yield
    job.tell("fate", told(trunk.fate))


def light(model: Model, found: Reading) -> dict[str, Any]:
    """What every state tells of its posterior, as JSON has it."""
    has = model.has_classes
    return {
        "classes": [float(each) for each in found.classes] if has else None,
        "entropy": max(0.0, float(found.class_entropy)) if has else None,
        "effective": effective(found),
    }


def told(fate: Fate | None) -> dict[str, Any]:
    """A fate as the interface writes it."""
    assert fate is not None
    found = dict(fate)
    return {"class": found.pop("label"), **found}


def run_forks(model: Model, process: Process, job: Job, kept: Trunk | None) -> Steps:
    """Runs the clones of a trunk's state, a batch after the other.

    Args:
      model: the model.
      process: the trunk's.
      job: whose result is an empty `Ends`.
      kept: the trunk, where it is known; else it is run up to the fork.
    """
    fork: ForkId = job.result.id
    k, batch = process.number(fork.step), programs.clone_batch()
    calls = (k + 1) * -(-fork.clones // batch)
    job.of = calls
    keys, x = _fork_point(process, fork, kept)
    if x is None:
        job.of += process.num_steps - k
        for at, state, _ in states(model, process, fork.trunk):
            x = np.asarray(state)[0]
            if at == k:
                break
            yield
    assert x is not None
    many = repeated(x, batch)
    for part in _batches(fork.first, fork.clones, batch):
        own = programs.keys_of_clones(keys[0], jnp.int32(k + 1), part)
        yield from _descend(model, process, job, many, own, k, fork.clones)


def _fork_point(
    process: Process, fork: ForkId, kept: Trunk | None
) -> tuple[Array, np.ndarray | None]:
    """The keys that a trunk goes on with at a fork, and its state there, where it is known."""
    keys = keys_of(fork.trunk.seed, np.array([fork.trunk.index]))
    for step, clone in fork.trunk.branches:
        if step >= fork.step:
            b = process.number(step) + 1
            keys = clone_keys(keys, jnp.int32(b), jnp.int32(clone))
    place = None if kept is None else kept.place(fork.step)
    if kept is None or place is None or place >= len(kept.states):
        return keys, None
    return keys, kept.states[place]


def _batches(first: int, count: int, batch: int) -> Iterator[np.ndarray]:
    """Stretches of equal length of the numbers from the first on; the last goes beyond them."""
    for start in range(first, first + count, batch):
        yield np.arange(start, start + batch)


def repeated(x: np.ndarray, batch: int) -> Array:
    """One x as often as a batch has places."""
    return jnp.asarray(np.repeat(x[None].astype(np.float32), batch, axis=0))


def _descend(
    model: Model, process: Process, job: Job, x: Array, keys: Array, k: int, count: int
) -> Steps:
    """Takes a batch from before step number k to data, and adds its ends to the job's.

    Args:
      model: the model.
      process: the backward process.
      job: whose result is `Ends`.
      x: states (batch, ...).
      keys: of each (batch,).
      k: of the first step.
      count: how many ends are asked for in all.
    """
    found: Ends = job.result
    first, batch = len(found.ends), len(x)
    state, along = programs.resume(process.sampler, x), []
    for at in range(k, -1, -1):
        along.append(np.asarray(programs.project(model.modes, x)))
        state, x = programs.advance(process.sampler, process.denoiser, state, keys, jnp.int32(at))
        x.block_until_ready()
        yield
    along.append(np.asarray(programs.project(model.modes, x)))
    ends = np.asarray(x)[: count - first]
    judged = fates(model, found.id.trunk.denoiser, ends, batch)
    paths = np.stack(along, axis=1)[: len(ends)].tolist()
    found.ends += list(ends)
    found.fates += judged
    found.paths += paths
    job.num_bytes += ends.nbytes + 100 * len(along) * len(ends)
    job.tell(
        "fates", {"first": first, "fates": [told(fate) for fate in judged], "projection": paths}
    )


def run_turns(model: Model, process: Process, job: Job) -> Steps:
    """Takes an image up to a step, with noise of its own for each return, and back."""
    found: Ends = job.result
    assert isinstance(found.id, TurnId)
    assert found.start is not None
    turn = found.id
    k, batch = process.number(turn.step), programs.clone_batch()
    job.of = (k + 1) * -(-turn.returns // batch)
    found.start_fate = fates(model, turn.trunk.denoiser, found.start[None], 1)[0]
    image = repeated(found.start, batch)
    for part in _batches(turn.trunk.index, turn.returns, batch):
        keys = keys_of(turn.trunk.seed, part)
        x = programs.noised(process.sampler.schedule, image, keys, jnp.int32(k))
        found.turning += list(np.asarray(x)[: turn.returns - len(found.turning)])
        own = clone_keys(keys, jnp.int32(k + 1), jnp.int32(0))
        yield from _descend(model, process, job, x, own, k, turn.returns)


def run_samples(model: Model, process: Process, job: Job) -> Steps:
    """Draws samples."""
    found: Ends = job.result
    assert isinstance(found.id, SampleId)
    count, batch = found.id.count, programs.clone_batch()
    job.of = process.num_steps * -(-count // batch)
    for part in _batches(found.id.trunk.index, count, batch):
        keys = keys_of(found.id.trunk.seed, part)
        _, x = programs.begin(process.sampler, process.start, keys, model.shape)
        yield from _descend(model, process, job, x, keys, process.num_steps - 1, count)


def run_denoise(model: Model, names: list[str], x: np.ndarray, step: int) -> Callable[[Job], Steps]:
    """Asks denoisers of one x_t (1, ...), one after the other."""

    def work(job: Job) -> Steps:
        job.of = len(names)
        on_device = jnp.asarray(x)
        job.result["reading"] = jax.tree.map(lambda leaf: leaf[0], reading(model, on_device, step))
        for name in names:
            denoiser = model.denoisers[name]
            data = programs.denoised(model.schedule, denoiser, on_device, jnp.int32(step))
            job.result["denoised"][name] = np.asarray(data)[0]
            job.num_bytes += x.nbytes
            yield

    return work


def warm_up(model: Model, name: str, sampler: str) -> None:
    """Compiles all programs of a denoiser with a sampler, by doing each kind of work once."""
    last = model.schedule.num_steps - 1
    trunk = TrunkId(model.id, name, sampler, 2, 0, 0)
    process = model.process(name, sampler, 2)
    made = begun(model, process, trunk)
    works = [run_trunk(model, process, Job("", made))]
    if programs.is_noisy(type(process.sampler)):
        fork = Ends(ForkId(trunk, last, 1, 0), [])
        works.append(run_forks(model, process, Job("", fork), made))
    turn = Ends(TurnId(trunk, 0, 1, "i0"), [], start=model.points[0])
    works.append(run_turns(model, process, Job("", turn)))
    works.append(run_samples(model, process, Job("", Ends(SampleId(trunk, 1), []))))
    works.append(run_denoise(model, [name], model.points[:1], 0)(Job("", {"denoised": {}})))
    for work in works:
        for _ in work:
            pass
