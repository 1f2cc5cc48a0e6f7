"""What all command lines share: how they are read, and how they end when something goes wrong."""

import dataclasses
import errno
import functools
import inspect
import logging
import os
import sys
import sysconfig
import traceback
import typing
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import absl.logging
import jax
import tyro

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend, distributed, gpu, preemption

T = TypeVar("T")

# Where faults are the program's, or the environment's: not a user's files.
_OURS = (
    *(Path(__file__).parents[1] / name for name in ("diffusion_jax", "experiments", "torch_ref")),
    *map(Path, {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")}),
)
# What a full, failing or limited disk and a closed pipe are called, whichever file it was.
_SYSTEMS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)
# Set, to 1 say, it shows the traceback of every error.
TRACEBACK = "DIFFUSION_JAX_TRACEBACK"
# Whose objects complain as they are collected after a failed reading or writing.
_LEFT_BEHIND = {"asyncio", "orbax", "tensorstore"}


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
    """
    words = modern_flags(sys.argv[1:] if words is None else words, _flags(options))

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
        print(
            f"note: {name} {value} is written {modern[-1]} now; the earlier form goes with the "
            f"next version",
            file=sys.stderr,
        )
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
        return Path(os.path.expanduser(value))  # ~nobody stays as it is
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(
            value, **{name: _expanded(each) for name, each in fields.items()}
        )
    return value


def reports_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Makes a UserError, or the system's word on a user's file, one sentence with exit status 1.

    Other errors are faults of the program and show their traceback; with the environment's
    DIFFUSION_JAX_TRACEBACK=1 every error does.

    A run that a signal stopped, and that is saved, ends with status 75; Ctrl-C elsewhere with 130.
    Of several processes, the others hear why this one ends.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        # TFDS and Orbax log with a traceback what they raise as well, and where an array cannot be
        # read or written Orbax leaves those of the others behind, which complain as they are
        # collected.
        absl.logging.set_verbosity(absl.logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        sys.unraisablehook = _complain
        try:
            main()
            distributed.finish()
        except preemption.Stopped as stopped:
            distributed.finish()
            print(stopped)
            sys.exit(preemption.EXIT_STATUS)
        except KeyboardInterrupt as interrupt:
            print("interrupted; a training goes on from its last checkpoint", file=sys.stderr)
            distributed.leave(interrupt, 130)
            sys.exit(130)
        except Exception as error:
            sentence = _sentence(error)
            sys.stdout.flush()
            if sentence is None:
                distributed.blame(error)
            if sentence is None or os.environ.get(TRACEBACK):
                traceback.print_exc()
            if sentence is not None:
                print(f"error: {sentence}", file=sys.stderr)
            distributed.leave(error, 1)
            sys.exit(1)

    return wrapped


def _sentence(error: Exception) -> str | None:
    """What a user can put right, in a sentence; None for a fault of the program."""
    if isinstance(error, UserError) or (isinstance(error, OSError) and _is_users(error)):
        return str(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"the device has no memory for it ({str(error).splitlines()[0][:200]}): {gpu.MEMORY}; "
            f"less is needed by a smaller --batch-size, and in training by --accumulation N or "
            f"--remat"
        )
    missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in ("torch", "safetensors"):
        return (
            f"this needs {missing}, of the extra torch: pip install 'diffusion-jax[torch]', or "
            f"EXTRAS=torch ./launch.sh ... in a checkout"
        )
    return None


def _is_users(error: OSError) -> bool:
    """Whether it is about a user's file, or the room for it, and not about the program's own."""
    if error.errno in _SYSTEMS:
        return True
    name = error.filename
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    path = Path(os.path.abspath(os.fsdecode(name)))
    return not any(path.is_relative_to(place) for place in _OURS)


def _complain(unraisable: Any) -> None:
    """Reports what is raised where nobody catches it, but for what Orbax leaves behind."""
    culprit, trace = unraisable.object, unraisable.exc_traceback
    # A call of tensorstore's threads to a loop that is closed has no other frame than asyncio's.
    called = trace.tb_frame.f_globals.get("__name__") if trace is not None else None
    made = getattr(culprit, "__module__", None) or type(culprit).__module__
    packages = {str(module).partition(".")[0] for module in (called, made)}
    if not (inspect.iscoroutine(culprit) or packages & _LEFT_BEHIND):
        sys.__unraisablehook__(unraisable)


def program(module: str) -> str:
    """How the running command was called, for its help."""
    called = sys.argv[0]
    return called if called.startswith("diffusion-jax ") else f"python -m experiments.{module}"


def start() -> None:
    """What comes before the first JAX computation: XLA's settings, other processes, devices."""
    backend.configure()
    backend.keep_freed_memory()
    distributed.join()
    gpu.start_devices()


def exit_if_broken(broken: list[str]) -> None:
    """Names the bounds that a measurement broke, if any, and exits with status 1."""
    if broken:
        print("\n".join(["Bounds broken:", *broken]), file=sys.stderr)
        sys.exit(1)
