"""Forks a trained model in mid-course: python -m experiments.cloning RUN_DIR [--num-trunks N].

Trunks run from pure noise to images; at each branch time clones go on with noise of their own.
phi(t) is the probability that two of them end in one class, phi_C(t) that they end nearest to one
training image. Beside them stand the same curves of the exact score of the training set, which
needs no model: where the two part, the model has learned something else.

Writes result.json, the figures and report.html. What is done is kept batch by batch: after a kill
the same command goes on, and a larger --num-trunks adds to it.
"""

import dataclasses
import hashlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
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
from diffusion_jax.denoisers import Denoiser, EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import TrainedClassifier, warning
from diffusion_jax.judging.classifier import load as load_classifier
from diffusion_jax.judging.classifier import save as save_classifier
from diffusion_jax.judging.classifier_training import train_classifier
from diffusion_jax.regimes import cloning, commitment, transitions
from diffusion_jax.regimes.analysis import plain
from diffusion_jax.runtime import backend, distributed
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.files import writing
from diffusion_jax.sampling import AncestralSampler
from diffusion_jax.sampling.respacing import Clock, with_calls
from diffusion_jax.training import run
from experiments.cloning_report import Findings, write
from experiments.command import reports_errors

NUM_FORKS = 20
# Places at which the trunk's nearest training image is looked up.
NUM_WATCHED = 100
# Trunks whose clones are kept to be looked at.
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """Forks the backward process of a trained run and measures what it commits to."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun or experiments.convert writes it."""
    out: Path | None = None
    """Folder for the results; by default RUN_DIR/cloning, or cloning_exact for --score exact."""
    num_trunks: int = 256
    """Trunks, each forked at every branch time; at least 30."""
    times: tuple[float, ...] | None = None
    """Branch times (Ornstein-Uhlenbeck), rounded to the schedule's; by default 20, evenly spread
    over the steps."""
    clones: Literal[1, 2] = 1
    """1: the trunk is one of the two that are compared; 2: both are fresh, at nearly twice the
    price."""
    score: Literal["trained", "exact"] = "trained"
    """exact: the exact score of the training set in place of the network."""
    calls: int | None = None
    """Steps of the ancestral sampler; by default all of the run's schedule."""
    clock: Clock = "step"
    """What fewer steps are spread evenly over."""
    batch_size: int = 64
    """Trunks at a time."""
    classifier_per_class: int | None = None
    """Images a class that the classifier is trained on; by default the run's own."""
    published: Literal["MNIST", "CIFAR", "ImageNet16", "ImageNet32", "LSUN"] | None = None
    """A published curve of phi to lay over, its time rescaled by t_S."""
    accuracy: float = 2e-3
    """Standard error asked for of the exact score's curves."""
    seed: int = 1
    """Seed of the noise, the classifier and the bootstrap."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if self.num_trunks < commitment.LEAST_TRUNKS:
            raise UserError(
                f"num_trunks = {self.num_trunks} gives no useful interval: at least "
                f"{commitment.LEAST_TRUNKS}"
            )
        if not self.accuracy > 0:
            raise UserError(f"accuracy = {self.accuracy} must be positive")
        if self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise UserError("batch_size must be at least 1, seed between 0 and 2^32 - 1")


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


def fingerprint(params: Any) -> str:
    """A hash of all parameters."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder of the batches, or checks that those in it are of the same experiment.

    Raises:
      UserError: they are not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "settings.json", json.loads(json.dumps(plain(settings)))
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
    with writing(path) as partial:
        partial.write_text(json.dumps(wanted, indent=1) + "\n")


def training_images(model: run.TrainedModel) -> ImageSet:
    """The images that a run was trained on.

    Raises:
      UserError: they are gone, or others than they were.
    """
    try:
        images = data.load(model.config.data)
    except UserError as error:
        raise UserError(f"the run's training images cannot be read: {error}") from error
    if images.images.shape[1:] != model.shape or not np.array_equal(images.mean, model.mean):
        raise UserError(
            f"the training images changed since the run: their mean was {model.mean.tolist()} and "
            f"is {images.mean.tolist()}; give the run its own data back"
        )
    return images


def get_classifier(
    folder: Path, model: run.TrainedModel, images: ImageSet, options: Options
) -> TrainedClassifier:
    """The classifier kept in a folder, or a new one, which is kept there."""
    if is_first_process() and not (folder / "classifier.json").exists():
        if options.classifier_per_class is not None:
            wanted = dataclasses.replace(
                model.config.data, images_per_class=options.classifier_per_class
            )
            images = data.load(wanted)
        print(f"Training the classifier on {len(images.images)} images")
        save_classifier(folder, train_classifier(images, options.seed))
    distributed.gather("")  # the others wait for it
    return load_classifier(folder)


def _show(bar: Progress, task: TaskID, before: int, made: int) -> None:
    bar.update(task, completed=before + made)


def run_batches(
    folder: Path, count: int, size: int, calls: int, measure: Any, console: Console
) -> tuple[commitment.Outcomes, np.ndarray]:
    """Measures the batches that are not in the folder yet, and joins them all.

    Args:
      folder: where batches are kept.
      count: trunks in all.
      size: trunks a batch.
      calls: of the denoiser, for each trunk.
      measure: of (first, last, progress); see `commitment.measure`.
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
            outcomes, pairs = measure(i * size, (i + 1) * size, show)
            if is_first_process():
                if i == 0:
                    np.save(shown, pairs[:SHOWN])
                outcomes.save(path)
            done += 1
            if bar.disable:
                console.print(f"batch {i + 1} of {len(paths)}", highlight=False)
    distributed.gather("")  # all are written
    joined = commitment.join([commitment.load(path) for path in paths])
    first = commitment.Outcomes(
        **{f.name: getattr(joined, f.name)[:count] for f in dataclasses.fields(joined)}
    )
    return first, np.load(shown, allow_pickle=False)


@reports_errors
def main() -> None:
    """Forks, measures, prints and writes."""
    started = time.monotonic()
    options = tyro.cli(Options, prog="python -m experiments.cloning", description=__doc__)
    options.check()
    backend.configure()
    backend.keep_freed_memory()
    distributed.join()
    model = run.load_model(options.run_dir)
    images = training_images(model)
    schedule = model.sampler.schedule
    points = images.images / np.float32(255) - images.mean
    denoiser: Denoiser = model.denoiser
    if options.score == "exact":
        denoiser = EmpiricalDenoiser(schedule, jax.device_put(points))
    if options.calls is not None:
        schedule, denoiser = with_calls(schedule, denoiser, options.calls, options.clock)
    sampler = AncestralSampler(schedule, model.sampler.faithful)
    times = np.asarray(schedule.time, np.float64)
    steps, watch = branch_steps(times, options.times), watched_steps(len(times))
    default = "cloning" if options.score == "trained" else "cloning_exact"
    out = options.out or options.run_dir / default
    size = min(options.batch_size, options.num_trunks)
    settings = {
        "run_step": model.step,
        "parameters": fingerprint(model.denoiser.params),
        "score": options.score,
        "schedule": hashlib.blake2b(times.tobytes(), digest_size=16).hexdigest(),
        "forks": steps,
        "clones": options.clones,
        "batch_size": size,
        "classifier_per_class": options.classifier_per_class,
        "seed": options.seed,
    }
    batches = out / "batches"
    if is_first_process():
        claim(batches, settings)
    distributed.gather("")
    console = Console()
    judge = None
    if len(images.class_names) > 1:
        judge = get_classifier(batches, model, images, options)
    calls = cloning.denoiser_calls(steps.tolist(), len(times), options.clones)
    console.print(
        f"{options.num_trunks} trunks with {len(steps)} forks, {calls} denoiser calls each",
        highlight=False,
    )

    def classify(x: np.ndarray) -> np.ndarray:
        assert judge is not None
        return judge.predict(x + (images.mean - judge.mean))

    def measure(first: int, last: int, progress: Any) -> tuple[commitment.Outcomes, np.ndarray]:
        return commitment.measure(
            sampler,
            denoiser,
            jax.random.key(options.seed),
            steps.tolist(),
            watch.tolist(),
            points,
            classify if judge is not None else None,
            first,
            last,
            options.clones,
            progress,
        )

    outcomes, shown = run_batches(batches, options.num_trunks, size, calls, measure, console)
    # Trunk i has the key folded with i: no trunk shares its noise with the draws.
    key = jax.random.fold_in(jax.random.key(options.seed), 2**32 - 1)
    with console.status("Measuring the exact score"):
        grid = np.union1d(transitions.TIMES, times[steps - 1])
        draws = transitions.measure(points, images.labels, key, options.accuracy, times=grid)
    if not is_first_process():
        return
    weights = np.bincount(images.labels) / len(points) if images.labels is not None else np.ones(1)
    exact = transitions.summarize(draws, len(points), weights)
    level = exact.levels["t_S_phi"][1] if "t_S_phi" in exact.levels else np.nan
    found = commitment.summarize(
        outcomes, times[steps - 1], times[watch - 1], len(images.class_names), level, options.seed
    )
    warnings = [*([text] if judge is not None and (text := warning(judge)) else [])]
    findings = Findings(
        name="trained model" if options.score == "trained" else "exact score, trajectories",
        settings=settings | {"run_dir": str(options.run_dir), "num_trunks": options.num_trunks},
        images=images,
        points=points,
        outcomes=outcomes,
        shown=shown,
        commitment=found,
        exact=exact,
        judge=judge,
        calls=calls,
        separate_calls=cloning.separate_calls(steps.tolist(), len(times)),
        published=options.published,
        warnings=warnings,
    )
    write(out, findings, console)
    print(f"Wrote {out / 'result.json'} and report.html in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
