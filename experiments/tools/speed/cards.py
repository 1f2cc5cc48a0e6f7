"""What GPUs can do at most, by their makers' data sheets."""

import re

# Dense bfloat16 products that add in float32, in TFLOP/s; the first pattern that fits counts. TF32
# has half of that on all of these. Slices (MIG), laptops and cut versions have less: none fits.
_OTHER = re.compile(r"\bMIG\b|Laptop|Max-Q|\b4090 D\b")
_BFLOAT16 = (
    (r"\bB200\b", 2250.0),
    (r"\bH200 NVL\b", 835.5),
    (r"\bG?H200\b", 989.4),
    (r"\bH100 NVL\b", 835.5),
    (r"\bH100 PCIe\b", 756.0),
    (r"\bH100\b|\bH800\b", 989.4),
    (r"\bA100\b|\bA800\b", 312.0),
    (r"\bL40S\b", 362.0),
    (r"\bL40\b", 181.0),
    (r"\bL4\b", 121.0),
    (r"\bA40\b", 149.7),
    (r"\bA30\b", 165.0),
    (r"\bA10\b", 125.0),
    (r"\bRTX 4090\b", 165.2),
    (r"\bRTX 3090\b(?! Ti)", 71.0),
)


def peak_tflops(kind: str, bfloat16: bool) -> float | None:
    """The peak of a GPU's dense products, in TFLOP/s; None of one that is not known.

    Args:
      kind: the maker's name, as JAX's `device_kind` and nvidia-smi give it.
      bfloat16: in bfloat16, else in TF32, in which float32 is multiplied by default.
    """
    if _OTHER.search(kind):
        return None
    known = (peak for pattern, peak in _BFLOAT16 if re.search(pattern, kind))
    peak = next(known, None)
    return peak if peak is None or bfloat16 else peak / 2
