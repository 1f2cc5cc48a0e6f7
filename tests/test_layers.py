"""The order of the rooms: imports run downwards, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up. Rooms of one line may not import each other; CONTRIBUTING.md draws them.
LAYERS = (
    "errors",
    "runtime",
    "schedule",
    "schedules",
    "process nn symmetry covariance",
    "denoisers config",
    "data",
    "presets",
    "sampling",
    "judging",
    "regimes",
    "plots",
    "training",
    "study forking",
    "comparing memorising explorer",
    "serving",
    "diffusion_jax",  # the front door, which opens all of them
    "torch_ref",
    "experiments",
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms.split()}


def modules():
    """All modules of the project by name."""
    found = {}
    for package in ("diffusion_jax", "torch_ref", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path):
    """What a file imports, wherever in it: modules, and what may be a module of a package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


GRAPH = {name: set(imports(path)) for name, path in MODULES.items()}


def room(module):
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "diffusion_jax" and rest else package


def test_every_file_lies_in_a_room_that_has_a_place():
    assert {room(name) for name in MODULES} == set(LEVEL)


def test_imports_run_downwards():
    upwards = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others & set(MODULES)
        if room(name) != room(other) and LEVEL[room(other)] >= LEVEL[room(name)]
    ]
    assert not upwards


def test_no_imports_run_in_a_circle():
    known = {name: others & set(MODULES) for name, others in GRAPH.items()}
    TopologicalSorter(known).prepare()  # raises a CycleError that names the circle


def test_the_library_knows_neither_torch_nor_the_commands():
    foreign = {
        name: wrong
        for name, others in GRAPH.items()
        if name.startswith("diffusion_jax")
        if (wrong := {other for other in others if other.partition(".")[0] in FOREIGN})
    }
    assert not foreign


FOREIGN = ("torch", "torch_ref", "experiments", "safetensors")


def test_files_and_functions_are_short():
    """At most 400 lines a file, and 60 a function without its docstring."""
    long = []
    for name, path in MODULES.items():
        source = path.read_text()
        if (lines := source.count("\n")) > 400:
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node, clean=False) is not None:
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > 60:
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert not long
