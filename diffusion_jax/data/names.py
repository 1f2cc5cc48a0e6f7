"""What a data set is called where its name is part of a folder's, or of an address."""

import os
import re
from pathlib import Path

from diffusion_jax.runtime.files import expanded
from diffusion_jax.runtime.text import shown

FILES = (".npy", ".npz", ".csv", ".jsonl", ".parquet")


def name_of(data: str) -> str:
    """The name of a data set, or of the folder or file of a user's own.

    Only the ending of a file that holds data is cut: `set_v1.0` keeps its dots. The name of `.` is
    that of the current folder. What is not printable is escaped.

    Raises:
      UserError: a ~NAME that is nobody's.
    """
    path = Path(os.path.abspath(expanded(data)))
    is_file = path.suffix.lower() in FILES and not path.is_dir()
    return shown(path.stem if is_file else path.name) or "data"


def slug(name: str) -> str:
    """A name in lower-case letters, digits and hyphens, at most 40 of them."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "data"
