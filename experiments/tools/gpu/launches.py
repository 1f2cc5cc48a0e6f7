"""What a compiled program starts on the GPU, and the bytes that every start moves.

Reads the text of a scheduled module, `compiled.as_text()`. A *launch* is an instruction that XLA
hands to the GPU: a fusion (one kernel), a library's call, a copy, a collective. Not launches:
parameters, constants, tuples and their parts, bitcasts, the end of what is asynchronous, and loops,
calls and conditionals themselves, whose bodies count instead; of a conditional all branches. The
body of a loop counts as often as it runs.

A launch's *traffic* is the bytes that it has to read and write if no cache keeps anything from one
launch to the next, and everything within one:

- what it writes is its results, and what it reads its operands, each once, however often it is used
- of an operand that a fusion slices or gathers from, only what is taken, if that is less
- of an operand updated in place, nothing is read, and only the update is written
- a library's call (cuDNN, cuBLAS) has its operands and results, but not its scratch space, the u8
  arrays among its results

That is a lower bound on the traffic of each launch, not of the program: two launches that follow
each other may meet in the second-level cache.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.tools.gpu.hlo import Line, Shape, attribute, read_computations, read_shapes

_Bodies = dict[str, list[Line]]

_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("opt-barrier", "add-dependency"),
}
_BODIES_COUNT = {"while", "call", "conditional", "async-start"}
_SLICES = {"slice", "dynamic-slice", "gather"}
# Within a fusion, what is computed entry by entry is computed only where it is needed.
_WHOLE = {"broadcast", "reduce", "reduce-window", "dot", "convolution", "scatter", "sort", "pad"}


@dataclass(frozen=True)
class Launch:
    """One start on the GPU.

    Attributes:
      name: the instruction's.
      opcode: XLA's name of the operation.
      target: the library function of a custom call, else empty.
      origin: where in the Python program it comes from.
      operations: what a fusion computes, XLA's names; else the opcode alone.
      results: the arrays written, scratch space left out.
      read: bytes read.
      written: bytes written.
      times: how often the program starts it.
    """

    name: str
    opcode: str
    target: str
    origin: str
    operations: frozenset[str]
    results: tuple[Shape, ...]
    read: int
    written: int
    times: int

    @property
    def traffic(self) -> int:
        """Bytes read and written by one start."""
        return self.read + self.written


def _size(shapes: Sequence[Shape]) -> int:
    return sum(shape.bytes for shape in shapes)


def _entries(line: Line) -> int:
    return sum(shape.entries for shape in read_shapes(line.shape))


def _in_place(body: list[Line]) -> dict[str, int]:
    """Updates that end a fusion, and so are done in place: their names, and entries updated."""
    lines = {line.name: line for line in body}
    root = next(line for line in body if line.is_root)
    found = {}
    for name in root.operands() if root.opcode == "tuple" else [root.name]:
        line = lines[name]
        while line.opcode == "bitcast":
            line = lines[line.operands()[0]]
        if line.opcode == "dynamic-update-slice":
            found[line.name] = _entries(lines[line.operands()[1]])
    return found


def _needed(body: list[Line]) -> dict[str, int]:
    """Entries that a fusion needs of each of its instructions, from the results backwards."""
    in_place, sizes = _in_place(body), {line.name: _entries(line) for line in body}
    needed: Counter[str] = Counter({line.name: sizes[line.name] for line in body if line.is_root})
    for line in reversed(body):  # users come after what they use
        wanted = min(needed[line.name], sizes[line.name])
        for place, name in enumerate(line.operands()):
            if name not in sizes:
                continue
            if line.opcode == "tuple" or line.opcode in _WHOLE:
                needed[name] += sizes[name]
            elif line.opcode in _SLICES:
                needed[name] += wanted if place == 0 else sizes[name]
            elif line.opcode == "dynamic-update-slice" and place == 0:
                needed[name] += 0 if line.name in in_place else wanted
            else:
                needed[name] += min(wanted, sizes[name])
    return {name: min(needed[name], size) for name, size in sizes.items()}


def _fusion_bytes(body: list[Line], results: tuple[Shape, ...]) -> tuple[int, int]:
    """Bytes that a fusion reads and writes."""
    needed, lines = _needed(body), {line.name: line for line in body}
    read = 0
    for line in body:
        if line.opcode == "parameter" and (shapes := read_shapes(line.shape)):
            read += needed[line.name] * shapes[0].bytes // max(shapes[0].entries, 1)
    written = _size(results)
    for name, entries in _in_place(body).items():
        shape = read_shapes(lines[name].shape)[0]
        written -= (shape.entries - entries) * shape.bytes // max(shape.entries, 1)
    return read, written


def _bytes(line: Line, operands: Sequence[Shape], results: tuple[Shape, ...]) -> tuple[int, int]:
    """Bytes that an instruction outside fusions reads and writes."""
    if line.opcode in _SLICES:
        return _size(results), _size(results)
    if line.opcode == "dynamic-update-slice":
        return operands[1].bytes, operands[1].bytes
    if line.opcode.endswith("-start"):  # whose result names its operands too
        return _size(operands), _size(operands)
    return _size(operands), _size(results)


def trip_count(line: Line) -> int:
    """How often a loop runs, or 0 where the compiler does not know."""
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', line.rest)
    return int(found[1]) if found else 0


def _runs(entry: str, bodies: _Bodies, rounds: int) -> Iterator[tuple[str, int]]:
    """The computations that are run, not fused or applied, and how often."""
    todo = [(entry, 1)]
    while todo:
        name, times = todo.pop()
        yield name, times
        for line in bodies[name]:
            if line.opcode == "while":
                known = trip_count(line)
                todo.append((attribute(line.rest, "body").lstrip("%"), times * (known or rounds)))
                if not known:  # else XLA just counts
                    condition = attribute(line.rest, "condition").lstrip("%")
                    todo.append((condition, times * (rounds + 1)))
            elif line.opcode in _BODIES_COUNT:
                todo += [(callee, times) for callee in line.called()]


def _is_launch(line: Line) -> bool:
    ends = line.opcode.endswith("-done") or line.opcode == "async-update"
    return not (ends or line.opcode in _NOTHING | _BODIES_COUNT)


def _launch(line: Line, types: dict[str, tuple[Shape, ...]], times: int, bodies: _Bodies) -> Launch:
    """The launch that an instruction is."""
    results, operations = types[line.name], frozenset([line.opcode])
    if line.opcode == "custom-call":
        results = tuple(shape for shape in results if shape.dtype != "u8")
    if line.opcode == "fusion":
        body = bodies[next(line.called())]
        operations = frozenset(inner.opcode for inner in body) - _NOTHING
        read, written = _fusion_bytes(body, results)
    else:
        given = dict.fromkeys(line.operands())
        operands = [shape for name in given for shape in types.get(name, ())]
        read, written = _bytes(line, operands, results)
    return Launch(
        name=line.name,
        opcode=line.opcode,
        target=attribute(line.rest, "custom_call_target"),
        origin=attribute(line.rest, "op_name"),
        operations=operations,
        results=results,
        read=read,
        written=written,
        times=times,
    )


def launches(text: str, rounds: int = 1) -> list[Launch]:
    """The launches of a compiled program.

    Args:
      text: its scheduled module.
      rounds: how often a loop runs of which the compiler does not know it.
    """
    entry, bodies = read_computations(text)
    found = []
    for computation, times in _runs(entry, bodies, rounds):
        types = {line.name: read_shapes(line.shape) for line in bodies[computation]}
        found += [
            _launch(line, types, times, bodies) for line in bodies[computation] if _is_launch(line)
        ]
    return found


def loops(text: str) -> list[int]:
    """How often each loop of a program runs, 0 where the compiler does not know."""
    entry, bodies = read_computations(text)
    return [
        trip_count(line)
        for name, _ in _runs(entry, bodies, 1)
        for line in bodies[name]
        if line.opcode == "while"
    ]


_KINDS = (
    ("convolution", r"conv_general_dilated|/conv/|conv\d"),
    ("norm", r"/\w*norm\w*/"),
    ("attention", r"attention"),
)


def kind(launch: Launch) -> str:
    """Roughly what a launch of a UNet's program is for, by its library call and its origin."""
    if launch.target.startswith("__cudnn$conv"):
        return "convolution (cuDNN)"
    if launch.target.startswith("__cudnn$fmha"):
        return "attention (cuDNN)"
    if launch.opcode.startswith("all-"):
        return "collective"
    if launch.operations <= {"convert", "transpose", "copy", "reshape"}:
        return "cast or transposed copy"
    if not re.search(r"jvp|UNet", launch.origin):
        return "random numbers" if re.search("random|threefry|erf", launch.origin) else "update"
    return next((name for name, at in _KINDS if re.search(at, launch.origin)), "other in the UNet")


def by_kind(found: Sequence[Launch]) -> dict[str, list[Launch]]:
    """Launches of each `kind`, that with the most bytes first."""
    kinds = defaultdict[str, list[Launch]](list)
    for launch in found:
        kinds[kind(launch)].append(launch)

    def traffic(item: tuple[str, list[Launch]]) -> int:
        return sum(launch.times * launch.traffic for launch in item[1])

    return dict(sorted(kinds.items(), key=traffic, reverse=True))


def float32_activations(
    found: Sequence[Launch], batch: int, image_size: int, levels: int
) -> list[Launch]:
    """The launches that write float32 arrays of the features' shape.

    That is (batch, height, width, channels), or with neighbouring axes of those laid together, the
    height and width those of one of the levels, and more channels than an image has. In a model
    that computes in 16 bits each of them moves twice the bytes that it might.
    """
    sides = {image_size >> level for level in range(levels)}
    shapes: set[tuple[int, ...]] = {(batch, side, side) for side in sides}
    shapes |= {(batch, side**2) for side in sides} | {(batch * side**2,) for side in sides}

    def is_one(shape: Shape) -> bool:
        return shape.dtype == "f32" and shape.dims[:-1] in shapes and shape.dims[-1] > 4

    return [launch for launch in found if any(map(is_one, launch.results))]
