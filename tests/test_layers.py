"""The order of the rooms: imports run downwards, and never in a circle."""

import ast
from graphlib import TopologicalSorter

import pytest

from experiments.tools.architecture import LEVEL, PICTURE, drawing, graph, modules, room

MODULES = modules()


@pytest.fixture(scope="module")
def imports():
    return graph(MODULES)


def test_every_file_lies_in_a_room_that_has_a_place():
    assert {room(name) for name in MODULES} == set(LEVEL)


def test_imports_run_downwards(imports):
    upwards = [
        f"{name} imports {other}"
        for name, others in imports.items()
        for other in others & set(MODULES)
        if room(name) != room(other) and LEVEL[room(other)] >= LEVEL[room(name)]
    ]
    assert not upwards


def test_no_imports_run_in_a_circle(imports):
    known = {name: others & set(MODULES) for name, others in imports.items()}
    TopologicalSorter(known).prepare()  # raises a CycleError that names the circle


def test_the_drawing_is_that_of_the_imports():
    """To draw it anew: python -m experiments.tools.architecture."""
    assert PICTURE.read_text() == drawing()


def test_the_library_knows_neither_torch_nor_the_commands(imports):
    foreign = {
        name: wrong
        for name, others in imports.items()
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
