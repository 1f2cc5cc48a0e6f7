"""What keeps an NVIDIA GPU from being used, in a sentence that says what to do."""

import importlib.metadata
import logging
import os
import re
import sys
from pathlib import Path

import jax

from diffusion_jax.errors import UserError

FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
MEMORY = (
    "another process may hold it (nvidia-smi names it); XLA_PYTHON_CLIENT_MEM_FRACTION says which "
    "part of a GPU's memory JAX takes at its start, 0.75 by default"
)
# What CUDA, JAX and XLA report, and what it means; the first that is found is said.
_MEANINGS = (
    (
        r"driver version is insufficient|driver is too old|DRIVER_MISMATCH|InsufficientDriver|"
        r"UNSUPPORTED_PTX_VERSION|forward compatibility was attempted",
        "the GPU's driver is too old for the CUDA libraries that are installed: CUDA 13 needs "
        "driver 580 or newer, CUDA 12 needs 525 (nvidia-smi shows yours); update the driver, or "
        "install the extra cuda12 in an environment of its own",
    ),
    (
        r"out of memory|OUT_OF_MEMORY|RESOURCE_EXHAUSTED|no supported devices found|"
        r"[Ff]ailed to allocate",
        f"the GPU has no free memory to start with: {MEMORY}",
    ),
    (
        r"was built against|Outdated|version mismatch|Unable to use CUDA|incompatible|"
        r"Unable to load (CUDA|cuDNN|cuBLAS)",
        "the CUDA libraries that are installed are not those that JAX was built for, as where the "
        "extras cuda12 and torch, or cuda12 and cuda13, share an environment: give each its own "
        "(VENV=.venv-gpu EXTRAS=cuda13 ./launch.sh ...)",
    ),
)


def start_devices() -> None:
    """Makes JAX's devices, so that a GPU that cannot be used is known before the work begins.

    A user who set JAX_PLATFORMS to another platform is not asked; where there is a GPU, but JAX
    was installed without CUDA, it is said on stderr and the CPU computes.

    Raises:
      UserError: there is a GPU, and what to do so that it can be used.
    """
    wanted = os.environ.get("JAX_PLATFORMS", "")
    there = any(Path(file).exists() for file in FILES)
    if not there or (wanted and not re.search("cuda|gpu", wanted)):
        return
    _check_libraries()
    heard = _Listener()
    logger = logging.getLogger("jax._src.xla_bridge")
    propagate, logger.propagate = logger.propagate, False  # a traceback of pages
    logger.addHandler(heard)
    failure = ""
    try:
        jax.devices()
    except RuntimeError as error:
        failure = str(error)
    finally:
        logger.removeHandler(heard)
        logger.propagate = propagate
    if failure or jax.default_backend() == "cpu":
        _explain("\n".join([failure, *heard.texts]).strip())


def meaning(text: str) -> str | None:
    """What a report of CUDA, JAX or XLA means for a user; None for what is not known."""
    return next((said for pattern, said in _MEANINGS if re.search(pattern, text)), None)


def _check_libraries() -> None:
    both = [f"nvidia-cudnn-cu{version}" for version in (12, 13)]
    found = {str(each.metadata["Name"]).lower() for each in importlib.metadata.distributions()}
    if found.issuperset(both):
        raise UserError(
            f"this environment holds the libraries of CUDA 12 and of CUDA 13 in the same folders "
            f"({' and '.join(both)}; torch brings the second): give the extras cuda12 and torch "
            f"environments of their own, or install cuda13 in place of cuda12 in a new one"
        )


def _explain(text: str) -> None:
    if not text or "CUDA-enabled jaxlib is not installed" in text:
        print(
            "note: there is an NVIDIA GPU, but JAX is installed without CUDA, so the CPU computes: "
            "EXTRAS=cuda13 ./launch.sh ..., or pip install 'diffusion-jax[cuda13]'",
            file=sys.stderr,
        )
        return
    first = next((line for line in text.splitlines() if line.strip()), "")
    said = meaning(text) or "there is an NVIDIA GPU, and JAX cannot use it"
    raise UserError(f"{said} (reported: {first[:200]}); JAX_PLATFORMS=cpu computes without it")


class _Listener(logging.Handler):
    """Keeps what is logged, with the errors that it is about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.texts.append(str(record.exc_info[1]))
        self.texts.append(str(record.msg) if record.exc_info else record.getMessage())
