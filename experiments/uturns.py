"""U-turns of images: python -m experiments.uturns RUN_DIR, or a data set in its place.

Images of the training set, and images that were held out, go up to a time t with noise and come
back by the backward process of the network, of the exact score and of theories. Measured against t
are how many come back in their class, and to the same training image, beside the posterior's exact
answer; how alike the layers of a classifier find image and return; the overlap; and which pixels
change together. Their susceptibility and correlation length peak where the class is lost, if what
is lost there is the top of a hierarchy (Sclocchi et al., arXiv:2402.16991 and 2410.13770).

Writes result.json, the figures and report.html. What is done is kept cell by cell: after a kill the
same command goes on, and other scores, times and more images add to it.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from diffusion_jax import data, forking
from diffusion_jax.comparing import sources, turns
from diffusion_jax.comparing.returns import Judge, summarize
from diffusion_jax.comparing.sources import HELD_OUT, TRAINING, key_of
from diffusion_jax.comparing.table import Asked
from diffusion_jax.comparing.turns import Travellers, Turns
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging.classifier import warning
from diffusion_jax.regimes import transitions
from diffusion_jax.regimes.theories import FAMILIES
from diffusion_jax.regimes.transitions import Regimes
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.sampling import Backward
from diffusion_jax.sampling.backward import closed_form, default_patch
from experiments.command import parse, reports_errors, start
from experiments.theories_options import duration
from experiments.uturns_options import TIMES, TRAINED, Options, Subject, subject_of
from experiments.uturns_report import Findings, write

# Of a network, about, for a call of an image of a pixel on two cores.
_NETWORK_SECONDS = 2e-5


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is run, refused before anything is trained or run if it cannot be.

    Attributes:
      options: what was asked for.
      subject: the run or the data set.
      scores: names of the scores.
      points: the training images, mean removed (n, height, width, channels).
      process: the backward process of the first score; the others' have its sampler and steps.
      steps: of its schedule (T,), increasing.
      warnings: one sentence each.
    """

    options: Options
    subject: Subject
    scores: tuple[str, ...]
    points: np.ndarray
    process: Backward
    steps: list[int]
    warnings: list[str]

    @property
    def times(self) -> np.ndarray:
        """Of the steps (T,)."""
        return np.asarray(self.process.sampler.schedule.time, np.float64)[self.steps]


def _process(
    options: Options, subject: Subject, score: str, points: np.ndarray, labels: np.ndarray | None
) -> Backward:
    """The backward process of a score."""
    how, model = (options.sampler, options.calls, options.clock), subject.model
    if score == TRAINED and model is not None:
        return model.backward(*how, options.clip)
    faithful = model is not None and model.sampler.faithful
    side = options.side(score)
    return closed_form(score, subject.schedule, points, labels, *how, side, faithful)


def setting_of(options: Options, subject: Subject) -> Setting:
    """Checks that all can be done; see `Setting`.

    Raises:
      UserError: fewer than two images; scores, patches, times or calls that there are not.
    """
    images, labels = subject.images, subject.labels
    if len(images.images) < 2:
        raise UserError(
            "there is one training image only: which one a return is nearest to, and the exact "
            "score's collapse, need two or more"
        )
    scores, points = subject.scores(options), images.centred()
    for score in scores:
        if default_patch(score) is not None:  # of one point: what it cannot be, it says itself
            _process(options, subject, score, points[:1], None)
    process = _process(options, subject, scores[0], points, labels)
    times = np.asarray(process.sampler.schedule.time, np.float64)
    steps = sources.steps_of(times, options.times, TIMES)
    warnings = (
        []
        if len(points) >= options.images
        else [f"there are {len(points)} training images, not {options.images}"]
    )
    if (few := process.warning()) is not None:
        warnings.append(few)
    if not _draws_noise(process):
        warnings.append(
            f"{options.sampler} draws no noise on the way back: returns of an image differ by the "
            f"noise going up alone, and so do the pixels whose susceptibility is given"
        )
    return Setting(options, subject, scores, points, process, steps, warnings)


def _draws_noise(process: Backward) -> bool:
    """Whether two steps of its sampler from one state differ."""
    sampler, step = process.sampler, process.sampler.schedule.num_steps - 1
    keys, state = jax.random.split(jax.random.key(0), 2), sampler.init(jnp.ones((2, 1)))
    moved = sampler.output(
        sampler.step(lambda x, step: jnp.zeros_like(x), state, jnp.int32(step), keys)
    )
    return bool(moved[0, 0] != moved[1, 0])


def travellers_of(setting: Setting) -> list[Travellers]:
    """The images that take U-turns: of the training set, and held out where there are any."""
    options, images, model = setting.options, setting.subject.images, setting.subject.model
    sampler, seed = setting.process.sampler, options.seed
    order = np.asarray(jax.random.permutation(key_of(seed, 3), len(images.images)))
    chosen = setting.points[order[: options.images]]
    found = [turns.travellers(TRAINING, chosen, key_of(seed, 1), sampler)]
    if model is None:
        return found
    per_class = options.held_out or -(-options.images // max(1, len(images.class_names)))
    others, missing = sources.held_out(model, per_class)
    if others is None or len(others.images) < 2:
        setting.warnings.append(f"no images are held out: {missing or 'there is one alone'}")
        return found
    kept = dataclasses.replace(others, kept_mean=images.mean)
    chosen = np.asarray(kept.centred(_by_turns(others)[: options.images]))
    return [*found, turns.travellers(HELD_OUT, chosen, key_of(seed, 2), sampler)]


def _by_turns(images: ImageSet) -> np.ndarray:
    """The places of images, one of each class after the other: more of them begin alike."""
    if images.labels is None:
        return np.arange(len(images.images))
    rank = np.zeros(len(images.labels), np.int64)
    for label in np.unique(images.labels):
        own = images.labels == label
        rank[own] = np.arange(own.sum())
    return np.lexsort((images.labels, rank))


def asked_of(setting: Setting, found: Sequence[Travellers], console: Console) -> list[Asked]:
    """Each score with the images that it brings back; what takes long is said."""
    options, subject = setting.options, setting.subject
    n, shape = len(setting.points), setting.points.shape[1:]
    calls = options.returns * sum(step + 1 for step in setting.steps)
    calls *= setting.process.sampler.calls_per_step
    asked = []
    for score in setting.scores:
        each = _NETWORK_SECONDS * shape[0] * shape[1]
        if score in FAMILIES:
            each = FAMILIES[score].seconds(n, shape, options.side(score))
        seconds = each * calls * sum(source.count for source in found)
        if score in FAMILIES and seconds > 60:
            console.print(
                f"{options.name(score)} takes about {duration(seconds)} on two cores",
                highlight=False,
            )
        asked.append(
            Asked(
                options.name(score),
                partial(_denoiser, options, subject, score, setting.points),
                max(source.count for source in found),
                found,
                each * calls / len(setting.steps),
                options.batch_size,
            )
        )
    return asked


def _denoiser(options: Options, subject: Subject, score: str, points: np.ndarray) -> Any:
    return _process(options, subject, score, points, subject.labels).denoiser


def _settings(setting: Setting) -> dict[str, Any]:
    """What cells must have in common."""
    options, model = setting.options, setting.subject.model
    return {
        "run_step": None if model is None else model.step,
        "parameters": None if model is None else forking.digest(model.denoiser.params),
        "images": fingerprint(setting.subject.images),
        "schedule": forking.digest(np.asarray(setting.process.sampler.schedule.time)),
        "sampler": options.sampler,
        "clip": options.clip and model is not None,
        "dtype": options.dtype,
        "returns": options.returns,
        "classifier_per_class": options.classifier_per_class,
        "seed": options.seed,
    }


def _judge(setting: Setting, folder: Path) -> Judge:
    """The classifier, if there are classes and it can be trained, with the means of its layers."""
    subject, options = setting.subject, setting.options
    if subject.labels is None:
        return Judge()
    judge, missing = forking.get_classifier(
        folder, subject.model, subject.images, options.classifier_per_class, options.seed
    )
    if missing:
        more = "" if subject.model is None else "; --classifier-per-class takes more images"
        setting.warnings.append(f"no classes are judged, and no layers compared: {missing}{more}")
    elif judge is not None and (text := warning(judge)):
        setting.warnings.append(text.removesuffix("."))
    return Judge.of(judge, subject.images)


def _posterior(setting: Setting) -> Regimes:
    """Curves and times of the exact score, at the times of the U-turns among others."""
    grid = np.union1d(transitions.TIMES, setting.times)
    points, labels, key = setting.points, setting.subject.labels, key_of(setting.options.seed, 0)
    return transitions.of_points(points, labels, key, setting.options.accuracy, grid)


def turn(setting: Setting, console: Console) -> Findings | None:
    """Runs what is missing, and sums it all up, in the first process."""
    options, subject, schedule = setting.options, setting.subject, setting.process.sampler.schedule
    folder, settings = subject.folder / "cells", _settings(setting)
    with console.status("Measuring the exact score"):
        exact = _posterior(setting)
    forking.claim(folder, settings, "takes images to and fro")
    judge = _judge(setting, folder)
    found = travellers_of(setting)
    asked = asked_of(setting, found, console)
    cells = Turns(
        *(folder, schedule, setting.steps),
        sampler=setting.process.sampler,
        returns=options.returns,
        points=setting.points,
        judge=judge,
    )
    cells.fill(asked, console)
    if not is_first_process():
        return None
    shape = setting.points.shape[1:]
    measured = {}
    for each in asked:
        tables = cells.found(each)
        for source in found:
            along = [tables[source.name, step] for step in setting.steps]
            measured[each.name, source.name] = summarize(
                along, setting.times, shape, source.name == TRAINING, options.seed
            )
    named = ("data", "data_dir", "images", "accuracy")
    return Findings(
        settings=settings
        | {name: getattr(options, name) for name in named}
        | ({"data": options.what} if subject.model is None else {"run_dir": options.what})
        | {"process": setting.process.described()},
        images=subject.images,
        times=setting.times,
        scores=[each.name for each in asked],
        sources={source.name: source.images for source in found},
        measured=measured,
        exact=exact,
        judge=judge.classifier,
        warnings=setting.warnings,
    )


@reports_errors
def main() -> None:
    """Takes U-turns, measures, prints and writes."""
    started = time.monotonic()
    options = parse(Options, "uturns", f"{__doc__}\n{data.listing()}")
    options.check()
    start()
    console = Console(emoji=False)
    subject = subject_of(options)
    setting = setting_of(options, subject)
    try:
        findings = turn(setting, console)
        if findings is not None:
            write(subject.folder, findings, console)
    finally:
        lock.release(subject.folder / "cells")
    seconds = time.monotonic() - started
    print(f"Wrote {subject.folder / 'result.json'} and report.html in {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
