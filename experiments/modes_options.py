"""The options of `experiments.modes`, what they name, and at what price."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from diffusion_jax.comparing.sources import HELD_OUT, NAMES, TRAINING, TRAJECTORIES, Wanted
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import transitions
from diffusion_jax.regimes.theories import FAMILIES, check_families, modes_cost, theories_of
from experiments.data_options import DataOptions
from experiments.theories_options import affordable

# Theories that are asked by default, cheap ones.
THEORIES = ("exact", "gaussian", "classes")
# Trajectories of the exact score that take longer are run where they are asked for by name alone.
_MOST_SECONDS = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DataOptions):
    """Measures which modes of an image are open at each noise level."""

    what: Annotated[str, tyro.conf.Positional]
    """A run's folder, as experiments.train_lsun or experiments.convert writes it; or a data set, a
    name of the list above or a path as experiments.regimes takes it, which has no network. With a
    run, --data and --data-dir say where its images are now, if they moved; the other options that
    choose images are for data sets."""
    data: str | None = None
    """Where the images that the run was trained on are now, if they moved."""
    out: Path | None = None
    """Folder for the results; by default RUN_DIR/modes, or runs/modes/NAME of a data set."""
    times: tuple[float, ...] | None = None
    """Ornstein-Uhlenbeck times, rounded to the schedule's; by default 16 from 0.02 to 2.5."""
    theories: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="|".join(FAMILIES))] = None
    """Which theories stand beside the network; by default exact, gaussian and classes. Those of
    patches take the derivatives of each patch, which is slow: their cost is printed."""
    patches: tuple[int, ...] | None = None
    """Sides of the patches of local theories, odd; by default 3 5 9 17, of equivariant ones
    3 5 9."""
    sources: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="|".join(NAMES))] = None
    """On which noisy images: of training images, of images that were held out, and the states of
    the model's own trajectories, those of the exact score where there is no network."""
    draws: int = 16
    """Noisy images of each source, at least 2. More of them add to what is kept."""
    modes: int = 32
    """Number of leading modes that are computed; where all of them are open, more may be."""
    held_out: int | None = None
    """Images of each class to hold out where the run held out none: the next in the source's order;
    by default enough for --draws."""
    learned_samples: int = 64
    """Samples of each checkpoint of a run, whose variances say which modes are learned when; 0 for
    none."""
    sample_calls: int = 20
    """Network calls per sample, by DDIM."""
    batch_size: int = 16
    """Images at a time, whose derivatives take memory as in training."""
    accuracy: float = 5e-3
    """Target standard error of the curves that t_S and t_C are read from."""
    seed: int = 0
    """Seed of the noise, of the choice of images, of the samples and of the bootstrap."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        for name, least in (("draws", 2), ("modes", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)} must be at least {least}")
        if self.learned_samples < 0 or self.learned_samples == 1:
            raise UserError(
                f"learned_samples = {self.learned_samples} must be at least 2, or 0 for none"
            )
        if self.held_out is not None and self.held_out < 1:
            raise UserError(f"held_out = {self.held_out} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError("seed must lie between 0 and 2^32 - 1")
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise UserError(f"memory_gib = {self.memory_gib} must be a positive number of GiB")
        transitions.check_accuracy(self.accuracy, transitions.MAX_DRAWS)
        if self.theories is not None:
            check_families(self.theories)
        if self.sources is not None:
            self.wanted(self.sources).check()

    def wanted(self, names: tuple[str, ...]) -> Wanted:
        """Which sources of noisy images."""
        return Wanted(names, self.draws, self.seed, self.batch_size, self.held_out)


def sources_named(
    options: Options, images: ImageSet, has_network: bool, num_steps: int, warnings: list[str]
) -> tuple[str, ...]:
    """The names of the sources.

    Raises:
      UserError: held-out images of a data set are asked for.
    """
    if has_network:
        return options.sources or NAMES
    if options.sources is not None:
        if HELD_OUT in options.sources:
            raise UserError(
                f"sources = {options.sources}: {options.what} is no run, which could have held "
                f"images out; leave out {HELD_OUT}"
            )
        return options.sources
    shape, n = images.images.shape[1:], len(images.images)
    seconds = FAMILIES["exact"].seconds(n, shape, None) * num_steps * options.draws
    if seconds < _MOST_SECONDS:
        return TRAINING, TRAJECTORIES
    warnings.append(
        f"trajectories of the exact score are left out, since they take about "
        f"{round(seconds / 60)} minutes; --sources {TRAINING} {TRAJECTORIES} asks for them"
    )
    return (TRAINING,)


def families_of(
    options: Options,
    images: ImageSet,
    cells: int,
    warnings: list[str],
    console: Console,
) -> list[str]:
    """The names of the theories, and what they cost.

    Args:
      options: what is asked for.
      images: the training images.
      cells: number of sources and times.
      warnings: to which what is left out is added.
      console: is told of what takes long.

    Raises:
      UserError: one that needs classes, where there are none.
    """
    shape, n = images.images.shape[1:], len(images.images)

    def seconds(name: str) -> float:
        members = theories_of([name], options.patches, options.patches, shape)
        per_draw = [seconds_of(name, each.patch, n, shape, options.modes) for each in members]
        return cells * options.draws * sum(per_draw)

    return affordable(options.theories, THEORIES, images, seconds, warnings, console)


def seconds_of(
    family: str, patch: int | None, n: int, shape: tuple[int, ...], leading: int
) -> float:
    """About what the modes of a theory at one x_t take on two cores.

    In closed form an eigenproblem of the points or of the components, whichever are fewer; else
    some products with the derivative forwards and backwards, each about three calls.
    """
    if family == "gaussian":
        return 1e-3
    products = 2 * leading + 16
    if FAMILIES[family].local:
        return 3 * products * FAMILIES[family].seconds(n, shape, patch)
    return min(modes_cost(n, shape)[0], products * 1e-9 * n * math.prod(shape))
