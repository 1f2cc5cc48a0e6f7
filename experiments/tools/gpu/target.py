"""A GPU to compile for, which need not be there: its specification, its devices, its cuDNN."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from jax.experimental import topologies
from jax.sharding import Mesh

from diffusion_jax.errors import UserError
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


def gpu_mesh(target: Target, devices: int) -> Mesh:
    """So many GPUs that need not be there, to compile for.

    Raises:
      UserError: the compiler for GPUs is not installed, or refuses the target.
    """
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{devices}", target_config=target.text
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"no compiler for GPUs ({reason}); install it with EXTRAS=gpu-report ./launch.sh ... "
            f"or pip install 'diffusion-jax[gpu-report]'"
        ) from error
    return Mesh(topology.devices, (AXIS,))


@contextmanager
def cudnn_answers(version: int) -> Iterator[None]:
    """Answers JAX's question for the version of a cuDNN that need not be installed."""
    from jax._src.cudnn import fused_attention_stablehlo

    with mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", return_value=version):
        yield
