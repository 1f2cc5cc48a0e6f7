"""Compiles the train step for a GPU that need not be there: python -m experiments.tools.gpu_report.

Reads from the compiled program what it needs of a GPU's memory at every batch size, and whether it
is what it ought to be: library calls, layouts, precision of sums, collectives, donated memory. It
takes about a minute a program, and these wheels (the extra `gpu-report`, or a part of `cuda12`):
jax-cuda12-plugin, jax-cuda12-pjrt, nvidia-cuda-nvcc-cu12. The default is the paper's model,
in bfloat16.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from diffusion_jax.config import ModelConfig, TrainingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import UNet
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.devices import AXIS
from diffusion_jax.runtime.files import write_json
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import TrainState, init_state, make_optimizer, make_train_step
from experiments.command import exit_if_broken, reports_errors
from experiments.tools import hlo

PROGRAM = "python -m experiments.tools.gpu_report"
TARGETS = Path(__file__).parent / "gpu_targets"
GIB = 2**30
# What JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
SHARE = 0.75
LIMITS = (
    "No autotuning: a real GPU may choose other kernels, and cuDNN's workspaces are not counted.",
    "No out-of-memory error: short of the target's memory, XLA rematerializes and only warns.",
    "Not counted: the CUDA context, the libraries' and NCCL's own buffers, fragmentation, and "
    "batches on their way to the device.",
    "Nothing is run: no time, no speed, and no proof that the results are right.",
)
# The paper's model, batch 64, 64 pixels, bfloat16, on an H100: temporary memory in GiB.
TEMPORARY_BOUND = {False: 2.6, True: 1.2}


@dataclass(frozen=True)
class Options:
    """What to compile, and for what."""

    target: str = "h100"
    """h100, a100, or a file with another GPU's target specification (OpenXLA's text format)."""
    batch_sizes: tuple[int, ...] = (64,)
    """Images an update, over all devices; one program each."""
    devices: tuple[int, ...] = (1, 8)
    """Numbers of GPUs; one program each."""
    memory: float | None = None
    """Memory of the GPU in GiB, for whether a batch fits; by default the target's."""
    image_size: int = 64
    """Pixels a side."""
    channels: int = 3
    """Channels of an image."""
    accumulation: int = 1
    """Parts into which a device's batch is split to save memory."""
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig(dtype="bfloat16"))
    out: Path = Path("runs/gpu_report.json")
    """Where the numbers go."""


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


def lower_step(model: UNet, config: TrainingConfig, image_size: int, mesh: Mesh) -> Any:
    """Lowers the train step of `step.make_parallel_train_step` for so many GPUs.

    That one is pmapped over the devices that are there, and so cannot be lowered for others; what
    every device does is the same here.

    Args:
      model: the noise predictor.
      config: training configuration, with the batch over all devices.
      image_size: pixels a side.
      mesh: from `gpu_mesh`; other devices will do where nothing is to be compiled.

    Returns:
      The lowered program.
    """
    optimizer = make_optimizer(config)
    shape = (image_size, image_size, model.channels)
    train_step = make_train_step(
        model, linear_schedule(), optimizer, jnp.zeros(model.channels), config, AXIS
    )

    def train(state: TrainState, images: jax.Array) -> Any:
        images = images[0]
        batch = images.shape[0]
        return train_step(state, images, jax.lax.axis_index(AXIS) * batch + jnp.arange(batch))

    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        train, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False
    )

    def abstract(spec: PartitionSpec, tree: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    state = jax.eval_shape(lambda key: init_state(model, optimizer, key, shape), jax.random.key(0))
    images = jax.ShapeDtypeStruct((mesh.size, config.batch_size // mesh.size, *shape), jnp.uint8)
    traced = jax.jit(mapped, donate_argnums=0).trace(
        abstract(whole, state), abstract(split, images)
    )
    return traced.lower(lowering_platforms=("cuda",))


def describe(lowered: Any, program: Any) -> dict[str, Any]:
    """What a compiled train step consists of, as JSON can hold it."""
    text = program.as_text()
    instructions = hlo.instructions(text)
    arguments = jax.tree.leaves(lowered.in_avals)
    kernels = {a.shape for a in arguments if jnp.issubdtype(a.dtype, jnp.floating)}

    def named(counts: dict[Any, int]) -> list[list[Any]]:
        return [[*name, number] for name, number in counts.items()]

    return {
        "memory": hlo.memory(program),
        "convolutions": hlo.convolutions(instructions),
        "convolutions_not_nhwc": hlo.other_layouts(instructions),
        "fused_attentions": hlo.fused_attentions(instructions),
        "matrix_products": hlo.products(instructions),
        "transposes": named(hlo.transposes(instructions, kernels)),
        "narrow_sums": named(hlo.narrow_sums(instructions)),
        "collectives": hlo.collectives(instructions),
        "host_calls": hlo.host_calls(instructions),
        "donated": hlo.donated(text),
        "state_arrays": len(arguments) - 1,
    }


def attentions(config: ModelConfig) -> int:
    """Attention layers of the model: those of the levels named, and the bottleneck's."""
    per_level = 2 * config.num_res_blocks + 1
    return len(config.attention_levels) * per_level + 1


def broken_bounds(options: Options, row: dict[str, Any]) -> list[str]:
    """What a program ought to have and has not, one line each.

    The bounds on memory are for the paper's model at batch 64 on one H100, the others for all.
    """
    paper = dataclasses.replace(options, model=dataclasses.replace(options.model, remat=False))
    same = ("target", "image_size", "channels", "accumulation", "model")
    is_paper = all(getattr(paper, name) == getattr(Options(), name) for name in same)
    remat, memory = options.model.remat, row["memory"]["temporary"] / GIB
    where = f"{row['devices']} device(s), batch {row['batch']}"
    broken = []
    if is_paper and row["devices"] == 1 and row["batch"] == 64 and memory > TEMPORARY_BOUND[remat]:
        broken.append(f"{memory:.2f} GiB of temporary memory, over {TEMPORARY_BOUND[remat]}")
    if row["fused"]:
        want, found = attentions(options.model), row["fused_attentions"]
        if found["backward"] != want or found["forward"] < want:
            broken.append(f"fused attentions {found}, not {want} forward and backward")
    if row["convolutions_not_nhwc"] or "XLA" in row["convolutions"]:
        broken.append("convolutions that are not cuDNN's on NHWC")
    if row["transposes"]:
        broken.append(f"{len(row['transposes'])} transposes of activations")
    if row["narrow_sums"]:
        broken.append(f"{len(row['narrow_sums'])} sums in less than float32")
    if row["host_calls"]:
        broken.append(f"calls to the host: {row['host_calls']}")
    if row["donated"] != row["state_arrays"]:
        broken.append(f"{row['donated']} of {row['state_arrays']} arrays of the state donated")
    if (
        row["collectives"].keys() - {"all-reduce"}
        or row["collectives"].get("all-reduce", (0,))[0] > 1
    ):
        broken.append(f"more than one all-reduce: {row['collectives']}")
    return [f"{where}: {line}" for line in broken]


def report_row(options: Options, target: Target, batch: int, devices: int) -> dict[str, Any]:
    """Compiles one program and describes it."""
    config = TrainingConfig(batch_size=batch, accumulation=options.accumulation)
    model = options.model.build(options.channels)
    fused = jnp.dtype(model.dtype).itemsize == 2 and target.capability >= 8.0
    model = dataclasses.replace(model, fused_attention=fused)
    mesh = gpu_mesh(target, devices)
    with cudnn_answers(target.cudnn):
        lowered = lower_step(model, config, options.image_size, mesh)
        plain = lowered
        if model.remat or config.accumulation > 1:  # computed again, or in a loop that counts once
            once = dataclasses.replace(config, accumulation=1)
            plain_model = dataclasses.replace(model, remat=False)
            plain = lower_step(plain_model, once, options.image_size, mesh)
    found = describe(lowered, lowered.compile())
    flops = devices * hlo.model_flops(plain)
    return {"batch": batch, "devices": devices, "fused": fused, "model_flops": flops, **found}


def table(options: Options, target: Target, rows: Sequence[dict[str, Any]]) -> Table:
    """The rows, side by side."""
    memory = options.memory or target.memory / GIB
    result = Table(title=f"The train step compiled for {target.name}, {options.model.dtype}"
                   + (", rematerialized" if options.model.remat else ""))  # fmt: skip
    result.add_column("")
    for row in rows:
        result.add_column(f"batch {row['batch']}, {row['devices']} GPU(s)", justify="right")

    def line(name: str, cells: Sequence[str]) -> None:
        result.add_row(name, *cells)

    for name, label in (
        ("temporary", "temporary memory"),
        ("arguments", "state and images"),
        ("peak", "peak memory"),
    ):
        line(f"{label} a GPU, GiB", [f"{row['memory'][name] / GIB:.2f}" for row in rows])
    fits = ["yes" if row["memory"]["peak"] <= SHARE * memory * GIB else "no" for row in rows]
    line(f"fits {memory:.3g} GiB", fits)
    line("model TFLOP an update, all GPUs", [f"{row['model_flops'] / 1e12:.2f}" for row in rows])
    kinds = sorted({kind for row in rows for kind in row["convolutions"]})
    for kind in kinds:
        line(f"{kind} convolutions", [str(row["convolutions"].get(kind, 0)) for row in rows])
    line("of these not NHWC", [str(sum(row["convolutions_not_nhwc"].values())) for row in rows])
    for way in ("forward", "backward"):
        line(f"fused attentions, {way}", [str(row["fused_attentions"][way]) for row in rows])
    products = [", ".join(f"{n} {t}" for t, n in row["matrix_products"].items()) for row in rows]
    line("matrix products", products)
    for name, label in (
        ("transposes", "transposes of activations"),
        ("narrow_sums", "sums in less than float32"),
    ):
        line(label, [str(sum(entry[-1] for entry in row[name])) for row in rows])
    collectives = [
        ", ".join(
            f"{n} {name}, {size / 1e6:.0f} MB" for name, (n, size) in row["collectives"].items()
        )
        or "-"
        for row in rows
    ]
    line("collectives", collectives)
    line("calls to the host", [str(sum(row["host_calls"].values())) for row in rows])
    line("arrays of the state donated", [f"{r['donated']} of {r['state_arrays']}" for r in rows])
    return result


def check(options: Options) -> None:
    """Raises a UserError naming what cannot be compiled."""
    for batch in options.batch_sizes:
        for devices in options.devices:
            parts = devices * options.accumulation
            if min(batch, devices, options.accumulation) < 1 or batch % parts:
                raise UserError(
                    f"a batch of {batch} can't be shared evenly by {devices} device(s) x "
                    f"{options.accumulation} accumulated part(s)"
                )
    if not options.batch_sizes or not options.devices:
        raise UserError("give at least one of --batch-sizes and of --devices")
    if options.memory is not None and not options.memory > 0:
        raise UserError(f"memory = {options.memory} must be positive")
    model = options.model.build(options.channels)
    model.check(options.image_size, options.image_size, options.channels)


@reports_errors
def main() -> None:
    """Compiles, prints, writes, and exits with status 1 where a bound is broken."""
    options = tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)(Options),
        description=__doc__,
        prog=PROGRAM,
    )
    # The compiler's own check for a GPU would fail where there is none.
    jax.config.update("jax_platforms", "cpu")
    backend.configure()
    check(options)
    target = load_target(options.target)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    console, rows, broken = Console(), [], []
    for batch in options.batch_sizes:
        for devices in options.devices:
            with console.status(f"Compiling batch {batch} for {devices} GPU(s), about a minute"):
                rows.append(report_row(options, target, batch, devices))
            broken += broken_bounds(options, rows[-1])
    report = {
        "target": target.name,
        "jax": jax.__version__,
        "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "programs": rows,
        "not_known": LIMITS,
        "broken_bounds": broken,
    }
    write_json(options.out, report)
    console.print(table(options, target, rows))
    share = f"a GPU's memory counts for {100 * SHARE:.0f} %, what JAX takes of it by default"
    console.print(f"fits: {share} (XLA_PYTHON_CLIENT_MEM_FRACTION)")
    console.print("What such a compilation cannot know:")
    for limit in LIMITS:
        console.print(f"- {limit}")
    print(f"Wrote {options.out}")
    exit_if_broken(broken)


if __name__ == "__main__":
    main()
