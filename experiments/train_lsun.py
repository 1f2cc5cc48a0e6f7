"""Trains a diffusion model: python -m experiments.train_lsun [--preset NAME] [--FIELD VALUE ...].

The same command in the same folder resumes a run that was stopped; --resume RUN_DIR does so without
the other options. --data takes another data set than the preset's, or the path of a folder of
images, an .npy or an .npz; docs/data.md says where the files of each come from.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from diffusion_jax import schedules
from diffusion_jax.config import Config, DataConfig
from diffusion_jax.data import listing
from diffusion_jax.data.names import name_of
from diffusion_jax.errors import MissingData, UserError
from diffusion_jax.presets import PRESETS, data_defaults, preset_of
from diffusion_jax.sampling import SAMPLERS
from diffusion_jax.training import loop, saved_config
from experiments import command
from experiments.command import reports_errors, start


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A configuration, and the preset that it began from."""

    preset: Literal[tuple(PRESETS)] | None = None  # type: ignore[valid-type]
    """A complete configuration that further options change; by default the one for --data, or
    lsun."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True, kw_only=True)
class Options(Choice):
    """Trains a diffusion model."""

    resume: Path | None = None
    """The folder of a run to resume, which goes on as its config.json says. Besides it, only what
    changes no mathematics may be given: --steps, where the data are now, what is written when, and
    memory."""


# The learning rate of descent with momentum, where none is given: that of arXiv:2505.17638.
_SGD_RATE = 1e-2
# Of a first reading: no --data was given.
UNSAID = Options(config=Config(data=DataConfig(data="")))


def presets() -> str:
    """A line for each preset, made of its values."""
    lines = []
    for name, preset in PRESETS.items():
        data, pixels = preset.data, preset.data.image_size
        lines.append(
            f"  {name:11} {data.images_per_class:6,} images each of {' and '.join(data.classes)} "
            f"of {data.data}, {pixels} x {pixels}; {preset.model.base_channels} channels, batch "
            f"{preset.training.batch_size}, {preset.steps:,} updates"
        )
    return "\n".join(
        ["presets, each a complete configuration that further options change:", *lines]
    )


def begin(preset: str | None, data: str | None) -> Config:
    """What a command line begins from.

    Args:
      preset: its --preset, if any.
      data: its --data, if any.
    """
    if preset is None and data is not None and (own := preset_of(data)) is not None:
        return own
    preset = preset or "lsun"
    config = PRESETS[preset]
    if data in (None, config.data.data):
        return config
    folder = config.output.run_dir.with_name(f"{preset}_{name_of(data)}")
    return replace(config, data=data_defaults(data), output=replace(config.output, run_dir=folder))


def begun(first: Choice) -> Config:
    """What a command line begins from, after a first reading of it."""
    config, optimizer = begin(first.preset, first.config.data.data or None), "sgd"
    if first.config.training.optimizer != optimizer or config.training.optimizer == optimizer:
        return config
    return replace(config, training=replace(config.training, learning_rate=_SGD_RATE))


def one_spacing(config: Config, words: list[str]) -> Config:
    """The configuration without a default --evaluate-at where --evaluate-every was given."""
    given = any(word.replace("_", "-").startswith("--evaluate-at") for word in words)
    if given or config.output.evaluate_every is None:
        return config
    return replace(config, output=replace(config.output, evaluate_at=None))


def _refined(first: Options) -> Options:
    """The defaults of a command line, after a first reading of it."""
    if first.resume is None:
        return Options(config=begun(first))
    if first.preset is not None:
        raise UserError(
            f"--preset {first.preset} does not go with --resume, which takes everything from "
            f"{first.resume / saved_config.NAME}"
        )
    config = saved_config.read(first.resume)
    return Options(config=replace(config, output=replace(config.output, run_dir=first.resume)))


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def parse(words: list[str]) -> Config:
    """The configuration that a command line asks for.

    Raises:
      UserError: --resume of what is no run, or beside it what must stay as it was.
    """
    samplers = f"samplers, for --sampler: {', '.join(SAMPLERS)}"
    description = f"{__doc__}\n{presets()}\n\n{listing()}\n\n{schedules.listing()}\n\n{samplers}"
    options = command.parse(Options, "train_lsun", description, words, UNSAID, _refined)
    config, folder = one_spacing(options.config, words), options.resume
    if folder is None:
        return config
    if config.output.run_dir != folder:
        raise UserError(
            f"--resume {folder} names the run's folder, and --run-dir {config.output.run_dir} "
            f"another: leave one of them out"
        )
    config = replace(config, schedule=config.schedule.settled())
    if changed := saved_config.differences(saved_config.read(folder), config):
        fields = (line.partition(":") for line in changed)
        refused = "; ".join(f"{_option(name)}:{values}" for name, _, values in fields)
        raise UserError(
            f"--resume {folder} goes on as the run began ({refused}); what may be given beside it "
            f"is {', '.join(map(_option, saved_config.free_fields()))}"
        )
    return config


@reports_errors
def main() -> None:
    """Parses the command line and trains."""
    config = parse(sys.argv[1:])
    start()
    try:
        loop.train(config)
    except MissingData as error:
        raise UserError(
            f"{error}; without these data, run: python -m experiments.train_lsun --preset sample"
        ) from error


if __name__ == "__main__":
    main()
