"""A GPU to compile for, which need not be there: its specification, its devices, its cuDNN."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from jax.experimental import topologies
from jax.sharding import Mesh

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.devices import AXIS

TARGETS = Path(__file__).parent / "targets"


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
      text: its specification, in the text format of OpenXLA's GpuTargetConfigProto.
      name: the maker's name.
      memory: its bytes.
      capability: CUDA compute capability.
      cudnn: version of cuDNN as that counts, 91002 for 9.10.2.
    """

    text: str
    name: str
    memory: int
    capability: float
    cudnn: int


def load_target(name: str) -> Target:
    """Reads a target specification by name or path.

    Raises:
      UserError: there is no such file, or it lacks a field.
    """
    known = sorted(path.stem for path in TARGETS.glob("*.txtpb"))
    path = TARGETS / f"{name}.txtpb" if name in known else Path(name)
    if not path.is_file():
        raise UserError(f"no target '{name}': give one of {', '.join(known)}, or a file")
    text = path.read_text()

    def field(pattern: str) -> tuple[str, ...]:
        found = re.search(pattern, text)
        if not found:
            raise UserError(f"{path} is no target specification: it has no {pattern.split()[0]}")
        return found.groups()

    major, minor = field(r"cuda_compute_capability *\{ *major: *(\d+) *(?:minor: *(\d+))?")
    dnn = field(r"dnn_version_info *\{ *major: *(\d+) *(?:minor: *(\d+))? *(?:patch: *(\d+))?")
    return Target(
        text=text,
        name=field(r'\bname *: *"(.*)"')[0],
        memory=int(field(r"device_memory_size *: *(\d+)")[0]),
        capability=float(f"{major}.{minor or 0}"),
        cudnn=sum(
            int(part or 0) * factor for part, factor in zip(dnn, (10_000, 100, 1), strict=True)
        ),
    )


def cuda_version() -> int:
    """The CUDA, 12 or 13, for which the compiler is installed.

    Raises:
      UserError: there is none, or there are two.
    """
    found = [
        version
        for version in (12, 13)
        if importlib.util.find_spec("jax_plugins")
        and importlib.util.find_spec(f"jax_plugins.xla_cuda{version}")
    ]
    if not found:
        raise UserError(
            "no compiler for GPUs; install it with EXTRAS=gpu-report ./launch.sh ... or pip "
            "install 'diffusion-jax[gpu-report]'"
        )
    if len(found) > 1:
        raise UserError(
            "the compilers of CUDA 12 and of CUDA 13 are both installed; make an environment with "
            "one of them: VENV=.venv-gpu EXTRAS=gpu-report ./launch.sh ..."
        )
    return found[0]


def gpu_mesh(target: Target, devices: int) -> Mesh:
    """So many GPUs that need not be there, to compile for.

    Raises:
      UserError: the compiler for GPUs is not installed, or refuses the target.
    """
    version = cuda_version()
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{devices}", target_config=target.text
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"the compiler of CUDA {version} can't be used for {target.name}: {reason}"
        ) from error
    return Mesh(topology.devices, (AXIS,))


@contextmanager
def as_if_on(target: Target) -> Iterator[None]:
    """Answers what JAX and the project ask a GPU for, as the target would."""
    from jax._src.cudnn import fused_attention_stablehlo

    def has_fused_attention() -> bool:
        return target.capability >= 8.0

    with (
        mock.patch.object(
            fused_attention_stablehlo, "check_cudnn_version", return_value=target.cudnn
        ),
        mock.patch.object(backend, "platform", return_value="gpu"),
        mock.patch.object(backend, "has_fused_attention", has_fused_attention),
    ):
        yield
