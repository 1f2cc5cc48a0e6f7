"""Notebooks as pages: their text, their code and what it gave."""

from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter


def write(path: Path) -> None:
    """Puts in the place of an executed notebook its Markdown, with its figures beside it."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    for name, content in resources["outputs"].items():
        (path.parent / f"{path.stem}_{name}").write_bytes(content)
        text = text.replace(f"]({name})", f"]({path.stem}_{name})")
    path.with_suffix(".md").write_text(text)
    path.unlink()
