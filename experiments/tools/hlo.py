"""Reads what XLA makes of a program: layouts, library calls, collectives, precision, FLOPs.

All functions read the text of an HLO module, `lowered.as_text(dialect="hlo")` before compilation or
`compiled.as_text()` after it, so that a program for a device that is not there can be read as well.
What is called or fused several times counts as often; the body of a loop counts once.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Bytes an entry, of the types that a model's arrays have.
_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "u64": 8, "s64": 8, "u32": 4, "s32": 4}
_FLOATS = ("f64", "f32", "bf16", "f16")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_NAME = r"%?[\w.~-]+"
_COMPUTATION = re.compile(rf"^(ENTRY )?({_NAME}) (?:\(.*\) -> .* )?{{$")
_INSTRUCTION = re.compile(rf"^\s+(ROOT )?({_NAME}) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)[^}]*\})?")
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
        return math.prod(self.dims) * _BYTES.get(self.dtype, 1)

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
        found = re.search(rf'\b{name}=(?:"([^"]*)"|{{([^}}]*)}}|([^\s,]+))', self.attributes)
        return next((group for group in found.groups() if group), "") if found else ""


def _shapes(text: str, layouts: bool) -> tuple[Shape, ...]:
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


def instructions(text: str) -> list[Instruction]:
    """The instructions of an HLO module, of all computations that its entry comes to."""
    # Before compilation a layout only says in which order the axes came about.
    layouts = "is_scheduled=true" in text.split("\n", 1)[0]
    computations: dict[str, list[tuple[bool, str, str, str, str]]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header[2].lstrip("%"), [])
            entry = header[2].lstrip("%") if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            parts = found[3], found[4], found[5]
            lines.append((bool(found[1]), found[2].lstrip("%"), *parts))

    called = {
        name: [
            callee.strip().lstrip("%")
            for *_, rest in body
            for callees in _CALLED.findall(rest)
            for callee in callees.strip("{}").split(",")
        ]
        for name, body in computations.items()
    }
    times: Counter[str] = Counter()

    def visit(name: str, order: list[str], seen: set[str]) -> None:
        if name not in seen and name in called:
            seen.add(name)
            for callee in called[name]:
                visit(callee, order, seen)
            order.append(name)

    order: list[str] = []
    visit(entry, order, set())
    times[entry] = 1
    for name in reversed(order):  # callers before callees
        for callee in called[name]:
            times[callee] += times[name]

    roots = {name: next((b[3] for b in body if b[0]), "") for name, body in computations.items()}
    result = []
    for name in order:
        types = {b[1]: _shapes(b[2], layouts) for b in computations[name]}
        for _, _, shape, opcode, rest in computations[name]:
            end = _closing(rest)
            given = [word.strip().rsplit(" ", 1)[-1].lstrip("%") for word in rest[:end].split(",")]
            operands = tuple(shape for word in given for shape in types.get(word, ()))
            reducer = ""
            if opcode.startswith(("reduce", "all-reduce")):
                reducer = next((roots.get(c.lstrip("%"), "") for c in _CALLED.findall(rest)), "")
            result.append(
                Instruction(
                    opcode, _shapes(shape, layouts), operands, rest[end:], times[name], reducer
                )
            )
    return result


def _total(found: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    counter: Counter[Any] = Counter()
    for name, times in found:
        counter[name] += times
    return dict(sorted(counter.items()))


def convolutions(program: Sequence[Instruction]) -> dict[str, int]:
    """Number of convolutions of every kind: XLA's own, and cuDNN's, forward and backward."""
    kinds = {
        "__cudnn$convForward": "cuDNN forward",
        "__cudnn$convBiasActivationForward": "cuDNN forward",
        "__cudnn$convForwardGraph": "cuDNN forward",
        "__cudnn$convBackwardInput": "cuDNN input-gradient",
        "__cudnn$convBackwardFilter": "cuDNN filter-gradient",
    }
    return _total((kinds.get(i.target, "XLA"), i.times) for i in program if _is_convolution(i))


def _is_convolution(instruction: Instruction) -> bool:
    return instruction.opcode == "convolution" or instruction.target.startswith("__cudnn$conv")


def _is_nhwc(instruction: Instruction) -> bool:
    """Whether a convolution's images, or what stands for them, have their pixels in the middle.

    A filter's gradient is a convolution too, which sums over the batch: its first operand is
    labelled f01b, and its result is the small kernel.
    """
    image, kernel, out = re.split(r"_|->", instruction.attribute("dim_labels"))
    if instruction.opcode == "custom-call":  # labelled as the forward convolution it belongs to
        return image == out == "b01f"
    if out == "b01f":
        return image == "b01f" and kernel.startswith("01")
    return image == "f01b" and kernel == "i01o" and out == "01bf"


def other_layouts(program: Sequence[Instruction]) -> dict[str, int]:
    """Number of convolutions, by the labels of their axes, of images that are not NHWC."""
    return _total(
        (i.attribute("dim_labels"), i.times)
        for i in program
        if _is_convolution(i) and not _is_nhwc(i)
    )


def fused_attentions(program: Sequence[Instruction]) -> dict[str, int]:
    """Number of cuDNN's fused attentions, `forward` and `backward`."""
    found = {"forward": 0, "backward": 0}
    for i in program:
        if i.target.startswith("__cudnn$fmha"):
            found["backward" if "Backward" in i.target else "forward"] += i.times
    return found


def host_calls(program: Sequence[Instruction]) -> dict[str, int]:
    """Number of calls back to the host, or transfers from and to it, by name."""
    return _total(
        (i.target or i.opcode, i.times)
        for i in program
        if i.opcode in ("infeed", "outfeed")
        or "is_host_transfer=true" in i.attributes
        or any(word in i.target.lower() for word in ("callback", "python", "host"))
    )


def collectives(program: Sequence[Instruction]) -> dict[str, tuple[int, int]]:
    """Number of collective operations of every kind, and the bytes that one device gives them."""
    found: dict[str, tuple[int, int]] = {}
    for i in program:
        name = i.opcode.removesuffix("-start")
        if name in _COLLECTIVES:
            number, size = found.get(name, (0, 0))
            given = sum(shape.bytes for shape in i.operands)
            found[name] = number + i.times, size + i.times * given
    return found


def transposes(
    program: Sequence[Instruction], kernels: Iterable[Sequence[int]]
) -> dict[tuple[str, str], int]:
    """Transposes and changes of layout that move floating-point arrays other than kernels.

    Args:
      program: from `instructions`.
      kernels: shapes of the parameters; what has one's sizes in any order is taken for a kernel,
        its gradient or its moments.

    Returns:
      Their number by shape and origin.
    """

    def sizes(dims: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(size for size in dims if size > 1))

    small = {sizes(dims) for dims in kernels}

    def memory_order(shape: Shape, axes: Sequence[int]) -> list[int]:
        """The axes, renamed, from the slowest to the fastest, those of one entry left out."""
        layout = shape.layout or tuple(reversed(range(len(shape.dims))))
        return [axes[axis] for axis in reversed(layout) if shape.dims[axis] > 1]

    def moves(i: Instruction) -> bool:
        if i.opcode not in ("transpose", "copy", "copy-start") or not i.operands:
            return False
        source, result = i.operands[0], i.shapes[0]
        if source.dtype not in _FLOATS or sizes(source.dims) in small:
            return False
        permutation = range(len(source.dims))
        axes = [int(a) for a in i.attribute("dimensions").split(",") if a] or permutation
        return memory_order(source, permutation) != memory_order(result, axes)

    return _total(((str(i.shapes[0]), i.origin), i.times) for i in program if moves(i))


def narrow_sums(program: Sequence[Instruction]) -> dict[tuple[str, str], int]:
    """Number of sums of more than a few numbers that add in less than float32, by shape and origin.

    Statistics of norms, softmax, loss and gradients must not be among them. Sums of up to 8 numbers
    (up-sampling's gradient has 4) lose little more than their result's rounding. Matrix products
    and convolutions are not meant: their 16-bit kernels add in float32.
    """
    return _total(
        ((f"{i.operands[0]} -> {i.shapes[0]}", i.origin), i.times)
        for i in program
        if i.opcode in ("reduce", "reduce-window", "all-reduce", "all-reduce-start")
        and i.reducer == "add"
        and any(shape.dtype in ("bf16", "f16") for shape in i.shapes)
        and (
            i.opcode.startswith("all-reduce")
            or math.prod(i.operands[0].dims) > 8 * math.prod(i.shapes[0].dims)
        )
    )


def products(program: Sequence[Instruction]) -> dict[str, int]:
    """Number of matrix products by the type of their first operand, cuBLAS's and XLA's own."""
    return _total(
        (i.operands[0].dtype, i.times)
        for i in program
        if i.operands and (i.opcode == "dot" or "gemm" in i.target or "matmul" in i.target)
    )


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


def _taps(size: int, out: int, spatial: dict[str, int]) -> int:
    """Pairs of an output position and a kernel tap along an axis that meet a real entry."""
    taps = 0
    for position in range(out):
        for tap in range(spatial["size"]):
            at = position * spatial["stride"] + tap * spatial["rhs_dilate"] - spatial["pad"]
            taps += at % spatial["lhs_dilate"] == 0 and 0 <= at // spatial["lhs_dilate"] < size
    return taps


def _convolution_flops(i: Instruction) -> int:
    labels = re.split(r"_|->", i.attribute("dim_labels"))
    image, kernel, out = (
        dict(zip(label, shape.dims, strict=True))
        for label, shape in zip(labels, (*i.operands[:2], i.shapes[0]), strict=True)
    )
    window = dict(part.split("=") for part in i.attribute("window").split())
    pairs = 1
    for axis in range(len(labels[0]) - 2):

        def value(name: str, default: str, axis: int = axis) -> int:
            return (
                int(window[name].split("x")[axis].split("_")[0]) if name in window else int(default)
            )

        spatial = {
            "size": value("size", "1"),
            "stride": value("stride", "1"),
            "pad": value("pad", "0"),
            "lhs_dilate": value("lhs_dilate", "1"),
            "rhs_dilate": value("rhs_dilate", "1"),
        }
        pairs *= _taps(image[str(axis)], out[str(axis)], spatial)
    return 2 * pairs * out["b"] * out["f"] * kernel["i"]


def _dot_flops(i: Instruction) -> int:
    axes = [int(axis) for axis in i.attribute("lhs_contracting_dims").split(",") if axis]
    return 2 * math.prod(i.shapes[0].dims) * math.prod(i.operands[0].dims[a] for a in axes)


def _attention_flops(i: Instruction) -> int:
    """Two products forward; four backward, the logits' recomputation not among them."""
    batch, pixels, heads, size = i.operands[0].dims
    one = 2 * batch * heads * pixels * i.operands[1].dims[1] * size
    return one * (4 if "Backward" in i.target else 2)


def model_flops(lowered: Any) -> float:
    """Floating-point operations of a program's convolutions, matrix products and attentions.

    A product of (m, k) and (k, n) takes 2 m k n; a convolution 2 for every output, input channel
    and tap that meets a pixel, not padding. It is what the utilisation of a device is reckoned
    with: sums, norms and random numbers, some per cent, are left out. The program is counted as
    lowered, before the compiler changes it, and for the platform it is lowered for; on the CPU this
    model's attention is a loop, of which the body counts once, so lower for CUDA, which needs none:
    `jax.jit(f).trace(*arguments).lower(lowering_platforms=("cuda",))`. Rematerialized products
    count again.

    Args:
      lowered: what `.lower()` returns; on several devices, the program of one.
    """
    total = 0
    for i in instructions(lowered.as_text(dialect="hlo")):
        if i.opcode == "convolution":
            total += i.times * _convolution_flops(i)
        elif i.opcode == "dot":
            total += i.times * _dot_flops(i)
        elif i.target.startswith("__cudnn$fmha"):
            total += i.times * _attention_flops(i)
    return float(total)


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
