"""What all command lines share: how they end when something goes wrong."""

import functools
import logging
import sys
import traceback
import warnings
from collections.abc import Callable

import absl.logging
import jax

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend, distributed, gpu, preemption


def reports_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Makes a UserError, or the system's own error, one sentence with exit status 1.

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
        sys.unraisablehook = lambda unraisable: None
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
                traceback.print_exc()
            else:
                print(f"error: {sentence}", file=sys.stderr)
            distributed.leave(error, 1)
            sys.exit(1)

    return wrapped


def _sentence(error: Exception) -> str | None:
    """What a user can put right, in a sentence; None for a fault of the program."""
    if isinstance(error, UserError | OSError):
        return str(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return (
            f"the device has no memory for it ({str(error).splitlines()[0][:200]}): {gpu.MEMORY}; "
            f"less is needed by a smaller --batch-size, and in training by --accumulation N or "
            f"--remat True"
        )
    missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in ("torch", "safetensors"):
        return (
            f"this needs {missing}, of the extra torch: pip install 'diffusion-jax[torch]', or "
            f"EXTRAS=torch ./launch.sh ... in a checkout"
        )
    return None


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
