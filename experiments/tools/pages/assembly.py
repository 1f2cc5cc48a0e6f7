"""The pages of the site, as Markdown in one folder.

docs/ as it is, README, CHANGELOG and CONTRIBUTING, the notebooks with what they gave, and the
reference; with links from where a file lies in the repository led to where its page lies.
"""

import pkgutil
import re
import shutil
from pathlib import Path
from posixpath import normpath, relpath

import yaml

from experiments.tools.pages import notebooks, reference

ROOT = Path(__file__).parents[3]
# Files outside docs/ that are pages, or lie beside them.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "developers/contributing.md",
    "CITATION.cff": "CITATION.cff",
}
# Not for readers: what notebooks are made from, and the shipped run's arrays.
_LEFT = shutil.ignore_patterns("*.py", "*.jsonl", "*.np[yz]", "checkpoints", ".*")
_CODE = re.compile(r"`((?:\w+\.)+\w+)`")
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def assemble(build: Path) -> Path:
    """Writes all pages, and the files that they show, into build/pages; and the site's settings.

    Returns:
      The file of settings, which is docs/site.yml with the reference in its menu.
    """
    folder = build / "pages"
    shutil.copytree(ROOT / "docs", folder, ignore=_LEFT)
    for notebook in sorted(folder.rglob("*.ipynb")):
        notebooks.write(notebook)
    for name, page in PAGES.items():
        (folder / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / page)
    for page, text in reference.pages().items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text)
    equations = folder / "developers" / "equations.md"
    equations.write_text(_CODE.sub(_linked, equations.read_text()))
    sources = {page: name for name, page in PAGES.items()}
    for path in sorted(folder.rglob("*.md")):
        page = path.relative_to(folder).as_posix()
        path.write_text(_led(path.read_text(), sources.get(page, f"docs/{page}"), page))
    settings = yaml.safe_load((ROOT / "docs" / "site.yml").read_text())
    menu = next(each["Reference"] for each in settings["nav"] if "Reference" in each)
    menu.extend(reference.menu())
    (build / "site.yml").write_text(yaml.safe_dump(settings))
    return build / "site.yml"


def _linked(found: re.Match[str]) -> str:
    """The name of a function in a table of equations, with a link to its entry."""
    try:
        each = pkgutil.resolve_name(f"diffusion_jax.{found[1]}")
    except (AttributeError, ImportError):
        return found[0]
    if not hasattr(each, "__qualname__"):
        return found[0]
    return f"[`{found[1]}`][{each.__module__}.{each.__qualname__}]"


def _led(text: str, source: str, page: str) -> str:
    """The text of a repository's file with the links of its page."""

    def lead(found: re.Match[str]) -> str:
        target = normpath(f"{Path(source).parent.as_posix()}/{found[1]}")
        there = PAGES.get(target) or reference.page_of(target) or _shown(target)
        if there is None:
            return found[0]
        return relpath(there, Path(page).parent.as_posix()) + (found[2] or "")

    return _LINK.sub(lead, text)


def _shown(target: str) -> str | None:
    """The place in the site of a file in docs/."""
    if not target.startswith("docs/"):
        return None
    path = Path(target.removeprefix("docs/"))
    return (path.with_suffix(".md") if path.suffix == ".ipynb" else path).as_posix()
