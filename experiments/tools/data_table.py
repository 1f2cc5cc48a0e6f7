"""Writes the tables of docs/data.md from data.SOURCES: python -m experiments.tools.data_table."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diffusion_jax.data import SOURCES
from diffusion_jax.data.source import Source
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS
from diffusion_jax.runtime.files import write_bytes
from experiments.command import parse, reports_errors


@dataclass(frozen=True)
class Options:
    """Writes the tables of docs/data.md; there is nothing to choose."""


PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def _table(header: str, rows: Iterable[str]) -> str:
    return "\n".join([header, "| --- " * header.count(" | ") + "| --- |", *rows])


def _names(classes: tuple[str, ...] | str) -> str:
    return classes if isinstance(classes, str) else ", ".join(f"`{name}`" for name in classes)


def _files(name: str, source: Source) -> str:
    """A row of where a data set comes from."""
    fetched = f"; `experiments.fetch {name}` brings them" if source.fetched is not None else ""
    return f"| `{name}` | {_names(source.classes)} | {source.files} | {source.origin}{fetched} |"


def _used(name: str, source: Source) -> str:
    """A row of what a data set's name means."""
    presets = ", ".join(f"`{key}`" for key, each in PRESETS.items() if each.data.data == name)
    _, count, size = source.defaults
    images = f"{len(source.defaults.classes)} x {count:,}".replace(",", " ")
    cells = (
        presets,
        _names(source.defaults.classes),
        images,
        f"{size} x {size}",
        source.preprocessing,
    )
    return f"| `{name}` | {' | '.join(cells)} | {source.in_paper} |"


def tables() -> dict[str, str]:
    """The tables of docs/data.md, by the names of their marks."""
    sources = SOURCES.items()
    return {
        "files": _table(
            "| `--data` | classes | files wanted in `data/NAME` | from |",
            [
                *(_files(name, source) for name, source in sources),
                "| a path | yours | a folder of images (one subfolder per class), a table of them "
                "(`.csv`, `.jsonl`), Parquet files, an `.npy`, or an `.npz` | |",
            ],
        ),
        "use": _table(
            "| `--data` | presets | classes by default | images | pixels | pre-processing "
            "| in the paper's Table 1 |",
            [
                *(_used(name, source) for name, source in sources),
                "| a path | | all | all | their own | none; `--image-size` cuts the central square "
                "of a folder's images and resizes it | |",
            ],
        ),
    }


def updated(page: str) -> str:
    """A page with the tables between its marks, `<!-- NAME: made by ... -->` and `<!-- end -->`.

    Raises:
      UserError: a mark is missing.
    """
    for name, table in tables().items():
        mark = rf"(<!-- {name}: [^>]*-->\n).*?(?=<!-- end -->)"
        text = table.replace("\\", r"\\")
        page, found = re.subn(mark, rf"\g<1>{text}\n", page, flags=re.DOTALL)
        if found != 1:
            raise UserError(f"docs/data.md should have one mark <!-- {name}: ... -->, not {found}")
    return page


@reports_errors
def main() -> None:
    """Writes the page anew."""
    parse(Options, "tools.data_table", __doc__)
    write_bytes(PAGE, updated(PAGE.read_text()).encode())
    print(f"Wrote the tables of {PAGE}")


if __name__ == "__main__":
    sys.exit(main())
