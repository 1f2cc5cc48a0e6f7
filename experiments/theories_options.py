"""The options of `experiments.theories`, and which theories they name at what price."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from diffusion_jax.comparing.sources import NAMES, Wanted
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import transitions
from diffusion_jax.regimes.theories import (
    FAMILIES,
    MOST_SECONDS,
    check_families,
    modes_cost,
    theories_of,
)
from diffusion_jax.runtime.memory import available


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares a trained run with the theories that its training set makes."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as experiments.train_lsun or experiments.convert writes it."""
    data: str | None = None
    """Where the images that the run was trained on are now, if they moved: a path, as training
    takes it, known by their pixels."""
    data_dir: Path | None = None
    """Where the files of the run's data set are now, if they moved."""
    out: Path | None = None
    """Folder for the results; by default RUN_DIR/theories."""
    times: tuple[float, ...] | None = None
    """Ornstein-Uhlenbeck times, rounded to the schedule's; by default 8 from 0.05 to 2.5."""
    theories: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="|".join(FAMILIES))] = None
    """Which theories; by default all except the circular one and those that would take more than
    two hours on two cores; these are named, with the time that they would take."""
    patches: tuple[int, ...] | None = None
    """Sides of the patches of the local theory, odd; by default 3 5 9 17."""
    equivariant_patches: tuple[int, ...] | None = None
    """Sides of the patches of the equivariant theories; by default 3 5 9."""
    sources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="|".join(NAMES))] = NAMES
    """On which noisy images: of training images, of images that were held out, and the states of
    the model's own trajectories."""
    images: int = 64
    """Images of each source, at most; at least 2."""
    equivariant_images: int = 16
    """Images of each source for the equivariant theories, which take long."""
    held_out: int | None = None
    """Images of each class to hold out where the run held out none: the next in the source's order;
    by default enough for --images."""
    samples: int = 8
    """Samples from one seed side by side; 0 for none."""
    sample_calls: int = 20
    """Calls of each denoiser per sample, by DDIM."""
    other: Path | None = None
    """Another run's folder, to compare the two networks."""
    other_data: str | None = None
    """Where the other run's training images are now, if they moved."""
    other_data_dir: Path | None = None
    """Where the files of the other run's data set are now, if they moved."""
    batch_size: int = 64
    """Images at a time."""
    accuracy: float = 5e-3
    """Target standard error of the curves that t_S and t_C are read from."""
    seed: int = 0
    """Seed of the noise, of the choice of images and of the bootstrap."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        for name, least in (("images", 2), ("equivariant_images", 2), ("samples", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)} must be at least {least}")
        if self.held_out is not None and self.held_out < 1:
            raise UserError(f"held_out = {self.held_out} must be at least 1")
        if self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise UserError("batch_size must be at least 1, seed between 0 and 2^32 - 1")
        transitions.check_accuracy(self.accuracy, transitions.MAX_DRAWS)
        if self.theories is not None:
            check_families(self.theories)
        self.wanted.check()

    @property
    def wanted(self) -> Wanted:
        """Which sources of noisy images."""
        return Wanted(self.sources, self.images, self.seed, self.batch_size, self.held_out)


def families_of(
    options: Options, images: ImageSet, num_times: int, warnings: list[str], console: Console
) -> list[str]:
    """The names of the theories, and what they cost.

    Raises:
      UserError: one that needs classes, where there are none.
    """
    shape, n = images.images.shape[1:], len(images.images)

    def seconds(name: str) -> float:
        each = options.equivariant_images if FAMILIES[name].equivariant else options.images
        members = theories_of([name], options.patches, options.equivariant_patches, shape)
        calls = num_times * len(options.sources) * min(options.images, each)
        every = [one.seconds(n, shape) for one in members]
        return calls * sum(every) + options.samples * options.sample_calls * max(every)

    every = tuple(name for name in FAMILIES if FAMILIES[name].by_default)
    return affordable(options.theories, every, images, seconds, warnings, console)


def affordable(
    asked: tuple[str, ...] | None,
    default: tuple[str, ...],
    images: ImageSet,
    seconds: Callable[[str], float],
    warnings: list[str],
    console: Console,
) -> list[str]:
    """The theories asked for, or those of the default ones that take neither too long nor too much.

    Args:
      asked: names in `FAMILIES`, which are taken at any price; None for the default ones.
      default: names.
      images: the training images.
      seconds: about what a theory takes on two cores, except for fitting it.
      warnings: to which what is left out is added.
      console: is told of what takes long.

    Raises:
      UserError: one that needs classes is asked for, where there are none.
    """
    shape, n, chosen = images.images.shape[1:], len(images.images), []
    for name in asked or default:
        family, taken = FAMILIES[name], seconds(name)
        if family.needs_classes and len(images.class_names) < 2:
            if asked is not None:
                raise UserError(f"the theory {name} needs images of two classes or more")
            continue
        cost, too_much = "", False
        if family.by_modes:
            fit, size = modes_cost(n, shape)
            taken, free = taken + fit, available().num_bytes
            if too_much := size > free:
                cost = f" and {size / 2**30:.3g} GiB, of which {free / 2**30:.3g} are free"
        cost = f"{name} takes about {duration(taken)} on two cores{cost}"
        if asked is None and (taken > MOST_SECONDS or too_much):
            warnings.append(f"{name} is left out: {cost}; --theories {name} asks for it")
            continue
        if taken > 60 or too_much:
            console.print(cost, highlight=False)
        chosen.append(name)
    return chosen


def duration(seconds: float) -> str:
    """Seconds in minutes, or in hours where there are many."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes > 1)}" if minutes < 120 else f"{minutes // 60} hours"
