"""What all commands share: how they are read and started, and end when something goes wrong."""

import errno
import functools
import inspect
import logging
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import absl.logging
import jax

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend, distributed, gpu, preemption
from diffusion_jax.runtime.output import outliving_its_reader
from diffusion_jax.runtime.text import shown
from experiments.options import parse as parse

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


def reports_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Makes a UserError, or the system's word on a user's file, one sentence with exit status 1.

    Other errors are faults of the program and show their traceback; with the environment's
    DIFFUSION_JAX_TRACEBACK=1 every error does.

    A run that a signal stopped, and that is saved, ends with status 75; Ctrl-C elsewhere with 130.
    Of several processes, the others hear why this one ends. What nobody reads any more is not said.
    """

    @functools.wraps(main)
    @outliving_its_reader()
    def wrapped() -> None:
        # Orbax logs with a traceback what it raises as well, and where an array cannot be
        # read or written Orbax leaves those of the others behind, which complain as they are
        # collected.
        absl.logging.set_verbosity(absl.logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        sys.unraisablehook = _complain
        if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
            # A name that the terminal's encoding lacks is no reason to end.
            reconfigure(errors="backslashreplace")
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
                print(f"error: {_legible(sentence)}", file=sys.stderr)
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


def _legible(text: str) -> str:
    """A text as a terminal may have it, with its own lines."""
    return "\n".join(map(shown, text.split("\n")))


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
    """Reports what is raised where nobody catches it, except for what Orbax leaves behind."""
    culprit, trace = unraisable.object, unraisable.exc_traceback
    # A call of tensorstore's threads to a loop that is closed has no other frame than asyncio's.
    called = trace.tb_frame.f_globals.get("__name__") if trace is not None else None
    made = getattr(culprit, "__module__", None) or type(culprit).__module__
    packages = {str(module).partition(".")[0] for module in (called, made)}
    if not (inspect.iscoroutine(culprit) or packages & _LEFT_BEHIND):
        sys.__unraisablehook__(unraisable)


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
