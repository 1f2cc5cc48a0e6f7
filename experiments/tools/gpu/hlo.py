"""Reads an XLA program: its instructions, what they take and give, and how often they run.

Reads the text of an HLO module, `lowered.as_text(dialect="hlo")` before compilation or
`compiled.as_text()` after it, so that a program for a device that is not there can be read as well.
What is called or fused several times counts as often; the body of a loop counts once.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

# Bytes an entry, of the types that a model's arrays have.
_BYTES = {"f64": 8, "u64": 8, "s64": 8, "f32": 4, "u32": 4, "s32": 4}
_BYTES |= {"bf16": 2, "f16": 2, "u16": 2, "s16": 2, "token": 0}

_NAME = r"%?[\w.~-]+"
_COMPUTATION = re.compile(rf"^(ENTRY )?({_NAME}) (?:\(.*\) -> .* )?{{$")
_INSTRUCTION = re.compile(rf"^\s+(ROOT )?({_NAME}) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)[^}]*\})?")
# Commas between operands, not those of their sizes and layouts.
_COMMAS = re.compile(r",(?![^\[{]*[\]}])")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(
    r"(?:to_apply|calls|body|condition|branch_computations|called_computations|"
    rf"true_computation|false_computation)=({_NAME}|{{[^}}]*}})"
)


@dataclass(frozen=True)
class Shape:
    """An array's type.

    Attributes:
      dtype: XLA's name, such as bf16.
      dims: sizes of the axes.
      layout: the axes from the fastest varying to the slowest; empty where not yet chosen.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes that the entries take."""
        return self.entries * _BYTES.get(self.dtype, 1)

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.dims)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a program.

    Attributes:
      opcode: XLA's name of the operation.
      shapes: its result's arrays; several if it is a tuple.
      operands: its operands' arrays.
      attributes: the rest of the line.
      times: how often the program comes to it.
      reducer: opcode of the root of the computation that it applies, of a reduction.
    """

    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[Shape, ...]
    attributes: str
    times: int
    reducer: str = ""

    @property
    def target(self) -> str:
        """The library function of a custom call, else an empty string."""
        return self.attribute("custom_call_target") if self.opcode == "custom-call" else ""

    @property
    def origin(self) -> str:
        """Where in the Python program it comes from."""
        return self.attribute("op_name")

    def attribute(self, name: str) -> str:
        """An attribute's value, empty if it has none; quotes and braces removed."""
        return attribute(self.attributes, name)


def attribute(text: str, name: str) -> str:
    """An attribute's value in an instruction's line; empty if it has none."""
    found = re.search(rf'\b{name}=(?:"([^"]*)"|{{([^}}]*)}}|([^\s,]+))', text)
    return next((group for group in found.groups() if group), "") if found else ""


def read_shapes(text: str, layouts: bool = False) -> tuple[Shape, ...]:
    """The arrays of a type as it is written, a tuple's one after the other."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in text.split(",") if number)

    return tuple(
        Shape(m[1], numbers(m[2]), numbers(m[3] or "") if layouts else ())
        for m in _SHAPE.finditer(text)
    )


def _closing(text: str) -> int:
    """Where the parenthesis opened before the text closes."""
    depth = 1
    for i, char in enumerate(text):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth == 0:
            return i
    return len(text)


@dataclass(frozen=True)
class Line:
    """An instruction as it is written, in the body of a computation.

    Attributes:
      is_root: whether its result is the computation's.
      name: by which others in the body take it.
      shape: its type.
      opcode: XLA's name of the operation.
      rest: its operands and attributes.
    """

    is_root: bool
    name: str
    shape: str
    opcode: str
    rest: str

    def operands(self) -> list[str]:
        """Names of the instructions that it takes."""
        given = _COMMAS.split(self.rest[: _closing(self.rest)])
        return [word.strip().rsplit(" ", 1)[-1].lstrip("%") for word in given if word.strip()]

    def called(self) -> Iterator[str]:
        """Names of the computations that it comes to."""
        for callees in _CALLED.findall(self.rest):
            yield from (callee.strip().lstrip("%") for callee in callees.strip("{}").split(","))


def read_computations(text: str) -> tuple[str, dict[str, list[Line]]]:
    """The name of a module's entry, and the bodies of all its computations."""
    entry, found, body = "", dict[str, list[Line]](), list[Line]()
    for line in _COMMENT.sub("", text).splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2].lstrip("%")
            body = found.setdefault(name, [])
            entry = name if header[1] else entry
        elif m := _INSTRUCTION.match(line):
            body.append(Line(bool(m[1]), m[2].lstrip("%"), m[3], m[4], m[5]))
    return entry, found


def _visits(entry: str, computations: dict[str, list[Line]]) -> dict[str, int]:
    """How often the program comes to each computation that its entry comes to, callees first."""
    called = {
        name: [c for line in body for c in line.called()] for name, body in computations.items()
    }
    order, seen = list[str](), set[str]()

    def visit(name: str) -> None:
        if name not in seen and name in called:
            seen.add(name)
            for callee in called[name]:
                visit(callee)
            order.append(name)

    visit(entry)
    times = Counter({entry: 1})
    for name in reversed(order):  # callers before callees
        for callee in called[name]:
            times[callee] += times[name]
    return {name: times[name] for name in order}


def instructions(text: str) -> list[Instruction]:
    """The instructions of an HLO module, of all computations that its entry comes to."""
    # Before compilation a layout only says in which order the axes came about.
    layouts = "is_scheduled=true" in text.split("\n", 1)[0]
    entry, computations = read_computations(text)
    roots = {
        name: next((line.opcode for line in body if line.is_root), "")
        for name, body in computations.items()
    }
    result = []
    for name, times in _visits(entry, computations).items():
        types = {line.name: read_shapes(line.shape, layouts) for line in computations[name]}
        for line in computations[name]:
            end = _closing(line.rest)
            operands = tuple(shape for word in line.operands() for shape in types.get(word, ()))
            reducer = ""
            if line.opcode.startswith(("reduce", "all-reduce")):
                reducer = next((roots.get(callee, "") for callee in line.called()), "")
            shapes, attributes = types[line.name], line.rest[end:]
            result.append(Instruction(line.opcode, shapes, operands, attributes, times, reducer))
    return result


def donated(text: str) -> int:
    """Number of arguments whose memory the results take, or may take."""
    header = text.split("\n", 1)[0]
    found = 0
    for name, entry in (("input_output_alias", r"\{[\d, ]*\}: \("), ("buffer_donor", r"\(\d+, ")):
        if start := re.search(rf"{name}={{", header):
            inside, depth = header[start.end() :], 1
            for end, char in enumerate(inside):
                depth += {"{": 1, "}": -1}.get(char, 0)
                if depth == 0:
                    found += len(re.findall(entry, inside[:end]))
                    break
    return found
