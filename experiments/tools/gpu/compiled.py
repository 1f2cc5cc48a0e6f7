"""A program compiled for a GPU, and what it consists of."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from experiments.tools.gpu import hlo, hlo_counts, launches
from experiments.tools.gpu.graphs import graphs, read_thunks


@dataclass(frozen=True)
class Program:
    """A program compiled for a GPU.

    Attributes:
      lowered: what was compiled.
      compiled: what came of it.
      text: its scheduled module.
      thunks: what it does in order, see `graphs`.
      seconds: that compiling took, by the clock.
      processor_seconds: the same, of all processors together; other work on them counts little.
    """

    lowered: Any
    compiled: Any
    text: str
    thunks: str
    seconds: float
    processor_seconds: float


@contextmanager
def _no_cache() -> Iterator[None]:
    """Compiles what would be read from the compilation cache, to be timed and looked at."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def compile_program(lowered: Any) -> Program:
    """Compiles what `program` has lowered for devices of `target.gpu_mesh`."""
    with tempfile.TemporaryDirectory() as folder, _no_cache():
        before, start = os.times(), time.perf_counter()
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        after, seconds = os.times(), time.perf_counter() - start
        thunks = read_thunks(Path(folder))
    processors = sum(after[:4]) - sum(before[:4])  # of this process and those it has started
    return Program(lowered, compiled, compiled.as_text(), thunks, seconds, processors)


def memory(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled program needs on each device, by the compiler's own analysis.

    `arguments` (parameters, optimizer state, images), `results` that take no argument's memory,
    `temporary` (activations, gradients), and `peak`, the most that is in use at a time.
    """
    analysis = compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "peak": analysis.peak_memory_in_bytes,
    }


def _named(counts: dict[Any, int]) -> list[list[Any]]:
    return [[*name, number] for name, number in counts.items()]


def describe(
    program: Program, parameters: Any, images: tuple[int, int, int], rounds: int = 1
) -> dict[str, Any]:
    """What a compiled program consists of, as JSON can hold it.

    Args:
      program: from `compile_program`.
      parameters: shapes of the model's parameters.
      images: how many a device computes at a time, their pixels per side, the model's levels.
      rounds: updates or calls of the network in one dispatch; launches and their bytes are given
        for each of them.
    """
    instructions = hlo.instructions(program.text)
    found = launches.launches(program.text, rounds)
    arguments = jax.tree.leaves(program.lowered.in_avals)
    kernels = {leaf.shape for leaf in jax.tree.leaves(parameters)}
    number, outside = graphs(program.thunks)
    wide = launches.float32_activations(found, *images)

    def each(launched: Sequence[launches.Launch]) -> list[float]:
        starts = sum(launch.times for launch in launched)
        return [starts / rounds, sum(i.times * i.traffic for i in launched) / rounds]

    return {
        "memory": memory(program.compiled),
        "compile_seconds": program.seconds,
        "compile_processor_seconds": program.processor_seconds,
        "rounds": rounds,
        "launches": each(found)[0],
        "traffic": each(found)[1],
        "kinds": {kind: each(of_kind) for kind, of_kind in launches.by_kind(found).items()},
        "float32_activations": each(wide),
        "loops": launches.loops(program.text),
        "graphs": number,
        "outside_graphs": outside,
        "convolutions": hlo_counts.convolutions(instructions),
        "convolutions_not_nhwc": hlo_counts.other_layouts(instructions),
        "fused_attentions": hlo_counts.fused_attentions(instructions),
        "matrix_products": hlo_counts.products(instructions),
        "transposes": _named(hlo_counts.transposes(instructions, kernels)),
        "narrow_sums": _named(hlo_counts.narrow_sums(instructions)),
        "collectives": hlo_counts.collectives(instructions),
        "host_calls": hlo_counts.host_calls(instructions),
        "donated": hlo.donated(program.text),
        "arguments": len(arguments),
    }
