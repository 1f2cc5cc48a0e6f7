"""The command line of `experiments.memorisation`."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffusion_jax.config import Config, DataConfig
from diffusion_jax.data import listing
from diffusion_jax.errors import UserError
from diffusion_jax.memorising.cells import Cell, cells_of
from experiments import command
from experiments.train_lsun import Choice, begun, one_spacing, presets

Signal = Literal["quality", "kinds", "modes"]


@dataclass(frozen=True, kw_only=True)
class Options(Choice):
    """Trains models on training sets of several sizes, and measures when they memorise."""

    out: Path = Path("runs/memorisation")
    """The study's folder: a run's folder for each training, the figures, report.html, result.json.
    The same command goes on after a kill; more sizes, widths, replicas or steps add to what is
    there."""
    sizes: tuple[int, ...] = (64, 128, 256, 512)
    """Numbers n of training images, over all classes."""
    widths: tuple[int, ...] | None = None
    """Base channels of the models; by default those of the preset."""
    replicas: int = 1
    """Trainings of each size and width, on different images: of each class replica i has the images
    that follow those of replica i - 1, and its seed is the seed + i. --held-out-after leaves room
    for more replicas, and for larger sizes."""
    steps_by_size: tuple[int, ...] | None = None
    """Updates of the trainings of each size, in the order of --sizes; by default --steps for all.
    What memorises takes updates in proportion to n."""
    level: float = 0.2
    """Memorised fraction of the samples that defines tau_mem: at it a model counts as
    memorising."""
    information_time: float | None = None
    """Time t down to which the information in the losses is taken; by default that at which the
    exact score of the largest training set has 99 % of its information."""
    signals: tuple[Signal, ...] = ("quality", "kinds", "modes")
    """What is measured of the samples besides the memorised fraction. quality: their Frechet and
    kernel distances to held-out images, and tau_gen. kinds: memorised, spurious and novel samples.
    modes: their variance along the training set's principal components."""

    def cells(self) -> list[Cell]:
        """The runs.

        Raises:
          UserError: a field that is out of range, named.
        """
        widths = self.widths or (self.config.model.base_channels,)
        steps = self.steps_by_size or (self.config.steps,) * len(self.sizes)
        for name, least, values in (
            ("sizes", 2, self.sizes),
            ("widths", 1, widths),
            ("steps_by_size", 1, steps),
            ("replicas", 1, (self.replicas,)),
        ):
            if not values or min(values) < least:
                raise UserError(f"{name} = {values} must be at least {least}")
            if name in ("sizes", "widths") and len(set(values)) < len(values):
                raise UserError(f"{name} = {values} must name each once")
        if len(steps) != len(self.sizes):
            raise UserError(
                f"steps_by_size = {steps} must say how many updates for each of the "
                f"{len(self.sizes)} sizes"
            )
        if not 0 < self.level <= 1:
            raise UserError(f"level = {self.level} must lie in (0, 1]")
        time = self.information_time
        if time is not None and not 0 < time < math.inf:
            raise UserError(f"information_time = {time} must be positive")
        return cells_of(self.sizes, widths, self.replicas, steps)


# What a cell decides, by the option that says it for the study.
_OF_CELLS = {
    ("output", "run_dir"): "--out",
    ("data", "images_per_class"): "--sizes",
    ("data", "skip_per_class"): "--replicas",
    ("model", "base_channels"): "--widths",
}


def parse(words: list[str], description: str) -> Options:
    """The study that a command line asks for.

    Raises:
      UserError: an option of a training that the study decides, or `Options.cells`.
    """
    refined: list[Config] = []

    def refine(first: Options) -> Options:
        config = begun(first)
        config = replace(config, output=replace(config.output, sample_every=None))
        if not config.output.evaluates:
            config = replace(config, output=replace(config.output, evaluate_at="log"))
        refined.append(config)
        return Options(config=config)

    unsaid = Options(config=Config(data=DataConfig(data="")))
    text = f"{description}\n{presets()}\n\n{listing()}"
    options = command.parse(Options, "memorisation", text, words, unsaid, refine)
    for (part, name), other in _OF_CELLS.items():
        given, default = (
            getattr(getattr(config, part), name) for config in (options.config, refined[-1])
        )
        if given != default:
            raise UserError(
                f"--{name.replace('_', '-')} {given} is each training's own here: give {other}"
            )
    options = replace(options, config=one_spacing(options.config, words))
    options.cells()
    return options
