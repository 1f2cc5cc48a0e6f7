"""Frozen dataclasses that are pytrees, each of a structure of its own.

JAX takes two classes of `jax.tree_util.register_dataclass`, which `flax.struct.dataclass` uses, for
one structure where they have as many fields (seen in 0.10.2 and 0.12.0). Their hashes differ, so
that `jax.jit` keeps them apart nearly always; now and then it runs the program that was compiled
for the other class, of another sampler say. Classes that are registered by functions of their own
are told apart.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
from flax import struct

T = TypeVar("T")


def _replace(value: Any, **changes: Any) -> Any:
    """The same with other values of some fields."""
    return dataclasses.replace(value, **changes)


@dataclass_transform(frozen_default=True, field_specifiers=(struct.field,))
def dataclass(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree, as `flax.struct.dataclass` does.

    Its fields are its children, by the keys of their names; those of
    `flax.struct.field(pytree_node=False)` are part of its structure, and so is the class.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    made.replace = _replace
    fields = dataclasses.fields(made)
    data = [each.name for each in fields if each.metadata.get("pytree_node", True)]
    rest = [each.name for each in fields if each.name not in data]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def children(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        found = tuple(getattr(value, name) for name in data)
        return found, tuple(getattr(value, name) for name in rest)

    def with_keys(value: Any) -> tuple[Any, tuple[Any, ...]]:
        found, static = children(value)
        return tuple(zip(keys, found, strict=True)), static

    def restored(static: tuple[Any, ...], found: Any) -> Any:
        return made(**dict(zip(data, found, strict=True)), **dict(zip(rest, static, strict=True)))

    jax.tree_util.register_pytree_with_keys(made, with_keys, restored, children)
    return made
