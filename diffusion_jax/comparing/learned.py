"""Samples of each checkpoint of a run, from one seed, kept checkpoint by checkpoint."""

import json
from pathlib import Path

import jax
import numpy as np
from jax import Array
from rich.console import Console

from diffusion_jax.comparing.progress import advancing
from diffusion_jax.comparing.samples import SAMPLER
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.devices import few_sizes, is_first_process
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.training import run
from diffusion_jax.training.reading import DamagedCheckpoint


def samples_of(
    run_dir: Path,
    steps: list[int],
    folder: Path,
    count: int,
    calls: int,
    seed: int,
    batch_size: int,
    console: Console,
) -> tuple[dict[int, np.ndarray], list[str]]:
    """Samples of the averaged parameters of each checkpoint, by DDIM from the same noise.

    Sample i of a checkpoint is that of `sampling.sample`; more of them add to what is kept. All
    processes call it.

    Args:
      run_dir: the run's folder.
      steps: of the checkpoints, see `run.steps_of`.
      folder: where the samples are kept.
      count: samples of each.
      calls: of the network per sample.
      seed: of the noise.
      batch_size: samples at a time.
      console: shows the progress.

    Returns:
      Samples (count, ...), mean removed, by step, those of the first process alone being right; and
      which checkpoints are left out, one sentence each.

    Raises:
      UserError: samples that are not finite, or calls that the sampler cannot make.
    """
    key, paths = jax.random.key(seed), [folder / f"learned_{s:08d}_{calls}.npy" for s in steps]
    lengths = json.loads(from_first(lambda: json.dumps([len(_kept(path)) for path in paths])))
    left_out: list[str] = []
    missing = sum(max(0, count - have) for have in lengths)
    with advancing(console, "Checkpoints", missing) as advance:
        for step, path, have in zip(steps, paths, lengths, strict=True):
            if have >= count:
                continue
            try:
                drawn = _drawn(run_dir, step, key, range(have, count), calls, batch_size)
            except DamagedCheckpoint as error:
                left_out.append(f"a checkpoint is left out: {error}")
                continue
            if is_first_process():
                kept = _kept(path)
                write_npy(path, np.concatenate([kept, drawn]) if have else drawn)
            advance(count - have, f"samples of step {step}")
    if not is_first_process():
        return {}, left_out
    found = {step: _kept(path)[:count] for step, path in zip(steps, paths, strict=True)}
    return {step: each for step, each in found.items() if len(each) == count}, left_out


def _drawn(
    run_dir: Path, step: int, key: Array, numbers: range, calls: int, batch_size: int
) -> np.ndarray:
    model = run.load_model(run_dir, step=step)
    process = model.backward(SAMPLER, calls)
    size = few_sizes(len(numbers), batch_size)
    drawn = np.concatenate(list(process.batches(key, numbers, model.shape, size)))
    if not np.isfinite(drawn).all():
        raise UserError(f"samples of step {step} are not finite: the network is broken")
    return drawn


def _kept(path: Path) -> np.ndarray:
    """The samples that a file holds; none where it is missing or damaged."""
    try:
        found = patiently(path, lambda: np.load(path, allow_pickle=False))
        if np.isfinite(found).all() and found.ndim == 4:
            return np.asarray(found)
    except Exception as error:  # a damaged file raises almost anything
        if refusal(error) is not None:
            raise
    return np.zeros((0,))
