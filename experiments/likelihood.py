"""Bits per dimension of images under a trained run: python -m experiments.likelihood RUN_DIR.

By the probability-flow ODE; see diffusion_jax.sampling.likelihood and docs/sampling.md.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from diffusion_jax import data, forking
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.notes import say_notes
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.files import expanded, write_json
from diffusion_jax.sampling.likelihood import image_bits
from diffusion_jax.sampling.respacing import RespacedDenoiser, clock, respaced, spread_steps
from diffusion_jax.training import run
from diffusion_jax.training.outputs import which_parameters
from experiments.command import parse, reports_errors, start


@dataclass(frozen=True)
class Options:
    """Bits per dimension of images under a trained run, with its averaged parameters."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun writes it."""
    data: Path | None = None
    """Images that are cropped and resized to the size of the run's, in a folder, a table or Parquet
    files, or an .npy or .npz file; by default the images that the run trained on."""
    flat: bool = False
    """Take the images at every depth of the folder in --data; by default as the run took its
    own."""
    data_dir: Path | None = None
    """Where the files of the run's data set are now, if they moved."""
    num_images: int = 64
    """How many of them, chosen at random."""
    levels: int | None = None
    """Number of noise levels over which the ODE is solved, spread evenly in log-SNR; from one to
    the next it takes two calls of the network and two of its derivative. By default 100, or all of
    the run's steps if they are fewer."""
    probes: int = 1
    """Random probes of the trace per image."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0
    """Seed of the choice, the dequantization and the probes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network, whatever the run was trained in; docs/sampling.md shows what
    bfloat16 changes."""
    out: Path | None = None
    """Folder for the result; by default RUN_DIR/likelihood. It is named after the run's step, the
    seed, and the type where it is bfloat16."""


def load_images(options: Options, model: run.TrainedModel) -> ImageSet:
    """The images to be measured.

    Raises:
      UserError: they are not the model's size, or have no grey levels.
    """
    if options.data is None:
        images = forking.training_images(model)
    else:
        height, width, _ = model.shape
        size = height if height == width else (height, width)
        path = expanded(options.data)
        as_it_is = path.is_file() and path.suffix.lower() in (".npy", ".npz")
        flat = options.flat or (model.config.data.flat and path.is_dir())
        images = data.load_images(path, None if as_it_is else size, flat=flat)
        say_notes(images)
    if images.images.shape[1:] != model.shape:
        raise UserError(
            f"the run's images are {model.shape}, those of {options.data or 'its data set'} "
            f"{images.images.shape[1:]}"
        )
    if images.images.dtype != np.uint8:
        raise UserError(
            "bits per dimension count grey levels: give 8-bit images (uint8), not floats"
        )
    return images


def chosen_steps(levels: int | None, model: run.TrainedModel) -> np.ndarray:
    """The steps of the run's schedule that the ODE is solved over, which increase.

    Args:
      levels: how many; by default 100, or all where these are fewer.
      model: the run's.

    Raises:
      UserError: fewer than two, or more than the schedule has.
    """
    schedule, most = model.sampler.schedule, model.sampler.schedule.num_steps
    # What was trained as the original does knows nothing of step 0.
    first = int(model.config.training.faithful)
    if levels is not None and not 2 + first <= levels <= most:
        raise UserError(
            f"--levels {levels} must lie between {2 + first} and {most}, the steps of the run's "
            f"schedule"
        )
    return spread_steps(clock(schedule, "log-snr"), levels or min(100, most))[first:]


@reports_errors
def main() -> None:
    """Parses the command line, measures, prints and writes."""
    options = parse(Options, "likelihood", __doc__)
    if min(options.num_images - 1, options.probes, options.batch_size) < 1:
        raise UserError("num_images must be at least 2, probes and batch_size at least 1")
    if not 0 <= options.seed < 2**32:
        raise UserError("seed must lie between 0 and 2^32 - 1")
    start()
    model = run.load_model(options.run_dir, options.dtype).with_data(data_dir=options.data_dir)
    steps = chosen_steps(options.levels, model)
    name = f"step_{model.step:08d}_seed_{options.seed}"
    name += "" if options.dtype == "float32" else f"_{options.dtype}"
    folder = options.out or options.run_dir / "likelihood"
    folder.mkdir(parents=True, exist_ok=True)  # here, so that a bad path loses no work
    out = folder / f"{name}.json"
    images = load_images(options, model).images
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: options.num_images]
    schedule = model.sampler.schedule
    bits = image_bits(
        RespacedDenoiser(model.denoiser, jnp.asarray(steps, jnp.int32)),
        respaced(schedule, steps),
        images[np.sort(chosen)],
        model.mean,
        jax.random.key(options.seed),
        options.probes,
        options.batch_size,
    ).astype(np.float64)
    if not is_first_process():
        return
    if not np.all(np.isfinite(bits)):
        raise UserError(f"{np.sum(~np.isfinite(bits))} images have no finite density: train longer")
    value, error = float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(len(bits)))
    result = {
        "bits_per_dimension": value,
        "standard_error": error,
        "num_images": len(bits),
        "step": model.step,
        "data": str(options.data) if options.data else "training images",
        "levels": len(steps),
        "probes": options.probes,
        "dtype": options.dtype,
        "seed": options.seed,
        "first_noise_deviation": float(jnp.sqrt(jnp.expm1(2 * schedule.time[steps[0]]))),
    }
    write_json(out, result)
    print(
        f"{value:.3f} bits per dimension (standard error {error:.3f} over {len(bits)} images), "
        f"parameters of {which_parameters(options.run_dir, model.step)}; wrote {out}"
    )


if __name__ == "__main__":
    sys.exit(main())
