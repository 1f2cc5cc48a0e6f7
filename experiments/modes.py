"""Which modes of an image are open at each noise level: python -m experiments.modes RUN_OR_DATA.

A denoiser D keeps the directions of x_t along which M = e^-t dD/dx has eigenvalues above 1/2: its
open modes. For a run's network, the exact score of its training images, their Gaussian and that of
their classes, the leading eigenvalues of M are measured on noised training images, on images that
were held out, and along the model's own trajectories. They give how many modes are open, the trace,
which is the number of degrees of freedom, how far M is from symmetric, the dimension that a gap of
the spectrum shows, and what opens along one trajectory. Of a run with several checkpoints, also the
order in which it learned the modes of its training set. Of a data set, all of it except the
network's part.

Writes result.json, the figures and report.html. What is done is kept cell by cell: after a kill the
same command goes on, and other times, theories and more draws add to it.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from rich.console import Console

from diffusion_jax import data, forking
from diffusion_jax.comparing import learned, modes, sources
from diffusion_jax.comparing.modes import Found, ModeTable, Stop
from diffusion_jax.comparing.samples import SAMPLER
from diffusion_jax.comparing.sources import HELD_OUT, TRAJECTORIES, Source
from diffusion_jax.comparing.table import Asked
from diffusion_jax.covariance import Rows, principal_modes
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import Denoiser, EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import jacobian, transitions
from diffusion_jax.regimes import theories as theory
from diffusion_jax.regimes.learned_modes import LearnedModes, learned_modes
from diffusion_jax.regimes.theories import FAMILIES, Theory
from diffusion_jax.runtime import lock
from diffusion_jax.runtime.devices import fetch, is_first_process, replicate
from diffusion_jax.sampling import Backward, backward
from diffusion_jax.schedule import NoiseSchedule
from diffusion_jax.schedules import linear_schedule
from diffusion_jax.training import run
from experiments.command import parse, reports_errors, start
from experiments.modes_options import (
    Options,
    families_of,
    seconds_of,
    sources_named,
)
from experiments.modes_page import write
from experiments.modes_report import NETWORK, Findings
from experiments.run_or_data import folder_of, opened

# Times by default, from where every mode of small images is open to where none is.
TIMES = np.geomspace(0.02, 2.5, 16)
# Of theories that compare every place with every other, whose derivatives are large.
EQUIVARIANT_BATCH = 8
# Modes of the training set whose learning is followed.
LEARNED = 16
# Of a network, at one x_t; its time is not known before.
_NETWORK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured, refused before anything is computed if it cannot be.

    Attributes:
      options: what was asked for.
      model: the run; None for a data set.
      images: its training images, or the data set.
      points: the same, mean removed, on the devices (n, height, width, channels).
      schedule: the noise schedule.
      steps: of the schedule at which modes are measured (T,), increasing.
      process: the backward process of the trajectories.
      theories: the theories, cheap ones first.
      sources: names of the sources.
      checkpoints: steps of those that the learned modes are of; none where they are left out.
      warnings: one sentence each.
    """

    options: Options
    model: run.TrainedModel | None
    images: ImageSet
    points: Array
    schedule: NoiseSchedule
    steps: list[int]
    process: Backward
    theories: list[Theory]
    sources: tuple[str, ...]
    checkpoints: list[int]
    warnings: list[str]

    @property
    def labels(self) -> np.ndarray | None:
        """Of the training images, where there are two classes or more."""
        return self.images.labels if len(self.images.class_names) > 1 else None

    def make(self, each: Theory) -> Denoiser:
        """A theory's denoiser."""
        return each.make(self.schedule, self.points, self.labels)

    def network(self) -> Denoiser:
        """The run's network, in plain JAX, which has derivatives forwards."""
        assert self.model is not None
        made: Denoiser = jacobian.forwards(self.model.denoiser)
        return made


def setting_of(
    options: Options, model: run.TrainedModel | None, images: ImageSet, console: Console
) -> Setting:
    """Checks that all can be done; see `Setting`.

    Raises:
      UserError: fewer than two images; modes, times, theories, patches, sources or calls that there
        are not.
    """
    shape, n = images.images.shape[1:], len(images.images)
    if n < 2:
        raise UserError("there is one image only, whose score has no modes")
    if options.modes > (d := int(np.prod(shape))):
        raise UserError(f"modes = {options.modes} must be at most {d}, the components of an image")
    schedule = linear_schedule() if model is None else model.sampler.schedule
    if model is not None:
        modes.require_derivative(jacobian.forwards(model.denoiser), shape)
    steps = sources.steps_of(np.asarray(schedule.time, np.float64), options.times, TIMES)
    warnings: list[str] = []
    names = sources_named(options, images, model is not None, schedule.num_steps, warnings)
    families = families_of(options, images, len(names) * len(steps), warnings, console)
    chosen = theory.theories_of(families, options.patches, options.patches, shape)
    labels = images.labels if len(images.class_names) > 1 else None
    theory.check_patches(chosen, schedule, images.centred(slice(0, 1)), labels)
    checkpoints: list[int] = []
    if model is not None and options.learned_samples:
        model.backward(SAMPLER, options.sample_calls)  # refuses what it cannot
        # Time is logarithmic: one that was saved before the first update has no place.
        checkpoints = [step for step in run.steps_of(Path(options.what)) if step > 0]
        if len(checkpoints) < 2:
            checkpoints = []
            warnings.append(
                "the run has fewer than two checkpoints: in which order it learned the modes is "
                "not known"
            )
    points = replicate(images.centred())
    if model is None:
        process = backward(schedule, EmpiricalDenoiser(schedule, points))
    else:
        process = model.backward()
    return Setting(
        *(options, model, images, points, schedule, steps, process, chosen, names),
        *(checkpoints, warnings),
    )


def sources_of(setting: Setting, folder: Path, console: Console) -> list[Source]:
    """The sources, under names of files that do not tell how many draws there are."""
    options, schedule = setting.options, setting.schedule
    found, held_out, missing = sources.gather(
        *(options.wanted(setting.sources), setting.images, setting.model, schedule),
        *(setting.process, setting.steps, folder, console),
    )
    setting.warnings.extend(missing)
    of = "" if held_out is None else f"_{fingerprint(held_out)[:8]}"
    return [
        dataclasses.replace(each, key=each.name + of * (each.name == HELD_OUT)) for each in found
    ]


def asked_of(setting: Setting, found: Sequence[Source]) -> list[Asked]:
    """The network and the theories with the images that they are asked on."""
    options, shape, n = setting.options, setting.images.images.shape[1:], len(setting.points)
    asked = []
    if setting.model is not None:
        own = (NETWORK, setting.network, options.draws, found, _NETWORK_SECONDS)
        asked.append(Asked(*own, options.batch_size))
    for each in setting.theories:
        equivariant = FAMILIES[each.family].equivariant
        size = min(options.batch_size, EQUIVARIANT_BATCH) if equivariant else options.batch_size
        seconds = seconds_of(each.family, each.patch, n, shape, options.modes)
        make = partial(setting.make, each)
        asked.append(Asked(each.name, make, options.draws, found, seconds, size))
    return asked


def _settings(setting: Setting) -> dict[str, Any]:
    """What cells must have in common."""
    model = setting.model
    return {
        "run_step": None if model is None else model.step,
        "parameters": None if model is None else forking.digest(model.denoiser.params),
        "images": fingerprint(setting.images),
        "schedule": forking.digest(np.asarray(setting.schedule.time)),
        "trajectories": f"ancestral, {setting.process.described()}",
        "seed": setting.options.seed,
    }


def _learned(
    setting: Setting, values: np.ndarray, rows: np.ndarray, folder: Path, console: Console
) -> LearnedModes | None:
    """When the modes of the training set were learned, if that is asked for."""
    options, steps = setting.options, setting.checkpoints
    if not steps or len(values) == 0:
        return None
    found, left_out = learned.samples_of(
        *(Path(options.what), steps, folder, options.learned_samples, options.sample_calls),
        *(options.seed, 4 * options.batch_size, console),
    )
    setting.warnings.extend(left_out)
    if not is_first_process():
        return None
    if len(found) < 2:
        setting.warnings.append("fewer than two checkpoints are whole: no modes are followed")
        return None
    return learned_modes(
        *(list(found.values()), list(found), rows[:LEARNED], values[:LEARNED], options.seed)
    )


def _along(
    table: ModeTable, asked: Sequence[Asked], found: Sequence[Source], cells: Mapping[str, Found]
) -> tuple[str, list[Stop]]:
    """What opens along one trajectory, of the network or else the exact score, and whose it is."""
    first = next((each for each in asked if each.name in (NETWORK, "exact")), None)
    source = next((each for each in found if each.name == TRAJECTORIES), None)
    if first is None or source is None:
        return "", []
    return first.name, modes.along(table, first, source, cells.get(first.name, {}))


def measure(setting: Setting, folder: Path, console: Console) -> Findings | None:
    """Computes what is missing in the folder, and sums it all up, in the first process."""
    options, images, first = setting.options, setting.images, is_first_process()
    settings = _settings(setting)
    forking.claim(folder, settings, "measures the modes of a run or of a data set")
    points = np.asarray(fetch(setting.points))
    rank = max(options.modes, LEARNED)
    values, rows, _ = principal_modes(Rows(points, all_channels=True, dtype=np.float64), rank)
    followed = _learned(setting, values, rows, folder, console)
    found = sources_of(setting, folder, console)
    asked = asked_of(setting, found)
    # Places 0 to 2 are taken, see `sources.gather`.
    key = sources.key_of(options.seed, 4)
    table = ModeTable(folder, setting.schedule, setting.steps, options.modes, key)
    table.fill(asked, console)
    cells = {each.name: table.found(each) for each in asked} if first else {}
    whose, stops = _along(table, asked, found, cells)
    with console.status("Measuring the exact score's times"):
        exact = transitions.of_points(
            points, setting.labels, sources.key_of(options.seed, 0), options.accuracy
        )
    if not first:
        return None
    named = ("what", "data_dir", "draws", "modes", "learned_samples", "sample_calls", "accuracy")
    moved = options.what if options.data is None else options.data
    return Findings(
        settings=settings
        | {"data": moved, "num_images": len(images.images)}
        | {name: getattr(options, name) for name in named},
        images=images,
        steps=setting.steps,
        times=np.asarray(setting.schedule.time, np.float64)[setting.steps],
        sources=[source.name for source in found],
        cells=cells,
        eigenvalues=values,
        whose=whose,
        stops=stops,
        learned=followed,
        exact=exact,
        warnings=setting.warnings,
    )


@reports_errors
def main() -> None:
    """Measures, prints and writes."""
    started = time.monotonic()
    options = parse(Options, "modes", f"{__doc__}\n{data.listing()}")
    options.check()
    start()
    console = Console(emoji=False)
    model, images = opened(options.what, options, of_runs=("held_out",))
    setting = setting_of(options, model, images, console)
    out = folder_of(options.what, options, options.out, "modes")
    folder = out / "cells"
    try:
        findings = measure(setting, folder, console)
        if findings is not None:
            write(out, findings, console)
    finally:
        lock.release(folder)
    print(f"Wrote {out / 'result.json'} and report.html in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
