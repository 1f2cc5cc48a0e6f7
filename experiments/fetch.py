"""Brings the published files of a data set: python -m experiments.fetch mnist_full.

Where a set's owner asks for a registration, it says what to do instead.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from diffusion_jax.data import SOURCES
from diffusion_jax.data.source import Source
from diffusion_jax.errors import UserError
from experiments.command import parse, reports_errors


@dataclass(frozen=True)
class Options:
    """What to fetch, and where to."""

    name: Annotated[str, tyro.conf.Positional]
    """A data set's name, as --data takes it."""
    data_dir: Path | None = None
    """Folder for its files; data/NAME by default, which is where they are looked for."""
    classes: tuple[str, ...] = ()
    """LSUN's categories, which are a file each; those of the paper by default."""
    mirror: str | None = None
    """Address to fetch from in place of the publisher's: the names of the files are added to it."""


def _fetch(options: Options, source: Source) -> None:
    from diffusion_jax.data import fetching  # requests: not for those who only read

    folder = options.data_dir or Path("data") / options.name
    classes = options.classes or source.defaults.classes
    if isinstance(source.classes, tuple) and (unknown := {*classes} - {*source.classes}):
        raise UserError(
            f"{options.name} has no class {', '.join(sorted(unknown))}; its classes are "
            f"{', '.join(source.classes)}"
        )
    if source.fetched is not None:
        fetching.fetch(source.fetched, folder, classes, options.mirror)
    elif source.files.startswith("none"):
        print(f"{options.name} needs no file: {source.files.removeprefix('none: ')}")
    else:
        print(f"{options.name} is not fetched: do this by hand.")
        steps = source.steps or (f"Put {source.files} into {{folder}}. {source.origin}",)
        for number, step in enumerate(steps, 1):
            print(f"{number}. {step.format(folder=shlex.quote(str(folder)))}")


@reports_errors
def main() -> None:
    """Parses the command line and fetches."""
    options = parse(Options, "fetch", __doc__)
    if options.name not in SOURCES:
        raise UserError(f"there is no data set {options.name}: it is one of {', '.join(SOURCES)}")
    try:
        _fetch(options, SOURCES[options.name])
    except KeyboardInterrupt:
        print("interrupted; what came is kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
