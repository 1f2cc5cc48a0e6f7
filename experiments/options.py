"""How every command line is read. JAX is not imported."""

import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import tyro

from diffusion_jax.runtime.files import expanded

T = TypeVar("T")

# What options were called in the version before.
RENAMED = {"--memory": "--memory-gib", "--batch": "--batch-size"}


def parse(
    options: type[T],
    command: str,
    description: str | None = None,
    words: Sequence[str] | None = None,
    default: T | None = None,
    refine: Callable[[T], T] | None = None,
) -> T:
    """Reads a command line, as all commands do.

    An option is a field of a dataclass, explained by the string after it, without the names of
    those that it lies in. Booleans are flags, --name and --no-name. ~ is expanded in every path.

    Args:
      options: the dataclass; or a union of several, the subcommands.
      command: its module in `experiments`.
      description: what --help begins with; by default the dataclass's docstring.
      words: the command line; by default the process's own.
      default: what the fields are by default; by default as the dataclass says.
      refine: makes the default of a second reading from the outcome of a first one.

    Raises:
      UserError: a path begins with a ~NAME that is nobody's.
    """
    words = renamed(sys.argv[1:] if words is None else words)
    words = modern_flags(words, _flags(options))

    def read(words: Sequence[str], default: T | None, **keywords: Any) -> T:
        keywords |= {} if default is None else {"default": default}
        keywords |= {"prog": program(command), "description": description}
        return _expanded(
            tyro.cli(options, args=words, config=(tyro.conf.OmitArgPrefixes,), **keywords)
        )

    if refine is not None:
        with suppress(SystemExit):  # the second reading says what is wrong
            plain = [word for word in words if word not in ("-h", "--help")]
            default = refine(read(plain, default, console_outputs=False))
    return read(words, default)


def renamed(words: Sequence[str]) -> list[str]:
    """The words with the names that options have now, each of which is said on stderr."""
    modern: list[str] = []
    for word in words:
        name, separator, value = word.partition("=")
        if name in RENAMED:
            _note(name, RENAMED[name])
        modern.append(RENAMED.get(name, name) + separator + value)
    return modern


def _note(earlier: str, now: str) -> None:
    text = f"note: {earlier} is written {now} now; the earlier form goes with the next version"
    print(text, file=sys.stderr)


def modern_flags(words: Sequence[str], flags: set[str]) -> list[str]:
    """The words with --name or --no-name in place of the earlier --name True or --name False.

    Each is said on stderr.

    Args:
      words: a command line.
      flags: names of the fields that are flags.
    """
    modern: list[str] = []
    for word in words:
        name, separator, value = word.partition("=")
        if not separator and modern:
            name, value = modern[-1], word
        plain = name.removeprefix("--").replace("-", "_")
        if not (name.startswith("--") and plain in flags and value in ("True", "False")):
            modern.append(word)
            continue
        if not separator:
            modern.pop()
        modern.append(name if value == "True" else f"--no-{name.removeprefix('--')}")
        _note(f"{name} {value}", modern[-1])
    return modern


def _flags(kind: Any) -> set[str]:
    """Names of the booleans among the fields of a dataclass, of those in it, or of a union's."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return set().union(*map(_flags, typing.get_args(kind)))
    hints = typing.get_type_hints(kind)
    return {name for name, hint in hints.items() if hint is bool}.union(
        *map(_flags, hints.values())
    )


def _expanded(value: Any) -> Any:
    """A dataclass, or what it holds, with ~ expanded in every path."""
    if isinstance(value, Path):
        return expanded(value)
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(
            value, **{name: _expanded(each) for name, each in fields.items()}
        )
    return value


def program(module: str) -> str:
    """How the running command was called, for its help."""
    called = sys.argv[0]
    return called if called.startswith("diffusion-jax ") else f"python -m experiments.{module}"
