"""The floating-point operations of a program's convolutions, matrix products and attentions."""

import math
import re
from typing import Any

from experiments.tools.gpu.hlo import Instruction, instructions


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
