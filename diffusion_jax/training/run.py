"""A training run's folder: claimed, described, and opened again to sample from.

It holds config.json, summary.json, metrics.jsonl, tensorboard/, checkpoints/, samples/ and
loss.png, and memorisation.png and profile/ if asked for.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.denoisers import TrainedDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.distributed import gather, require_same
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.sampling import AncestralSampler
from diffusion_jax.training import saved_config
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.saved_state import VECTORS, SavedState, structure_of, to_saved
from diffusion_jax.training.step import init_state, make_optimizer, state_of

# Seconds within which a shared file system shows a file to the other hosts.
_VISIBLE = 60


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What sampling needs of a run.

    Attributes:
      config: the run's configuration.
      denoiser: the UNet with the averaged parameters.
      sampler: the ancestral sampler on the run's schedule.
      shape: (height, width, channels) of an image.
      mean: per-channel mean of the training set (channels,).
      class_names: the training set's classes.
      step: updates done.
    """

    config: Config
    denoiser: TrainedDenoiser
    sampler: AncestralSampler
    shape: tuple[int, int, int]
    mean: np.ndarray
    class_names: tuple[str, ...]
    step: int


def has_checkpoint(folder: Path) -> bool:
    """Whether something of a run is saved, complete or not, so that it binds those who go on."""
    return any(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))


def claim(config: Config) -> None:
    """Makes the run's folder, or checks that the run in it has the same configuration.

    Raises:
      UserError: it has another one, or another run trains in it now, or it cannot be written to, or
        is not the same folder for all processes; or these have different configurations.
    """
    text = saved_config.text_of(config)
    require_same("configuration", text)
    if is_first_process():
        _claim(config)
    gather("")  # it is there now
    path, deadline = config.output.run_dir / saved_config.NAME, time.monotonic() + _VISIBLE
    while not (path.is_file() and path.read_text() == text):
        if time.monotonic() > deadline:
            raise UserError(
                f"this process does not see what process 0 wrote to {path}: all processes need one "
                f"folder that they share; give a --run-dir on a file system of all hosts"
            )
        time.sleep(0.1)


def _claim(config: Config) -> None:
    folder = config.output.run_dir
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        lock.lock(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to the run's folder {folder}: {error}; give another --run-dir"
        ) from error
    saved_config.settle(config, binding=has_checkpoint(folder))


def metadata_of(
    config: Config,
    shape: tuple[int, ...],
    mean: np.ndarray,
    classes: tuple[str, ...],
    num_images: int,
    digest: str | None = None,
) -> dict[str, Any]:
    """What is saved with every checkpoint beside the arrays.

    Args:
      config: the run's configuration.
      shape: (height, width, channels) of an image.
      mean: per-channel mean of the training set (channels,).
      classes: their names.
      num_images: size of the training set.
      digest: its fingerprint, where the images are at hand.
    """
    return {
        "config": saved_config.to_dict(config),
        "mean": np.asarray(mean, np.float32).tolist(),
        "shape": list(shape),
        "classes": list(classes),
        "num_images": num_images,
        "fingerprint": digest,
        "optimizer_state": VECTORS,
    }


def check_same_data(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares the data that a checkpoint was trained on with those that are to be trained on.

    Args:
      saved: the checkpoint's metadata, see `metadata_of`.
      now: what they would be today.

    Raises:
      UserError: they differ.
    """
    for name in ("shape", "classes", "num_images", "mean"):
        if saved[name] != now[name]:
            raise UserError(
                f"the data changed since the last checkpoint: its {name} was {saved[name]} and is "
                f"{now[name]}; give the data it was trained on, or another --run-dir"
            )
    # A model that was converted knows its data by these alone.
    if saved.get("fingerprint") not in (None, now["fingerprint"]):
        raise UserError(
            f"the data changed since the last checkpoint: their shape, number and mean are the "
            f"same, but not all pixels and labels in their order ({saved['fingerprint'][:12]} is "
            f"now {now['fingerprint'][:12]}); give the data it was trained on, or another --run-dir"
        )


def import_parameters(
    config: Config,
    params: Any,
    shape: tuple[int, int, int],
    mean: np.ndarray,
    num_images: int,
    beside: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Makes a run that starts from given parameters, saved as its step 0.

    Args:
      config: the run's configuration; its folder must hold no run yet.
      params: the model's parameters; they become the averaged ones too.
      shape: (height, width, channels) of an image.
      mean: per-channel mean of the training set (channels,).
      num_images: size of the training set.
      beside: what else the folder is to hold, arrays by the names of their .npy files.

    Raises:
      UserError: there is a run in the folder, or it cannot be written to.
    """
    config.check()
    folder = config.output.run_dir
    if has_checkpoint(folder):
        raise UserError(f"{folder} holds a run already; give another --run-dir")
    model, optimizer = config.model.build(shape[-1]), make_optimizer(config.training)
    model.check(*shape)
    _, key = jax.random.split(jax.random.key(config.seed))
    state = state_of(params, optimizer, key)
    metadata = metadata_of(config, shape, mean, config.data.classes, num_images)
    try:
        claim(config)
        for name, array in (beside or {}).items():
            write_npy(folder / name, array)
        with Checkpoints(folder / "checkpoints", config.output.keep_checkpoints) as checkpoints:
            checkpoints.save(0, to_saved(state), metadata)
            checkpoints.wait()
    finally:
        lock.release(folder)


def load_model(
    run_dir: Path | str, dtype: Literal["float32", "bfloat16"] = "float32"
) -> TrainedModel:
    """Opens a run to sample from it.

    Args:
      run_dir: the run's folder.
      dtype: compute type of the network, whatever it was trained in. Three digits are too few for
        what happens at small times: see docs/sampling.md.

    Raises:
      UserError: no run there, nothing saved in it yet, or a model other than config.json's.
    """
    run_dir = Path(run_dir).expanduser()
    config = saved_config.read(run_dir)
    if not (run_dir / "checkpoints").is_dir():
        raise UserError(f"the run in {run_dir} has no checkpoint yet")

    def like(saved: dict[str, Any]) -> SavedState:
        saved_config.require_same_model(run_dir, config, saved["config"])
        model, optimizer = config.model.build(saved["shape"][-1]), make_optimizer(config.training)
        today = jax.eval_shape(
            lambda: init_state(model, optimizer, jax.random.key(0), saved["shape"])
        )
        return structure_of(today, saved)

    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        newest = checkpoints.restore_newest(like)
    if newest is None:
        raise UserError(f"the run in {run_dir} has no checkpoint yet")
    step, state, saved = newest
    height, width, channels = saved["shape"]
    model = dataclasses.replace(config.model, dtype=dtype).build(channels)
    params = state.ema_params if dtype == "float32" else model.cast(state.ema_params)
    return TrainedModel(
        config=config,
        denoiser=TrainedDenoiser(params, model),
        sampler=AncestralSampler(config.schedule.build(), config.training.faithful),
        shape=(height, width, channels),
        mean=np.asarray(saved["mean"], np.float32),
        class_names=tuple(saved["classes"]),
        step=step,
    )
