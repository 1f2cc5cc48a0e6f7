"""Which closed-form theory a trained run resembles: python -m experiments.theories RUN_DIR.

On noised training images, on noised images that were held out, and along the model's own
trajectories, at each of some times t: R^2 and cosine of the images that the network and each theory
predict, their losses, and the patch that fits best; then samples of all from one seed, side by
side. The network has the run's averaged parameters, computes in float32, and is not clipped where
it is compared.

Writes result.json, the figures and report.html. What is done is kept cell by cell: after a kill the
same command goes on, and other times, theories and patches add to it. --other RUN_DIR compares two
networks, such as two that were trained on disjoint halves.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from rich.console import Console

from diffusion_jax import forking
from diffusion_jax.comparing import samples, sources
from diffusion_jax.comparing.cells import Cells, Found
from diffusion_jax.comparing.other import Other, other_of, shared
from diffusion_jax.comparing.sources import Source
from diffusion_jax.comparing.table import Asked
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import Denoiser, GaussianClassesDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import theories as theory
from diffusion_jax.regimes import transitions
from diffusion_jax.regimes.theories import FAMILIES, Theory
from diffusion_jax.regimes.transitions import Regimes
from diffusion_jax.regimes.two_moments import two_moments
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.devices import fetch, is_first_process, replicate
from diffusion_jax.sampling import Backward, backward
from diffusion_jax.training import run
from experiments.command import parse, reports_errors, start
from experiments.theories_options import Options, families_of
from experiments.theories_page import write
from experiments.theories_report import NETWORK, Findings, TwoNetworks

# Times at which a network is compared by default, where images of [0, 1] become what they are.
TIMES = np.geomspace(0.05, 2.5, 8)
# Of equivariant theories, each of which takes seconds: a kill costs no more than these.
EQUIVARIANT_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is compared, refused before anything is computed if it cannot be.

    Attributes:
      options: what was asked for.
      model: the run.
      images: its training images.
      points: the same, mean removed, on the devices (n, height, width, channels).
      steps: of the schedule at which the network is compared (T,), increasing.
      theories: the theories, cheap ones first.
      process: the backward process of the trajectories.
      other: another run, if any.
      warnings: one sentence each.
    """

    options: Options
    model: run.TrainedModel
    images: ImageSet
    points: Array
    steps: list[int]
    theories: list[Theory]
    process: Backward
    other: Other | None
    warnings: list[str]

    @property
    def labels(self) -> np.ndarray | None:
        """Of the training images, where there are two classes or more."""
        return self.images.labels if len(self.images.class_names) > 1 else None

    def make(self, each: Theory) -> Denoiser:
        """A theory's denoiser."""
        return each.make(self.model.sampler.schedule, self.points, self.labels)

    def images_of(self, each: Theory) -> int:
        """How many images of a source a theory is compared on."""
        options, slow = self.options, FAMILIES[each.family].equivariant
        return min(options.images, options.equivariant_images) if slow else options.images


def setting_of(
    options: Options, model: run.TrainedModel, images: ImageSet, console: Console
) -> Setting:
    """Checks that all can be done; see `Setting`.

    Raises:
      UserError: fewer than two images; times, theories, patches or calls that there are not;
        another run that cannot be compared with this one.
    """
    if len(images.images) < 2:
        raise UserError(
            "the run has one training image only: every theory is that image, and there is no "
            "variance to explain"
        )
    schedule = model.sampler.schedule
    steps = sources.steps_of(np.asarray(schedule.time, np.float64), options.times, TIMES)
    if options.samples:
        model.backward(samples.SAMPLER, options.sample_calls)  # refuses what it cannot
    warnings: list[str] = []
    names = families_of(options, images, len(steps), warnings, console)
    chosen = theory.theories_of(names, options.patches, options.equivariant_patches, model.shape)
    labels = images.labels if len(images.class_names) > 1 else None
    theory.check_patches(chosen, schedule, images.centred(slice(0, 1)), labels)
    other = None
    if options.other is not None:
        moved = (options.other_data, options.other_data_dir)
        other, said = other_of(options.other, *moved, model, images)
        warnings += said
    points = replicate(images.centred())
    process = model.backward()
    return Setting(options, model, images, points, steps, chosen, process, other, warnings)


def sources_of(setting: Setting, folder: Path, console: Console) -> list[Source]:
    """The sources that there are; trajectories are run where they are not kept."""
    model, other = setting.model, setting.other
    found, held_out, missing = sources.gather(
        *(setting.options.wanted, setting.images, model, model.sampler.schedule),
        *(setting.process, setting.steps, folder, console),
    )
    setting.warnings.extend(missing)
    if other is not None and held_out is not None:
        setting.warnings.extend(shared(held_out, other.images, "held-out images", other.folder))
    return found


def compared_of(setting: Setting, found: Sequence[Source]) -> list[Asked]:
    """Each theory with the images that it is asked on, and the other network."""
    options, shape, n = setting.options, setting.model.shape, len(setting.images.images)
    compared = [
        Asked(
            name=each.name,
            make=partial(setting.make, each),
            images=setting.images_of(each),
            sources=found,
            seconds=each.seconds(n, shape),
            batch_size=min(
                options.batch_size,
                EQUIVARIANT_BATCH if FAMILIES[each.family].equivariant else options.batch_size,
            ),
        )
        for each in setting.theories
    ]
    if setting.other is not None:
        schedule = setting.model.sampler.schedule
        own = setting.other.source(options.images, sources.key_of(options.seed, 3), schedule)
        compared.insert(
            0, setting.other.compared([*found, own], options.images, options.batch_size)
        )
    return compared


def _process(setting: Setting, name: str) -> Backward:
    """The backward process of one of those that draw samples, all with the network's start.

    Networks are kept within the data's range, as their own samples are; theories need no bound.
    """
    options, model = setting.options, setting.model
    if name == NETWORK:
        return model.backward(samples.SAMPLER, options.sample_calls)
    bounds = None
    if setting.other is not None and name == setting.other.name:
        denoiser, bounds = setting.other.make(), model.bounds
    else:
        denoiser = setting.make(next(each for each in setting.theories if each.name == name))
    return backward(
        model.sampler.schedule,
        denoiser,
        samples.SAMPLER,
        options.sample_calls,
        bounds=bounds,
        start=model.start,
        faithful=model.sampler.faithful,
    )


def draw(
    setting: Setting, found: dict[str, Found], on: str, folder: Path, console: Console
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Samples from one seed: of the network, the other one, and each family of theories.

    Args:
      setting: what is compared.
      found: the cells, by the theory's name.
      on: name of the source that says which patch is the best.
      folder: where they are kept.
      console: shows what is done.

    Returns:
      The samples by the name of what drew them, and the theory that took each step of a family.
    """
    options, schedule = setting.options, setting.model.sampler.schedule
    times = np.asarray(_process(setting, NETWORK).sampler.schedule.time, np.float64)
    choices = samples.chosen(found, setting.theories, on, setting.steps, schedule, times)
    drawing = {NETWORK: [NETWORK] * len(times)}
    if setting.other is not None:
        drawing["other"] = [setting.other.name] * len(times)
    drawn = {}
    for name, choice in (drawing | choices).items():
        console.print(f"samples of {name}", highlight=False)
        drawn[name] = samples.drawn(
            *(folder, name, choice, partial(_process, setting)),
            *(sources.key_of(options.seed), options.samples, setting.model.shape),
        )
    return drawn, choices


def _settings(setting: Setting) -> dict[str, Any]:
    """What cells must have in common."""
    model = setting.model
    return {
        "run_step": model.step,
        "parameters": forking.digest(model.denoiser.params),
        "data": fingerprint(setting.images),
        "schedule": forking.digest(np.asarray(model.sampler.schedule.time)),
        "trajectories": f"ancestral, {setting.process.described()}",
        "seed": setting.options.seed,
    }


def _two_moments(setting: Setting, key: Array) -> Regimes | None:
    """When classes with their first two moments alone speciate, if those are compared at all."""
    if setting.labels is None or all(each.family != "classes" for each in setting.theories):
        return None
    points, schedule = np.asarray(fetch(setting.points)), setting.model.sampler.schedule
    return two_moments(GaussianClassesDenoiser.fit(schedule, points, setting.labels), key)


def compare(setting: Setting, folder: Path, console: Console) -> Findings | None:
    """Computes what is missing in the folder, and sums it all up, in the first process."""
    options, model, first = setting.options, setting.model, is_first_process()
    settings = _settings(setting)
    forking.claim(folder, settings, "compares a run with theories")
    found = sources_of(setting, folder, console)
    compared, schedule = compared_of(setting, found), model.sampler.schedule
    cells = Cells(folder, schedule, setting.steps, model.denoiser, options.batch_size)
    cells.fill(compared, console)
    tables = {each.name: cells.found(each) for each in compared} if first else {}
    drawn: dict[str, np.ndarray] = {}
    choices: dict[str, list[str]] = {}
    on = found[-1].name  # trajectories, where they are asked for
    if options.samples:
        drawn, choices = draw(setting, tables, on, folder, console)
    points, key = fetch(setting.points), sources.key_of(options.seed, 0)
    with console.status("Measuring the exact score's times"):
        exact = transitions.of_points(points, setting.labels, key, options.accuracy)
        moments = _two_moments(setting, key)
    if not first:
        return None
    two = None
    if setting.other is not None:
        names = [source.name for each in compared for source in each.sources]
        other = setting.other
        two = TwoNetworks(
            other.folder, tables.pop(other.name), list(dict.fromkeys(names)), other.points()
        )
    named = ("run_dir", "images", "equivariant_images", "samples", "sample_calls", "accuracy")
    return Findings(
        settings=settings
        | {name: getattr(options, name) for name in named}
        | {"patches_chosen_on": on},
        images=setting.images,
        points=points,
        steps=setting.steps,
        times=np.asarray(schedule.time, np.float64)[setting.steps],
        theories=setting.theories,
        sources=[source.name for source in found],
        tables=tables,
        samples=drawn,
        choices=choices,
        exact=exact,
        two_moments=moments,
        two=two,
        warnings=setting.warnings,
    )


@reports_errors
def main() -> None:
    """Compares, prints and writes."""
    started = time.monotonic()
    options = parse(Options, "theories", __doc__)
    options.check()
    start()
    model = run.load_model(options.run_dir).with_data(options.data, options.data_dir)
    images, console = forking.training_images(model), Console(emoji=False)
    setting = setting_of(options, model, images, console)
    out = options.out or options.run_dir / "theories"
    folder = out / "cells"
    try:
        findings = compare(setting, folder, console)
        if findings is not None:
            write(out, findings, console)
    finally:
        lock.release(folder)
    print(f"Wrote {out / 'result.json'} and report.html in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
