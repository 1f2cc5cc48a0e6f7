"""Forks of a run, or of any denoiser, made in batches that are kept and survive a kill."""

import dataclasses
import hashlib
import json
import re
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
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.notes import say_notes
from diffusion_jax.errors import UserError, brief
from diffusion_jax.judging import classifier
from diffusion_jax.judging.classifier_training import checked_labels, train_classifier
from diffusion_jax.regimes import commitment
from diffusion_jax.runtime import distributed, lock
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.files import parse_json, plain, unwritten, write_json, write_npy
from diffusion_jax.runtime.patience import names_in, patiently, refusal
from diffusion_jax.runtime.text import shown
from diffusion_jax.training.run import TrainedModel

NUM_FORKS = 20
# Settings that are a hash, and what it means that they differ.
_DIGESTS = {
    "schedule": "other steps of the sampler: --calls, --clock",
    "parameters": "other parameters of the network",
}
# What was done before it was among the settings.
_EARLIER = {"sampler": "ancestral", "clip": False, "matched_start": False, "patch": None}
# Places at which the trunk's nearest training image is looked up.
NUM_WATCHED = 100
# Trunks whose clones are kept to be looked at.
SHOWN = 8


def branch_steps(
    times: np.ndarray, asked: tuple[float, ...] | None, what: str = "branch times"
) -> np.ndarray:
    """Steps to go at the forks, descending.

    Args:
      times: of the schedule's steps (L,).
      asked: branch times, or None for 20 evenly spread over the steps, or as many as there are.
      what: they are, for messages.

    Raises:
      UserError: a time outside the schedule, or two that fall on one step.
    """
    num_steps = len(times)
    if asked is None:
        share = np.linspace(1, 1 / NUM_FORKS, NUM_FORKS)
        return np.unique(np.rint(num_steps * share).clip(1).astype(int))[::-1]
    # Compared as they are written, so that a bound may be given as it is printed.
    low, high = (f"{time:.4g}" for time in (times[0], times[-1]))
    if not all(float(low) <= float(f"{time:.4g}") <= float(high) for time in asked) or not asked:
        raise UserError(f"{what} {list(asked)} must lie in the schedule, from {low} to {high}")
    steps = 1 + np.abs(times[None] - np.array(asked)[:, None]).argmin(1)
    if len(np.unique(steps)) < len(steps):
        raise UserError(f"two of the {what} {list(asked)} fall on one of {num_steps} steps")
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


def claim(folder: Path, settings: dict[str, Any], work: str = "forks a run") -> None:
    """Makes the folder of the batches, or checks that those in it are of the same experiment.

    It is this process's then, until `lock.release` or the process's end. All processes call it; the
    first one writes.

    Args:
      folder: of the batches.
      settings: what batches must have in common to be joined.
      work: what is done there, for the message.

    Raises:
      UserError: they are of another one, another process forks there, or it cannot be written to.
    """
    if is_first_process():
        _claim(folder, settings, work)
    distributed.gather("")


def _claim(folder: Path, settings: dict[str, Any], work: str = "forks a run") -> None:
    path, wanted = folder / "settings.json", plain(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.lock(folder, work, "--out")
    except OSError as error:
        raise unwritten(folder, error) from error
    if path.exists() and any(name.endswith((".npz", ".npy")) for name in names_in(folder)):
        content = patiently(path, path.read_bytes)
        try:
            found = parse_json(content)
            if not isinstance(found, dict):
                raise ValueError("it holds no JSON object")
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}), and it alone says which experiment the results "
                f"beside it are of: to go on with the very command that made them, remove this "
                f"file; if that is not certain, remove {folder}, and all is computed again"
            ) from error
        found = _EARLIER | found
        changed = [name for name in wanted if found.get(name) != wanted[name]]
        if changed:
            lines = "; ".join(
                _DIGESTS.get(name) or f"{name}: {brief(found.get(name))} -> {brief(wanted[name])}"
                for name in changed
            )
            raise UserError(
                f"{folder} holds batches of another experiment ({lines}); give another --out, or "
                f"remove that folder"
            )
        _rename(folder)
    write_json(path, wanted)


def _has_batches(folder: Path) -> bool:
    return any(name.endswith(".npz") for name in names_in(folder))


def _rename(folder: Path) -> None:
    """Renames batches of equal size, which were named by their place, after their trunks."""
    for path in folder.glob("batch_*.npz"):
        size, place = len(commitment.load(path).trunk), int(path.stem.removeprefix("batch_"))
        path.rename(_path(folder, place * size, (place + 1) * size))


def training_images(model: TrainedModel) -> ImageSet:
    """The images that a run was trained on, with the mean that it was trained with.

    What their source found worth telling is said on stderr.

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
    say_notes(images)
    own = model.own_images(images)
    if model.fingerprint is None:  # an older or a converted run's, which told nothing of the pixels
        distributed.require_same("data set", fingerprint(own))
    return own


def classifier_settings(images: ImageSet, per_class: int | None, seed: int) -> dict[str, Any]:
    """What a classifier that is kept must have been trained with to be taken again."""
    return {"images": fingerprint(images), "per_class": per_class, "seed": seed}


def get_classifier(
    folder: Path,
    model: TrainedModel | None,
    images: ImageSet,
    per_class: int | None,
    seed: int,
) -> tuple[classifier.TrainedClassifier | None, str]:
    """The classifier kept in a folder, or a new one, which is kept there.

    One that batches were judged by is kept with them whatever it was trained with. All processes
    call it; the first one trains and judges, and the others have none.

    Args:
      folder: where it is kept.
      model: the run whose samples it judges, whose data set has more images; None without a run.
      images: the run's training images.
      per_class: how many images of each class it is trained on; by default these, as always
        without a run.
      seed: see `train_classifier`.

    Returns:
      The classifier and an empty string; or None, and why there is none.
    """

    def prepare() -> str:
        settings, chosen = classifier_settings(images, per_class, seed), images
        if (folder / "classifier.json").exists() and (
            _has_batches(folder) or classifier.load(folder).settings == settings
        ):
            return ""
        if per_class is not None and model is not None:
            chosen = data.load(dataclasses.replace(model.config.data, images_per_class=per_class))
        try:
            checked_labels(chosen)
        except UserError as error:
            return shown(str(error))
        print(f"Training the classifier on {len(chosen.images)} images")
        trained = train_classifier(chosen, seed)
        classifier.save(folder, dataclasses.replace(trained, settings=settings))
        return ""

    missing = distributed.from_first(prepare)
    judges = is_first_process() and not missing
    return (classifier.load(folder) if judges else None), missing


def _show(bar: Progress, task: TaskID, before: int, made: int) -> None:
    bar.update(task, completed=before + made)


def _path(folder: Path, first: int, last: int) -> Path:
    """The file of the trunks first..last-1."""
    return folder / f"trunks_{first:06d}_{last:06d}.npz"


def _kept(folder: Path) -> list[tuple[int, int]]:
    """First trunk, and that after the last, of each batch in a folder, in their order."""
    found = (re.fullmatch(r"trunks_(\d+)_(\d+)\.npz", name) for name in names_in(folder))
    return sorted((int(each[1]), int(each[2])) for each in found if each)


def missing(kept: list[tuple[int, int]], count: int, size: int) -> list[tuple[int, int]]:
    """The batches that are still to be run.

    A stretch of missing trunks is cut into equal batches, so that one program does for all of them;
    behind the last trunk kept, up to one trunk per batch is then run beyond those asked for.

    Args:
      kept: see `_kept`.
      count: trunks in all.
      size: trunks of a batch, at most.
    """
    batches: list[tuple[int, int]] = []
    at, end = 0, 2**62
    for first, last in [*kept, (end, end)]:
        stop = min(first, count)
        if stop > at:
            number = -(-(stop - at) // size)
            each = -(-(stop - at) // number)
            batches += [(i, min(i + each, first)) for i in range(at, stop, each)]
        at = max(at, last)
    return batches


def _joined(folder: Path, count: int) -> commitment.Outcomes:
    """The outcomes of the trunks 0..count-1, each from the first batch that holds it."""
    parts, at = [], 0
    for first, last in _kept(folder):
        if not first <= at < min(last, count):
            continue
        path = _path(folder, first, last)
        found = commitment.load(path)
        if len(found.trunk) != last - first:
            raise UserError(
                f"{path} holds {len(found.trunk)} trunks, not the {last - first} of its name; "
                f"remove it, and they are run again"
            )
        parts.append(found.rows(at - first, min(last, count) - first))
        at = last
    return commitment.join(parts)


def run_batches(
    folder: Path,
    count: int,
    size: int,
    calls: int,
    measure: Callable[..., tuple[commitment.Outcomes, np.ndarray]],
    console: Console,
) -> tuple[commitment.Outcomes, np.ndarray] | None:
    """Measures the batches that are not in the folder yet, and joins them all.

    All processes call it; the first one says which are missing, writes and joins.

    Args:
      folder: where batches are kept.
      count: trunks in all.
      size: trunks per batch, at most; batches that are kept may have other sizes.
      calls: of the denoiser, for each trunk.
      measure: called with first, last and progress; see `commitment.measure`.
      console: shows the progress.

    Returns:
      The outcomes of the trunks 0..count-1, and the ends of the forks of the first few; None in
      processes other than the first.
    """
    kept = json.loads(distributed.from_first(lambda: json.dumps(_kept(folder))))
    batches, done = missing(kept, count, size), sum(first < count for first, _ in kept)
    total = done + len(batches)
    if done:
        console.print(f"{done} of {total} batches were done before", highlight=False)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    shown = folder / "shown.npy"
    with Progress(
        TextColumn("Forking"), *columns, console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=calls * len(batches))
        for i, (first, last) in enumerate(batches):
            show = partial(_show, bar, task, calls * i)
            outcomes, pairs = measure(first=first, last=last, progress=show)
            if is_first_process():
                if first == 0:
                    write_npy(shown, pairs[:SHOWN])
                outcomes.save(_path(folder, first, last))
            if bar.disable:
                console.print(f"batch {done + i + 1} of {total}", highlight=False)
    if not is_first_process():
        return None
    try:
        pairs = patiently(shown, lambda: np.load(shown, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        if refusal(error) is not None:
            raise
        batch = _path(folder, *_kept(folder)[0])
        raise UserError(
            f"{shown} is damaged ({error}); remove {batch}, and its trunks are run again"
        ) from error
    return _joined(folder, count), pairs
