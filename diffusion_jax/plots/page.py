"""One self-contained HTML page from text, tables and figures."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Self

from matplotlib.figure import Figure

from diffusion_jax.plots import style
from diffusion_jax.runtime.files import write_bytes
from diffusion_jax.runtime.text import shown

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; }
.warning { border-left: .3rem solid #c60; padding-left: .8rem; }
"""


def _text(text: str) -> str:
    """A text as HTML shows it: nothing in it is markup, and all of it is legible."""
    return escape(shown(text))


@dataclass(frozen=True)
class Table:
    """A table: its header and its rows of cells, as text."""

    header: Sequence[str]
    rows: Iterable[Sequence[str]]

    def html(self) -> str:
        """The table as HTML."""
        head = "".join(f"<th>{_text(cell)}</th>" for cell in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Picture:
    """A figure: its file's name, its PNG, which the page will contain, and its caption."""

    name: str
    png: bytes
    caption: str

    @classmethod
    def of(cls, name: str, figure: Figure, caption: str) -> Self:
        """A figure, drawn."""
        return cls(name, style.png(figure), caption)

    def save(self, folder: Path) -> None:
        """Writes the PNG under its name."""
        write_bytes(folder / self.name, self.png)

    def html(self) -> str:
        """The figure as HTML."""
        data = base64.b64encode(self.png).decode()
        caption = _text(self.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Paragraph:
    """Text; a warning stands out."""

    text: str
    warning: bool = False

    def html(self) -> str:
        """The paragraph as HTML."""
        mark = ' class="warning"' if self.warning else ""
        return f"<p{mark}>{_text(self.text)}</p>"


Part = Table | Picture | Paragraph


def save(path: Path, title: str, parts: Iterable[Part]) -> None:
    """Writes a page that needs no other file.

    Args:
      path: the HTML file.
      title: heading of the page.
      parts: what it shows, in order.

    Raises:
      UserError: it cannot be written.
    """
    body = "\n".join(part.html() for part in parts)
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>\n{body}\n</body></html>\n"
    )
    write_bytes(path, text.encode())
