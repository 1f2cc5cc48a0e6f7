"""When does it memorise: python -m experiments.memorisation --out DIR --sizes N... [--widths W...].

Trains a model for each size of the training set and each width, evaluates all at the same updates,
and measures from when on samples are good (tau_gen) and from when on they are copies (tau_mem), as
"Why diffusion models don't memorize" (arXiv:2505.17638) does. Any option of a training may follow.
Each run has its folder in DIR; the same command goes on where it was killed, and does nothing
twice.
"""

import sys
import time

import numpy as np
from rich.console import Console

from diffusion_jax import data
from diffusion_jax.config import Config
from diffusion_jax.errors import UserError
from diffusion_jax.forking import get_classifier
from diffusion_jax.judging.features import FeatureMap, feature_maps
from diffusion_jax.memorising import cells as planning
from diffusion_jax.memorising import workers
from diffusion_jax.memorising.cells import Cell
from diffusion_jax.memorising.series import Kept, Series, common_time, series_of, with_exact
from diffusion_jax.runtime import lock
from experiments.command import reports_errors, start
from experiments.memorisation_options import Options, parse
from experiments.memorisation_page import write
from experiments.memorisation_progress import Progress
from experiments.memorisation_report import Findings


def _train(configs: dict[Cell, Config], console: Console) -> dict[Cell, str]:
    """Trains what is left of the runs, and gives why some did not end well."""
    left = {cell: config for cell, config in configs.items() if not planning.is_done(config)}
    console.print(
        f"{len(configs)} runs, of which {len(configs) - len(left)} are done", highlight=False
    )
    if not left:
        return {}
    progress, folders = Progress(configs, console), workers.write_configs(left)
    with progress.watching():
        work = workers.run(folders, progress.look)
    return work.failed


def _maps(options: Options, config: Config) -> dict[str, FeatureMap]:
    """The features by which samples are judged, alike for all runs."""
    images = data.load(config.data)
    try:
        judge, missing = get_classifier(options.out, None, images, None, options.config.seed)
    except UserError as error:  # a file of an earlier one that is damaged, or is none
        judge, missing = None, str(error)
    if missing:
        print(f"No classifier, so no distance in its features: {missing}")
    try:
        mean, maps = images.mean, feature_maps(images.centred(), options.config.seed, judge)
    except UserError as error:
        print(f"No distances of the samples to held-out images: {error}")
        return {}

    def centred(features: FeatureMap) -> FeatureMap:
        return lambda x: features((x - mean).astype(np.float32))

    return {name: centred(features) for name, features in maps.items()}


def _measure(
    options: Options, configs: dict[Cell, Config], failed: dict[Cell, str]
) -> list[Series]:
    """What the runs kept; those that kept nothing are added to the failed ones."""
    kept, sets = [], {}
    for cell, config in configs.items():
        try:
            own = data.load_split(config.data)
            planning.require_own_images(config, own[0])
            kept.append(with_exact(Kept.load(cell, config), config, own[0]))
            sets[cell] = own
        except UserError as error:
            failed.setdefault(cell, str(error))
    if not kept:
        raise UserError(f"no run of {options.out} was evaluated: {next(iter(failed.values()))}")
    largest = max(kept, key=lambda each: each.cell.size).cell
    maps = _maps(options, configs[largest]) if "quality" in options.signals else {}
    found, when = [], _time(options, kept)
    for each in kept:
        training, held_out = sets[each.cell]
        assert held_out is not None  # every plan holds some out
        kinds, modes = "kinds" in options.signals, "modes" in options.signals
        group = configs[each.cell].training.group(training.images.shape[1:])
        found.append(series_of(each, training, held_out, when, maps, kinds, modes, group))
    return found


def _time(options: Options, kept: list[Kept]) -> float:
    """Down to which the information is taken."""
    asked, times = options.information_time, np.asarray(kept[0].strata.schedule.time)
    if asked is not None and not times[0] <= asked < times[-1]:
        raise UserError(
            f"information_time = {asked:g} must lie within the schedule, from {times[0]:.3g} to "
            f"{times[-1]:.3g}"
        )
    return asked or common_time(kept)


@reports_errors
def main() -> None:
    """Trains, measures, draws and writes."""
    began, console = time.monotonic(), Console(emoji=False)
    options = parse(sys.argv[1:], __doc__ or "")
    options.out.mkdir(parents=True, exist_ok=True)
    lock.lock(options.out, "studies", "--out")
    plan = planning.plan(options.out, options.config, options.cells())
    failed = dict(plan.refused)
    for cell, why in failed.items():
        print(f"{cell.name} is left out: {why}", file=sys.stderr)
    failed |= _train(plan.configs, console)
    start()  # now that no other process wants the devices
    series = _measure(options, plan.configs, failed)
    ended = {cell: planning.stopped(config.output.run_dir) for cell, config in plan.configs.items()}
    findings = Findings(options, series, failed, ended)
    write(options.out, findings, console)
    for cell, why in failed.items():
        print(f"{cell.name}: {why}", file=sys.stderr)
    seconds = time.monotonic() - began
    print(f"Wrote {options.out / 'result.json'} and report.html in {seconds:.0f} s")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
