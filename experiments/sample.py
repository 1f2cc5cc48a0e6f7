"""Draws samples from a trained run: python -m experiments.sample RUN_DIR [--num-samples N]."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from diffusion_jax.errors import UserError
from diffusion_jax.plots.training import save_image_grid
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.sampling import SAMPLERS, check_sampler
from diffusion_jax.sampling.respacing import Clock
from diffusion_jax.schedule import from_time
from diffusion_jax.schedules import read_times
from diffusion_jax.training import run
from experiments.command import parse, reports_errors, start


@dataclass(frozen=True)
class Options:
    """Draws samples from a trained run with its averaged parameters."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun writes it."""
    out: Path | None = None
    """Folder for the samples; by default RUN_DIR/samples. They are named after the run's step, the
    seed, and what else is not the default."""
    num_samples: int = 64
    """How many images."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0
    """Seed of the noise."""
    sampler: Annotated[str, tyro.conf.arg(metavar="|".join(SAMPLERS))] = "ancestral"
    """With one without noise, ddim or dpm-solver-2m, all of a sample comes from its start."""
    calls: int | None = None
    """Calls of the network per sample; by default all steps of the run's schedule."""
    clock: Clock = "log-snr"
    """What the steps of fewer calls are spread evenly over; docs/sampling.md compares them."""
    schedule: Path | None = None
    """A schedule.json, as experiments.regimes makes it from the data: the calls, by default as many
    as it has steps, are spread as its steps are."""
    clip: bool = True
    """Keep what the network predicts of the data within their range; never where the run is
    faithful. docs/sampling.md shows what comes of it without."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network, whatever the run was trained in; docs/sampling.md shows what
    bfloat16 changes."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if self.num_samples < 1 or self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "num_samples and batch_size must be at least 1, seed between 0 and 2^32 - 1"
            )
        check_sampler(self.sampler)

    def name(self, step: int, calls: int) -> str:
        """What the files of these samples are called, without an ending."""
        parts = [f"step_{step:08d}_seed_{self.seed}"]
        if self.sampler != "ancestral" or self.calls is not None or self.schedule is not None:
            parts += [self.sampler, str(calls)]
        if self.schedule is not None:
            parts.append(self.schedule.name.removesuffix(".json"))
        elif self.calls is not None and self.clock != "log-snr":
            parts.append(self.clock)
        if not self.clip:
            parts.append("unclipped")
        if self.dtype != "float32":
            parts.append(self.dtype)
        return "_".join(parts)


@reports_errors
def main() -> None:
    """Parses the command line, samples, and writes a grid and the images themselves."""
    options = parse(Options, "sample", __doc__)
    options.check()
    start()
    model = run.load_model(options.run_dir, options.dtype)
    calls, clock = options.calls, options.clock
    if options.schedule is not None:
        spread = from_time(np.asarray(read_times(options.schedule)))
        calls = calls or min(spread.num_steps, model.sampler.schedule.num_steps)
        process = model.backward(options.sampler, calls, spread, options.clip)
    else:
        process = model.backward(options.sampler, calls, clock, options.clip)
    folder = options.out or options.run_dir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    print(
        f"Sampling {options.num_samples} images with the parameters of step {model.step}: "
        f"{options.sampler}, {process.calls} calls, {process.described()}"
    )
    key = jax.random.key(options.seed)
    images = process.sample(key, options.num_samples, model.shape, options.batch_size)
    if not is_first_process():
        return
    name = options.name(model.step, process.calls)
    write_npy(folder / f"{name}.npy", images + model.mean)
    save_image_grid(folder / f"{name}.png", images, model.mean)
    print(f"Wrote {folder / name}.png and .npy (in [0, 1] units)")


if __name__ == "__main__":
    sys.exit(main())
