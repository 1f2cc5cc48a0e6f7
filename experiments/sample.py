"""Draws samples from a trained run: python -m experiments.sample RUN_DIR [--num-samples N].

Writes all of them into an .npy file, and a grid of the first 64.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffusion_jax.errors import UserError
from diffusion_jax.forking import digest
from diffusion_jax.plots.training import save_image_grid, save_images
from diffusion_jax.runtime.devices import few_sizes, is_first_process, whole
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.rows import Rows
from diffusion_jax.sampling import SAMPLERS, Backward, check_sampler
from diffusion_jax.sampling.respacing import Clock, first_step
from diffusion_jax.schedule import from_time
from diffusion_jax.schedules import read_times
from diffusion_jax.symmetry import GROUPS, check_symmetry, group_named
from diffusion_jax.training import run
from diffusion_jax.training.outputs import which_parameters
from experiments.command import parse, reports_errors, start

# Samples in the grid.
SHOWN = 64


@dataclass(frozen=True)
class Options:
    """Draws samples from a trained run with its averaged parameters."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun writes it."""
    out: Path | None = None
    """Folder for the samples; by default RUN_DIR/samples. They are named after the run's step, the
    seed, and every other option that is not the default, except their number."""
    checkpoint: Literal["best"] | int | None = None
    """Which checkpoint: an update's number, or best, which --stop-at kept; by default the
    newest."""
    num_samples: int = 64
    """How many images. They are written as they are drawn: after a kill the same command goes on,
    and a larger number adds to what is there."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0
    """Seed of the noise."""
    sampler: Annotated[str, tyro.conf.arg(metavar="|".join(SAMPLERS))] = "ancestral"
    """The sampler; with one without noise (ddim, dpm-solver-2m) a sample follows from its start."""
    calls: int | None = None
    """Network calls per sample; by default all steps of the run's schedule are taken."""
    clock: Clock | None = None
    """With fewer calls than steps: the clock over which the steps taken are spread evenly, by
    default log-snr; docs/sampling.md compares the clocks."""
    schedule: Path | None = None
    """A schedule.json, as experiments.regimes makes it from the data: the calls are spread as its
    steps are. They are by default as many, or all of the run's if it has fewer."""
    clip: bool = True
    """Keep the data that the network predicts within the data's range; never where the run is
    faithful. docs/sampling.md shows what happens without it."""
    symmetrise: Annotated[str | None, tyro.conf.arg(metavar="|".join(GROUPS))] = None
    """Average the network over the maps of a group, so that it moves with them: flip, left for
    right; dihedral, that and quarter turns; translations, every shift around the edges. Each call
    costs as many calls of the network as the group has maps: 2, 8, height x width."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network, whatever the run was trained in; docs/sampling.md shows what
    bfloat16 changes."""
    folder: bool = False
    """Write each image as a PNG too, into a folder of the samples' name, as programs that judge
    samples read them: 255 x, rounded, of x clipped to [0, 1]."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if self.num_samples < 1 or self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "num_samples and batch_size must be at least 1, seed between 0 and 2^32 - 1"
            )
        check_sampler(self.sampler)
        if self.symmetrise is not None:
            check_symmetry(self.symmetrise)
        if self.schedule is not None and self.clock is not None:
            raise UserError(
                f"--clock {self.clock} and --schedule {self.schedule} both say where the steps "
                f"are: leave one of them out"
            )

    def name(self, step: int, calls: int) -> str:
        """What the files of these samples are called, without an ending."""
        parts = [f"step_{step:08d}_seed_{self.seed}"]
        if self.sampler != "ancestral" or self.calls is not None or self.schedule is not None:
            parts += [re.sub(r"[^\w.-]", "-", self.sampler), str(calls)]
        if self.schedule is not None:
            times = np.asarray(read_times(self.schedule)).tobytes()
            parts.append(f"schedule_{hashlib.sha256(times).hexdigest()[:8]}")
        elif self.calls is not None and self.clock not in (None, "log-snr"):
            parts.append(str(self.clock))
        if not self.clip:
            parts.append("unclipped")
        if self.symmetrise is not None:
            parts += ["symmetrised", re.sub(r"[^\w.-]", "-", self.symmetrise)]
        if self.dtype != "float32":
            parts.append(self.dtype)
        return "_".join(parts)


def choose(model: run.TrainedModel, options: Options) -> Backward:
    """The backward process that the options name.

    Raises:
      UserError: calls that the sampler cannot make, a schedule at other times than the run's, or a
        symmetry that the images do not have.
    """
    calls, clip, name = options.calls, options.clip, options.symmetrise
    group = None if name is None else group_named(name, model.shape)
    if options.schedule is None:
        return model.backward(options.sampler, calls, options.clock or "log-snr", clip, group)
    spread, own = from_time(np.asarray(read_times(options.schedule))), model.sampler.schedule
    first, last = float(own.time[0]), float(own.time[-1])
    within = int(np.sum((spread.time >= first) & (spread.time <= last)))
    if within < spread.num_steps / 2:
        raise UserError(
            f"only {within} of the {spread.num_steps} times in {options.schedule} lie in the "
            f"run's schedule, from {first:.4g} to {last:.4g}"
        )
    each = SAMPLERS[options.sampler].calls_per_step
    calls = calls or each * min(spread.num_steps, first_step(own) + 1)
    return model.backward(options.sampler, calls, spread, clip, group)


def draw(process: Backward, model: run.TrainedModel, options: Options, path: Path) -> np.ndarray:
    """Writes the samples into a file as they are drawn, and goes on with what it holds.

    Args:
      process: the backward process.
      model: whose samples they are.
      options: how many, and how many at a time.
      path: the .npy file.

    Returns:
      All samples of the file, mapped into memory, in [0, 1]; of process 0 alone, others have none.
    """
    count, key = options.num_samples, jax.random.key(options.seed)
    size = whole(few_sizes(count, options.batch_size))
    of = digest((process, model.mean, np.array(model.shape), jax.random.key_data(key)))
    rows, first = Rows(path, model.shape, of), is_first_process()
    try:
        done = int(from_first(lambda: str(rows.begin(count, size))))
        if done >= count:
            print(f"{path} holds {done} samples of this model already: it stays as it is")
        elif done:
            print(f"{done} samples were drawn before")
        numbers = range(min(done, count), count)
        with _progress(count, done) as show:
            for images in process.batches(key, numbers, model.shape, size):
                if first:
                    rows.append(images + model.mean)
                done += len(images)
                show(done)
        if first:
            rows.finish()
    finally:
        rows.close()
    return (
        np.load(path, mmap_mode="r", allow_pickle=False)
        if first
        else np.empty((0, *model.shape), np.float32)
    )


@contextmanager
def _progress(count: int, done: int) -> Iterator[Callable[[int], None]]:
    """Shows how many samples are drawn, on stderr: a bar on a terminal, elsewhere lines."""
    console = Console(stderr=True)
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    hidden = not (console.is_terminal and is_first_process())
    with Progress(
        TextColumn("Sampling"), BarColumn(), *columns, console=console, disable=hidden
    ) as bar:
        task = bar.add_task("", total=count, completed=done)

        def show(done: int) -> None:
            bar.update(task, completed=done)
            if not console.is_terminal and is_first_process():
                print(f"{done} of {count} samples", file=sys.stderr)

        yield show


@reports_errors
def main() -> None:
    """Parses the command line, samples, and writes a grid and the images themselves."""
    options = parse(Options, "sample", __doc__)
    options.check()
    start()
    model = run.load_model(options.run_dir, options.dtype, step=options.checkpoint)
    process = choose(model, options)
    folder = options.out or options.run_dir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    if (text := process.warning()) is not None and is_first_process():
        print(f"warning: {text}", file=sys.stderr)
    which = which_parameters(options.run_dir, model.step)
    print(
        f"Sampling {options.num_samples} images with the parameters of {which}: "
        f"{options.sampler}, {process.calls} calls, {process.described()}"
        + (f", averaged over {options.symmetrise}" if options.symmetrise else "")
    )
    path = folder / f"{options.name(model.step, process.calls)}.npy"
    images = draw(process, model, options, path)
    if not is_first_process():
        return
    save_image_grid(path.with_suffix(".png"), images[:SHOWN], np.zeros(1, np.float32))
    print(f"Wrote {path.with_suffix('')}.png and .npy ({len(images)} images in [0, 1] units)")
    if options.folder:
        save_images(path.with_suffix(""), images[: options.num_samples])
        print(f"Wrote {options.num_samples} PNGs into {path.with_suffix('')}")


if __name__ == "__main__":
    sys.exit(main())
