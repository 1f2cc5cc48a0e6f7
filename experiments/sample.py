"""Draws samples from a trained run: python -m experiments.sample RUN_DIR [--num-samples N]."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.plots.training import save_image_grid
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.sampling import AncestralSampler, Sampler, sample
from diffusion_jax.sampling.ode import DDIMSampler, DPMSolver2M
from diffusion_jax.sampling.respacing import Clock, with_calls
from diffusion_jax.training import run
from experiments.command import parse, reports_errors, start


@dataclass(frozen=True)
class Options:
    """Draws samples from a trained run with its averaged parameters."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun writes it."""
    num_samples: int = 64
    """How many images."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 1
    """Seed of the noise."""
    sampler: Literal["ancestral", "ddim", "dpm-solver-2m"] = "ancestral"
    """ddim and dpm-solver-2m have no noise: all of a sample comes from its start."""
    calls: int | None = None
    """Calls of the network a sample; by default all steps of the run's schedule."""
    clock: Clock = "log-snr"
    """What the steps of fewer calls are spread evenly over; docs/sampling.md compares them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network, whatever the run was trained in; docs/sampling.md shows what
    bfloat16 changes."""
    out: Path | None = None
    """Writes OUT.png and OUT.npy; by default RUN_DIR/samples/STEP_seed_SEED, and the sampler's name
    and calls, and the type, behind it where they are not the default."""


def choose(model: run.TrainedModel, options: Options) -> tuple[Sampler, Denoiser]:
    """The sampler that the options name, and the denoiser that goes with its schedule."""
    schedule = model.sampler.schedule
    denoiser: Denoiser = model.denoiser
    if options.calls is not None:
        schedule, denoiser = with_calls(schedule, denoiser, options.calls, options.clock)
    if options.sampler == "ddim":
        return DDIMSampler(schedule), denoiser
    if options.sampler == "dpm-solver-2m":
        return DPMSolver2M(schedule), denoiser
    return AncestralSampler(schedule, model.sampler.faithful), denoiser


@reports_errors
def main() -> None:
    """Parses the command line, samples, and writes a grid and the images themselves."""
    options = parse(Options, "sample", __doc__)
    if options.num_samples < 1 or options.batch_size < 1 or not 0 <= options.seed < 2**32:
        raise UserError(
            "num_samples and batch_size must be at least 1, seed between 0 and 2^32 - 1"
        )
    start()
    model = run.load_model(options.run_dir, options.dtype)
    sampler, denoiser = choose(model, options)
    calls = sampler.schedule.num_steps
    name = f"step_{model.step:08d}_seed_{options.seed}"
    if options.sampler != "ancestral" or options.calls is not None:
        name += f"_{options.sampler}_{calls}"
    if options.dtype != "float32":
        name += f"_{options.dtype}"
    default = options.run_dir / "samples" / name
    out = options.out or default
    out.parent.mkdir(parents=True, exist_ok=True)
    print(
        f"Sampling {options.num_samples} images with the parameters of step {model.step}: "
        f"{options.sampler}, {calls} calls"
    )
    images = sample(
        sampler,
        denoiser,
        jax.random.key(options.seed),
        options.num_samples,
        model.shape,
        options.batch_size,
    )
    if not is_first_process():
        return
    write_npy(out.with_suffix(".npy"), images + model.mean)
    save_image_grid(out.with_suffix(".png"), images, model.mean)
    print(f"Wrote {out.with_suffix('.png')} and {out.with_suffix('.npy')} (in [0, 1] units)")


if __name__ == "__main__":
    sys.exit(main())
