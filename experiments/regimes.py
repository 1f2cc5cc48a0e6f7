"""Speciation and collapse of a data set: python -m experiments.regimes --data DATA [--out DIR].

DATA is mnist, mnist_full, cifar10, imagenet16, imagenet32, imagenet64, celeba, lsun or photographs,
as docs/data.md describes them, a folder of images (a subfolder a class), or an .npy or .npz file of
images and labels. No training is needed:
the answers come from the data's covariance and from their exact empirical score. Prints a table,
and writes result.json, the figures and report.html, which shows them all.
"""

import json
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from diffusion_jax import data, study
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.presets import DATA_DEFAULTS
from diffusion_jax.regimes.transitions import check_accuracy
from diffusion_jax.runtime import backend, distributed
from diffusion_jax.runtime.devices import is_first_process
from experiments.command import parse, reports_errors


@dataclass(frozen=True)
class Options:
    """Measures speciation and collapse of a data set, without training."""

    data: str
    """mnist, mnist_full, cifar10, imagenet16, imagenet32, imagenet64, celeba, lsun, photographs, a
    folder of images, or an .npy or .npz file."""
    out: Path | None = None
    """Folder for result.json, the figures and report.html; by default runs/regimes/NAME."""
    classes: tuple[str, ...] | None = None
    """Names of the data set's classes; by default those of the paper (1 and 8, church_outdoor and
    conference_room, and so on), of the sample run, or all of your own files'."""
    images_per_class: int | None = None
    """The first so many images of each class."""
    image_size: int | None = None
    """Pixels a side, to which images are cropped and resized."""
    data_dir: Path | None = None
    """Where the data set's files lie; by default data/NAME below the current folder."""
    prepared_dir: Path | None = None
    """Where prepared images lie; by default DATA_DIR/prepared."""
    accuracy: float = 2e-3
    """Standard error asked for of phi, phi_C and f^e/alpha, at every time."""
    max_draws: int = 50_000
    """Most draws of the posterior engine."""
    seed: int = 0
    """Seed of the draws."""
    memory: float | None = None
    """Memory that may be used, in GiB; by default what is free."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if not 0 <= self.seed < 2**32:
            raise UserError("seed must lie between 0 and 2^32 - 1")
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise UserError(f"memory = {self.memory} must be a positive number of GiB")
        check_accuracy(self.accuracy, self.max_draws)


def load(options: Options) -> ImageSet:
    """The images that the options name.

    Raises:
      UserError: options that do not belong to the data named, and all that the sources raise.
    """
    if options.data in DATA_DEFAULTS:
        if options.data == "mnist" and (options.data_dir or options.prepared_dir):
            raise UserError("mnist comes with a package: it has no --data-dir and --prepared-dir")
        chosen = {
            name: value
            for name in ("classes", "images_per_class", "image_size", "data_dir", "prepared_dir")
            if (value := getattr(options, name)) is not None
        }
        return data.load(replace(DATA_DEFAULTS[options.data], **chosen))
    for name in ("data_dir", "prepared_dir"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not for files of your own")
    path = Path(options.data)
    return data.load_images(
        path, options.image_size, options.images_per_class, options.memory, options.classes or ()
    )


def _warn(console: Console, warnings: Iterable[str]) -> None:
    for text in warnings:
        console.print(f"warning: {text}", style="yellow", highlight=False, markup=False)


@reports_errors
def main() -> None:
    """Loads, measures, prints and writes."""
    started = time.monotonic()
    options = parse(Options, "regimes", __doc__)
    options.check()
    backend.configure()
    distributed.join()
    images = load(options)
    distributed.require_same("data set", json.dumps([images.mean.tolist(), len(images.images)]))
    warnings = study.warnings_of(images, options.memory)
    out = options.out or Path("runs/regimes") / (Path(options.data).stem or "data")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made a folder: {error.strerror}") from error
    console = Console()
    console.print(study.describe(images))
    _warn(console, warnings)
    with console.status("Measuring") as status:
        found = study.measure(
            images,
            Path(options.data).name,
            warnings,
            options.accuracy,
            options.max_draws,
            options.seed,
            lambda draws, error: status.update(
                f"{draws} draws, largest standard error {error:.4f}"
            ),
        )
    if not is_first_process():
        return
    _warn(console, found.analysis.warnings)
    console.print(found.table())
    console.print(found.norm, highlight=False)
    named = {
        name: getattr(options, name)
        for name in ("data", "images_per_class", "image_size", "data_dir")
    }
    pictures = replace(found, settings=named | found.settings).save(out)
    seconds = time.monotonic() - started
    print(
        f"Wrote {out / 'result.json'}, {len(pictures)} figures and report.html in {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
