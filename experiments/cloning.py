"""Forks a trained model in mid-course: python -m experiments.cloning RUN_DIR [--num-trunks N].

Trunks run from pure noise to images; at each branch time clones go on with noise of their own.
phi(t) is the probability that two of them end in one class, phi_C(t) that they end nearest to one
training image. Beside them stand the same curves of the exact score of the training set, which
needs no model: where the two part, the model has learned something else.

Writes result.json, the figures and report.html. What is done is kept batch by batch: after a kill
the same command goes on, and a larger --num-trunks adds to it.
"""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jax import Array
from rich.console import Console

from diffusion_jax import forking
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import DENOISERS
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import TrainedClassifier, warning
from diffusion_jax.regimes import cloning, commitment, transitions
from diffusion_jax.regimes.spectrum import largest_eigenvalue
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.sampling import SAMPLERS, Backward, check_sampler
from diffusion_jax.sampling.backward import closed_form, default_patch
from diffusion_jax.sampling.respacing import Clock
from diffusion_jax.training import run
from experiments.cloning_report import Findings, write
from experiments.command import parse, reports_errors, start


@dataclasses.dataclass(frozen=True)
class Options:
    """Forks the backward process of a trained run and measures what it commits to."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun or experiments.convert writes it."""
    data: str | None = None
    """Where the images that the run was trained on are now, if they moved: a path, as training
    takes it, known by their pixels."""
    data_dir: Path | None = None
    """Where the files of the run's data set are now, if they moved."""
    out: Path | None = None
    """Folder for the results; by default RUN_DIR/cloning. Its name goes on with what makes it
    another experiment: the score (cloning_exact), the checkpoint, the patch, the sampler,
    unclipped, bfloat16."""
    checkpoint: Literal["best"] | int | None = None
    """Which checkpoint: an update's number, or best, which --stop-at kept; by default the
    newest."""
    num_trunks: int = 256
    """Trunks, each forked at every branch time; at least 30."""
    times: tuple[float, ...] | None = None
    """Branch times (Ornstein-Uhlenbeck), rounded to the schedule's; by default 20, evenly spread
    over the steps."""
    clones: Literal[1, 2] = 1
    """1: a clone is compared with the trunk itself; 2: two clones are compared, at nearly twice the
    cost."""
    score: Annotated[str, tyro.conf.arg(metavar=f"trained|{'|'.join(DENOISERS)}")] = "trained"
    """In place of the network, a score made of the training set. exact: its exact score. gaussian:
    that of one Gaussian with the set's mean and covariance. classes: that of one Gaussian per
    class. local: what the exact score becomes where each pixel sees only a patch around it.
    equivariant: the same where a pixel does not know its place either."""
    patch: int | None = None
    """Side of the patches in pixels, odd, of --score local and equivariant; 5 by default."""
    sampler: Annotated[str, tyro.conf.arg(metavar="|".join(SAMPLERS))] = "ancestral"
    """The sampler; clones of one without noise (ddim, dpm-solver-2m) are equal."""
    calls: int | None = None
    """Denoiser calls per trunk; by default all steps of the run's schedule are taken."""
    clock: Clock = "step"
    """With fewer calls than steps: the clock over which the steps taken are spread evenly."""
    clip: bool = True
    """Keep the data that the network predicts within the data's range, as experiments.sample does;
    never where the run is faithful, and never of a score in closed form."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network, whatever the run was trained in; docs/sampling.md shows what
    bfloat16 changes."""
    batch_size: int = 64
    """Trunks at a time; trunks that are kept already may have been run in other batches."""
    classifier_per_class: int | None = None
    """Images per class on which the classifier is trained; by default those of the run."""
    published: Literal["MNIST", "CIFAR", "ImageNet16", "ImageNet32", "LSUN"] | None = None
    """A published curve of phi to draw beside, its time rescaled by t_S."""
    accuracy: float = 2e-3
    """Target standard error of the exact score's curves."""
    seed: int = 0
    """Seed of the noise, the classifier and the bootstrap."""

    def name(self) -> str:
        """What the folder of the results is called, by default."""
        parts = {
            "cloning": True,
            self.score: self.score != "trained",
            f"step_{self.checkpoint}": isinstance(self.checkpoint, int),
            "best": self.checkpoint == "best",
            f"{self.patch_side()}": self.patch_side() is not None,
            self.sampler: self.sampler != "ancestral",
            "unclipped": not self.clip and self.score == "trained",
            self.dtype: self.dtype != "float32",
        }
        return "_".join(name for name, there in parts.items() if there)

    def patch_side(self) -> int | None:
        """The side of the patches; None for a score that has none."""
        return default_patch(self.score) if self.patch is None else self.patch

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if self.num_trunks < commitment.LEAST_TRUNKS:
            raise UserError(
                f"num_trunks = {self.num_trunks} gives no useful interval: at least "
                f"{commitment.LEAST_TRUNKS}"
            )
        transitions.check_accuracy(self.accuracy, transitions.MAX_DRAWS)
        check_sampler(self.sampler)
        if self.score not in ("trained", *DENOISERS):
            raise UserError(
                f"there is no score {self.score!r}; choose from trained, {', '.join(DENOISERS)}"
            )
        if self.patch is not None and default_patch(self.score) is None:
            able = (name for name in DENOISERS if default_patch(name) is not None)
            raise UserError(
                f"--score {self.score} compares no patches: leave --patch out, or take --score "
                f"{' or '.join(able)}"
            )
        if self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise UserError("batch_size must be at least 1, seed between 0 and 2^32 - 1")


def _backward_process(
    options: Options, model: run.TrainedModel, points: np.ndarray, labels: np.ndarray | None
) -> Backward:
    """The backward process that the options name."""
    how = (options.sampler, options.calls, options.clock)
    if options.score == "trained":
        return model.backward(*how, options.clip)
    schedule, faithful = model.sampler.schedule, model.sampler.faithful
    return closed_form(options.score, schedule, points, labels, *how, options.patch, faithful)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be run, refused before anything is trained or forked if it cannot be.

    Attributes:
      process: the backward process.
      points: the training images, mean removed (n, height, width, channels).
      times: of the sampler's steps (L,).
      steps: steps to go at the forks (B,), descending.
      watch: steps to go at which trunks are watched, descending.
      exact: curves and times of the exact score.
    """

    process: Backward
    points: np.ndarray
    times: np.ndarray
    steps: np.ndarray
    watch: np.ndarray
    exact: transitions.Regimes


def plan(
    options: Options, model: run.TrainedModel, images: ImageSet, key: Array, console: Console
) -> Plan:
    """Checks that all can be done, and measures the exact score.

    Raises:
      UserError: fewer than two images, branch times or calls that the schedule does not have, or a
        published curve for images that have no t_S to rescale its time by.
    """
    if len(images.images) < 2:
        raise UserError(
            "the run has one training image only: which one a trunk is nearest to, and the exact "
            "score's collapse, need two or more"
        )
    if options.published is not None and (Lambda := largest_eigenvalue(images.images)) <= 1:
        raise UserError(
            f"--published rescales time by t_S = 1/2 log Lambda, and these images have none: their "
            f"Lambda, {Lambda:.3g}, is not over 1; leave it out"
        )
    points = images.centred()
    process = _backward_process(options, model, points, images.labels)
    times = np.asarray(process.sampler.schedule.time, np.float64)
    steps, watch = forking.branch_steps(times, options.times), forking.watched_steps(len(times))
    with console.status("Measuring the exact score"):
        exact = _exact_score(images, points, times[steps - 1], key, options.accuracy)
    return Plan(process, points, times, steps, watch, exact)


def _settings(options: Options, model: run.TrainedModel, planned: Plan) -> dict[str, Any]:
    """What batches must have in common to be joined."""
    return {
        "run_step": model.step,
        "parameters": forking.digest(model.denoiser.params),
        "score": options.score,
        "patch": options.patch_side(),
        "sampler": options.sampler,
        "clip": planned.process.clipped,
        "matched_start": planned.process.start is not None,
        "schedule": forking.digest(planned.times),
        "forks": planned.steps,
        "clones": options.clones,
        "classifier_per_class": options.classifier_per_class,
        "seed": options.seed,
    }


def _judge(
    options: Options, folder: Path, model: run.TrainedModel, images: ImageSet
) -> tuple[TrainedClassifier | None, list[str]]:
    """The classifier, if there are classes and it can be trained, and what to know of it."""
    if len(images.class_names) < 2:
        return None, []
    per_class = options.classifier_per_class
    judge, missing = forking.get_classifier(folder, model, images, per_class, options.seed)
    if judge is None:
        return None, [
            f"no classes, no phi and no quality of the samples are given: {missing}; "
            f"--classifier-per-class takes more images of the same source"
        ]
    return judge, [text] if (text := warning(judge)) else []


def _skewed(ends: np.ndarray, images: ImageSet) -> list[str]:
    """What to know of the classes that trunks end in, if these are not as often the data's."""
    assert images.labels is not None  # they trained the classifier
    training = np.bincount(images.labels, minlength=len(ends))
    skewed = commitment.skewed_class(ends, training)
    if skewed is None:
        return []
    each, p = skewed
    share, expected = (counts[each] / counts.sum() for counts in (ends, training))
    return [
        f"{share:.1%} of the trunks end in class {images.class_names[each]}, of which "
        f"{expected:.1%} of the training images are (exact binomial test, p = {p:.1g}): phi and "
        f"t_S_phi are of samples whose classes are not those of the data"
    ]


def _said_at_once(process: Backward) -> list[str]:
    """What is to be known of the sampler, for whoever need not wait for the result."""
    few = process.warning()
    if few is not None and is_first_process():
        print(f"warning: {few}", file=sys.stderr)
    return [] if few is None else [few]


def _measure(
    options: Options,
    model: run.TrainedModel,
    images: ImageSet,
    planned: Plan,
    folder: Path,
    console: Console,
) -> Findings | None:
    """Forks the trunks, and sums up, in the first process, what they and the exact score do."""
    times, steps, watch, exact = planned.times, planned.steps, planned.watch, planned.exact
    settings = _settings(options, model, planned)
    forking.claim(folder, settings)
    process, count = planned.process, options.num_trunks
    few = _said_at_once(process)
    judge, warnings = _judge(options, folder, model, images)
    warnings += few
    each = process.sampler.calls_per_step
    calls = each * cloning.denoiser_calls(steps.tolist(), len(times), options.clones)
    console.print(
        f"{count} trunks with {len(steps)} forks, {calls} denoiser calls each; "
        f"{options.sampler}, {process.described()}",
        highlight=False,
    )
    measure = partial(
        commitment.measure,
        *(process.sampler, process.denoiser, _key(options)),
        *(steps.tolist(), watch.tolist(), planned.points),
        None if judge is None else partial(_classes, judge, images.mean),
        clones=options.clones,
        start=process.start,
    )
    size = min(options.batch_size, count)
    forked = forking.run_batches(folder, count, size, calls, measure, console)
    if forked is None:
        return None
    outcomes, shown = forked
    level = exact.levels["t_S_phi"][1] if "t_S_phi" in exact.levels else np.nan
    num_classes = 1 if judge is None else len(images.class_names)
    found = commitment.summarize(
        outcomes, times[steps - 1], times[watch - 1], num_classes, level, options.seed
    )
    if judge is not None:
        warnings += _skewed(found.class_counts, images)
    trained = options.score == "trained"
    return Findings(
        name="trained model" if trained else f"{options.score} score, trajectories",
        settings=settings
        | {"run_dir": str(options.run_dir), "num_trunks": count, "dtype": options.dtype}
        | {"batch_size": size, "backward_process": process.described()},
        images=images,
        points=planned.points,
        outcomes=outcomes,
        shown=shown,
        commitment=found,
        exact=exact,
        judge=judge,
        calls=calls,
        separate_calls=each * cloning.separate_calls(steps.tolist(), len(times)),
        published=options.published,
        warnings=warnings,
    )


def _key(options: Options) -> Array:
    return jax.random.key(options.seed)


def _classes(judge: TrainedClassifier, mean: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The classes of images from which the run's mean was removed."""
    return judge.predict(x + (mean - judge.mean))


def _exact_score(
    images: ImageSet, points: np.ndarray, times: np.ndarray, key: Array, accuracy: float
) -> transitions.Regimes:
    """Curves and times of the exact score, at the branch times among others."""
    # Trunk i has the key folded with i: no trunk shares its noise with the draws.
    key = jax.random.fold_in(key, 2**32 - 1)
    grid = np.union1d(transitions.TIMES, times)
    return transitions.of_points(points, images.labels, key, accuracy, grid)


@reports_errors
def main() -> None:
    """Forks, measures, prints and writes."""
    started = time.monotonic()
    options = parse(Options, "cloning", __doc__)
    options.check()
    start()
    model = run.load_model(options.run_dir, options.dtype, step=options.checkpoint)
    model = model.with_data(options.data, options.data_dir)
    images = forking.training_images(model)
    out, console = options.out or options.run_dir / options.name(), Console(emoji=False)
    planned = plan(options, model, images, _key(options), console)
    folder = out / "batches"
    try:
        findings = _measure(options, model, images, planned, folder, console)
        if findings is not None:
            write(out, findings, console)
    finally:
        lock.release(folder)
    print(f"Wrote {out / 'result.json'} and report.html in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
