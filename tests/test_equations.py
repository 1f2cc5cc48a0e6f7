"""The tables of equations name what there is, and leave out nothing that states a formula."""

import inspect
import pkgutil
import re

import pytest

import diffusion_jax as dj
from experiments.tools.architecture import ROOT, modules

DEVELOPERS = ROOT / "docs" / "developers"
EQUATIONS = DEVELOPERS / "equations.md"
# Rooms whose public functions and classes belong into the tables where they state a formula.
ROOMS = ("process", "schedule", "denoisers", "sampling", "regimes", "judging", "training")
FORMULA = re.compile(r"[\w)}\]'^] (?:=|<-|~) [\w(\[{|-]")
# Those whose sentence only looks like one, or gives a name to a number.
WORDS = {"low_rank.level", "uturns.Distances", "analysis.Spectrum"}


def rows():
    """Formula, names and source of each line of the tables."""
    lines = [line for line in EQUATIONS.read_text().splitlines() if line.startswith("|")]
    cells = [line.strip("|").split(" | ") for line in lines]
    return [each for each in cells if "---" not in each[0] and each[0].strip() != "formula"]


def names(text):
    return re.findall(r"`([a-z_]+(?:\.\w+)+)`", text)


def test_every_line_has_a_formula_names_and_a_source():
    for row in rows():
        assert len(row) == 3, row
        assert names(row[1]), row
        assert "|" not in row[0], row


def listed():
    return {name for row in rows() for name in names(row[1])}


def test_every_name_is_there():
    for name in sorted(listed()):
        pkgutil.resolve_name(f"diffusion_jax.{name}")  # raises an error that names it


def stated(thing):
    """Whether a docstring states a formula before it comes to its arguments."""
    text = inspect.getdoc(thing) or ""
    return FORMULA.search(re.split(r"\n(?:Args|Returns|Raises|Yields|Attributes):", text)[0])


def own(module):
    """The public functions and classes that a module defines."""
    for name, thing in vars(module).items():
        kind = inspect.isfunction(thing) or inspect.isclass(thing)
        if kind and not name.startswith("_") and thing.__module__ == module.__name__:
            yield name, thing


def in_the_tables():
    """The objects that are named, and the classes of the methods that are."""
    found = []
    for name in listed():
        thing = pkgutil.resolve_name(f"diffusion_jax.{name}")
        parent = pkgutil.resolve_name(f"diffusion_jax.{name.rpartition('.')[0]}")
        found += [thing, *([parent] if inspect.isclass(parent) else [])]
    return found


def test_no_function_with_a_formula_is_left_out():
    known = in_the_tables()
    missing = []
    for path in modules():
        package, _, rest = path.partition(".")
        if package == "diffusion_jax" and rest.partition(".")[0] in ROOMS:
            module = pkgutil.resolve_name(path)
            missing += [
                f"{path}.{name}"
                for name, thing in own(module)
                if stated(thing) and not any(thing is each for each in known)
            ]
    assert {".".join(name.split(".")[-2:]) for name in missing} == WORDS


def test_no_formula_of_the_front_door_is_left_out():
    known = in_the_tables()
    things = [(name, getattr(dj, name)) for name in dj.__all__ if name[0] != "_"]
    stating = [(name, each) for name, each in things if not isinstance(each, dict) and stated(each)]
    assert len(stating) > 10
    assert not [name for name, each in stating if not any(each is other for other in known)]


@pytest.mark.parametrize("page", sorted(DEVELOPERS.glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_the_pages_name_is_there(page):
    text = page.read_text()
    for name in re.findall(
        r"`((?:tests|experiments|diffusion_jax|torch_ref|docs|\.ci)/[^` ]*)`", text
    ):
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / path).read_text(), name
    for module in re.findall(r"python -m (experiments(?:\.\w+)*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), module
