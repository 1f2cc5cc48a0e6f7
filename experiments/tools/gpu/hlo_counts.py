"""Counts what a program consists of: library calls, layouts, collectives, transposes, sums.

All functions take what `hlo.instructions` reads.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.tools.gpu.hlo import Instruction, Shape

_FLOATS = ("f64", "f32", "bf16", "f16")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


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
