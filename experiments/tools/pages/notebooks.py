"""Notebooks as pages: their text, their code and what it gave."""

from pathlib import Path

from nbconvert import MarkdownExporter


def write(notebook: Path) -> None:
    """Puts in the place of an executed notebook its Markdown, with its figures beside it."""
    text, resources = MarkdownExporter().from_filename(str(notebook))
    for name, content in resources["outputs"].items():
        (notebook.parent / f"{notebook.stem}_{name}").write_bytes(content)
        text = text.replace(f"]({name})", f"]({notebook.stem}_{name})")
    notebook.with_suffix(".md").write_text(text)
    notebook.unlink()
