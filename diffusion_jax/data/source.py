"""What a data set is: how its images are read, and all that is said of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.selection import Selection
from diffusion_jax.data.storage import Store

# Of the folder of its files, pixels a side, which images, and where they go if they are larger
# than the limit of memory.
Load = Callable[[Path, int, Selection, Store], ImageSet]
# Of an archive, and of what it is called where it belongs: the folder that it was unpacked to.
Unpack = Callable[[Path, Path], Path]


class Defaults(NamedTuple):
    """What the name of a data set means without further options.

    Attributes:
      classes: names of classes.
      images_per_class: how many of each, the first ones.
      image_size: pixels per side.
    """

    classes: tuple[str, ...]
    images_per_class: int
    image_size: int


@dataclass(frozen=True)
class Fetched:
    """Which published files a set is made of; `fetching.fetch` brings them.

    Attributes:
      listed: the list of their addresses, sizes and digests, see `fetching.published`.
      names: the files that these classes need.
      held: where a folder already holds, whole and in whatever layout, what is in such a file; None
        where it does not.
      unpack: puts what is in such a file into a folder beside it; None for files that are read as
        they are.
    """

    listed: str
    names: Callable[[tuple[str, ...]], list[str]]
    held: Callable[[Path, str], Path | None]
    unpack: Unpack | None = None


@dataclass(frozen=True)
class Source:
    """A data set, whose name is its key in `data.SOURCES`.

    Help, checks, messages and the tables of docs/data.md are made from it. Texts are Markdown.

    Attributes:
      about: what its images are, in a line.
      load: reads uint8 images of the classes and ranks selected, class after class, and raises a
        `UserError` where files are missing, damaged or fewer than asked for. It is given at least
        one class and a number of images of each.
      defaults: what its name means without further options.
      classes: the names of all its classes, in which those asked for must be; or a text in words,
        where `load` refuses others.
      preprocessing: what is done to its images.
      files: the files wanted in its folder; none by default.
      origin: where they come from.
      sizes: pixels per side that it has; by default any that `load` takes.
      has_folder: whether it reads or writes files in a folder, which --data-dir names.
      in_paper: its n and Lambda in Table 1 of the paper.
      fetched: its published files, where anybody may fetch them.
      steps: otherwise what to do by hand, one line each, with {folder} for the data folder.
    """

    about: str
    load: Load
    defaults: Defaults
    classes: tuple[str, ...] | str
    preprocessing: str = "none"
    files: str = "none"
    origin: str = ""
    sizes: tuple[int, ...] = ()
    has_folder: bool = True
    in_paper: str = ""
    fetched: Fetched | None = None
    steps: tuple[str, ...] = ()
