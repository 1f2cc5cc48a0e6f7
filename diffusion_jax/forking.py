"""Forks of a run, or of any denoiser, made in batches that are kept and survive a kill."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffusion_jax import data
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging import classifier
from diffusion_jax.judging.classifier_training import train_classifier
from diffusion_jax.regimes import commitment
from diffusion_jax.runtime import distributed
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.files import plain, write_json, write_npy
from diffusion_jax.training.run import TrainedModel

NUM_FORKS = 20
# Places at which the trunk's nearest training image is looked up.
NUM_WATCHED = 100
# Trunks whose clones are kept to be looked at.
SHOWN = 8


def branch_steps(times: np.ndarray, asked: tuple[float, ...] | None) -> np.ndarray:
    """Steps to go at the forks, descending.

    Args:
      times: of the schedule's steps (L,).
      asked: branch times, or None for 20 evenly spread over the steps.

    Raises:
      UserError: a time outside the schedule, or two that fall on one step.
    """
    num_steps = len(times)
    if asked is None:
        share = np.linspace(1, 1 / NUM_FORKS, NUM_FORKS)
        return np.unique(np.rint(num_steps * share).astype(int))[::-1]
    if not asked or min(asked) < times[0] or max(asked) > times[-1] + 1e-6:
        raise UserError(
            f"branch times {list(asked)} must lie in the schedule, from {times[0]:.4g} to "
            f"{times[-1]:.4g}"
        )
    steps = 1 + np.abs(times[None] - np.array(asked)[:, None]).argmin(1)
    if len(np.unique(steps)) < len(steps):
        raise UserError(f"two of the branch times {list(asked)} fall on one of {num_steps} steps")
    return np.sort(steps)[::-1]


def watched_steps(num_steps: int) -> np.ndarray:
    """Steps to go at which trunks are watched, descending."""
    return np.unique(np.rint(np.linspace(1, num_steps, NUM_WATCHED)).astype(int))[::-1]


def digest(tree: Any) -> str:
    """A hash of all arrays of a pytree."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder of the batches, or checks that those in it are of the same experiment.

    All processes call it; the first one writes.

    Raises:
      UserError: they are not.
    """
    if is_first_process():
        _claim(folder, settings)
    distributed.gather("")


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "settings.json", plain(settings)
    if path.exists() and any(folder.glob("*.npz")):
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}; remove {folder}") from error
        changed = [name for name in wanted if found.get(name) != wanted[name]]
        if changed:
            lines = "; ".join(f"{name}: {found.get(name)} -> {wanted[name]}" for name in changed)
            raise UserError(
                f"{folder} holds batches of another experiment ({lines}); give another --out, or "
                f"remove that folder"
            )
    write_json(path, wanted)


def training_images(model: TrainedModel) -> ImageSet:
    """The images that a run was trained on, with the mean that it was trained with.

    Args:
      model: the run; `TrainedModel.with_data` says where its data are now.

    Raises:
      UserError: they are gone, or others than they were.
    """
    try:
        images = data.load(model.config.data)
    except UserError as error:
        raise UserError(
            f"the run's training images cannot be read: {error}; --data and --data-dir say where "
            f"they are now"
        ) from error
    return model.own_images(images)


def get_classifier(
    folder: Path,
    model: TrainedModel,
    images: ImageSet,
    per_class: int | None,
    seed: int,
) -> classifier.TrainedClassifier:
    """The classifier kept in a folder, or a new one, which is kept there.

    Args:
      folder: where it is kept.
      model: the run whose samples it judges.
      images: the run's training images.
      per_class: how many images of each class it is trained on; the run's own by default.
      seed: see `train_classifier`.
    """
    if is_first_process() and not (folder / "classifier.json").exists():
        if per_class is not None:
            images = data.load(dataclasses.replace(model.config.data, images_per_class=per_class))
        print(f"Training the classifier on {len(images.images)} images")
        classifier.save(folder, train_classifier(images, seed))
    distributed.gather("")  # the others wait for it
    return classifier.load(folder)


def _show(bar: Progress, task: TaskID, before: int, made: int) -> None:
    bar.update(task, completed=before + made)


def run_batches(
    folder: Path,
    count: int,
    size: int,
    calls: int,
    measure: Callable[..., tuple[commitment.Outcomes, np.ndarray]],
    console: Console,
) -> tuple[commitment.Outcomes, np.ndarray]:
    """Measures the batches that are not in the folder yet, and joins them all.

    Args:
      folder: where batches are kept.
      count: trunks in all.
      size: trunks a batch.
      calls: of the denoiser, for each trunk.
      measure: called with first, last and progress; see `commitment.measure`.
      console: shows the progress.

    Returns:
      The outcomes of the trunks 0..count-1, and the ends of the forks of the first few.
    """
    paths = [folder / f"batch_{i:05d}.npz" for i in range(-(-count // size))]
    done = sum(path.exists() for path in paths)
    if done:
        console.print(f"{done} of {len(paths)} batches were done before", highlight=False)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    shown = folder / "shown.npy"
    with Progress(
        TextColumn("Forking"), *columns, console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=calls * len(paths), completed=calls * done)
        for i, path in enumerate(paths):
            if path.exists():
                continue
            show = partial(_show, bar, task, calls * done)
            first, last = i * size, (i + 1) * size
            outcomes, pairs = measure(first=first, last=last, progress=show)
            if is_first_process():
                if i == 0:
                    write_npy(shown, pairs[:SHOWN])
                outcomes.save(path)
            done += 1
            if bar.disable:
                console.print(f"batch {i + 1} of {len(paths)}", highlight=False)
    distributed.gather("")  # all are written
    joined = commitment.join([commitment.load(path) for path in paths])
    wanted = commitment.Outcomes(
        **{f.name: getattr(joined, f.name)[:count] for f in dataclasses.fields(joined)}
    )
    return wanted, np.load(shown, allow_pickle=False)
