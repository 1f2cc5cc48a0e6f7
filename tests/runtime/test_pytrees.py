"""Dataclasses that are pytrees are told apart by their class, whatever their fields."""

import ast
import importlib
import pkgutil
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import diffusion_jax
from diffusion_jax.runtime import pytrees

ROOT = Path(__file__).parents[2]


def made_by(name):
    """The classes of the library that a decorator of `pytrees` made, or another's."""
    found = []
    for module in pkgutil.walk_packages(diffusion_jax.__path__, "diffusion_jax."):
        path = ROOT / Path(*module.name.split(".")).with_suffix(".py")
        if not path.is_file() or name not in path.read_text():
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and name in map(ast.unparse, node.decorator_list):
                found.append(getattr(importlib.import_module(module.name), node.name))
    return found


def example(kind):
    """An instance whose fields are all numbers, made without its own checks."""
    value = object.__new__(kind)
    for field in kind.__dataclass_fields__:
        object.__setattr__(value, field, 0.0)
    return value


def test_no_two_classes_of_the_library_have_one_structure():
    kinds = made_by("pytrees.dataclass")
    assert len(kinds) > 15
    for one, other in combinations(kinds, 2):
        assert jax.tree.structure(example(one)) != jax.tree.structure(example(other)), (one, other)


def test_the_library_has_no_others():
    assert made_by("struct.dataclass") == []
    for path in (ROOT / "diffusion_jax").rglob("*.py"):
        if path.name != "pytrees.py":
            assert "register_dataclass" not in path.read_text(), path


def programs_run_wrong(decorate, count=300):
    """How often jit takes one class of many for another: by the shape that each would give."""

    def make(tag):
        return decorate(type(f"Kind{tag}", (), {"__annotations__": {"x": float}, "tag": tag}))

    function = jax.jit(lambda value: jnp.broadcast_to(value.x, (value.tag,)))
    shapes = ((function.eval_shape(kind(0.0)).shape, kind.tag) for kind in map(make, range(count)))
    return sum(shape != (tag,) for shape, tag in shapes)


def test_compiled_functions_keep_many_classes_apart():
    assert programs_run_wrong(pytrees.dataclass) == 0


@pytrees.dataclass
class Ours:
    first: float
    rest: tuple
    kind: str = struct.field(pytree_node=False, default="a")


@struct.dataclass
class Flax:
    first: float
    rest: tuple
    kind: str = struct.field(pytree_node=False, default="a")


def test_it_is_otherwise_what_flax_makes():
    paths = [
        [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(each)]
        for each in (Ours(1.0, (2.0, 3.0)), Flax(1.0, (2.0, 3.0)))
    ]
    assert paths[0] == paths[1]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, Ours(1.0, (2.0, 3.0), "b"))
    assert doubled == Ours(2.0, (4.0, 6.0), "b")
    assert doubled.replace(first=5.0) == Ours(5.0, (4.0, 6.0), "b")
    assert jax.tree.structure(Ours(1.0, (), "a")) != jax.tree.structure(Ours(1.0, (), "b"))
    with pytest.raises(AttributeError):
        doubled.first = 1.0
    gradient = jax.grad(lambda value: value.first**2)(Ours(jnp.float32(3), ()))
    np.testing.assert_allclose(gradient.first, 6)
