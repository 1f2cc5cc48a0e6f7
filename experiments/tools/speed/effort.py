"""How much `benchmark` measures, in full and quickly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = (32, 64)
# Updates, or other work, of a GPU that are timed together.
TOGETHER = 20


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
      sizes: pixels per side.
      pairs: timed calls of each side, by row.
      warm_up: calls of each that are not timed: by the third, neither asks the system for memory.
      sampled: steps of sampling that a call runs.
      compared: sizes at which gradients are compared, and fields of the UNet that are others there.
      full: torch.compile and fresh starts are measured.
      together: pieces of work that a call does before it waits: one on a CPU; on a GPU waiting
        after each would show the host's time, which a training hides.
      pause: seconds of rest before each timed call, ten times as long as torch's workers spin
        after one.
    """

    sizes: tuple[int, ...]
    pairs: Mapping[str, int]
    warm_up: int
    sampled: int
    compared: Mapping[int, Mapping[str, Any]]
    full: bool
    together: int = 1
    pause: float = 0.1


# Every kind of layer at the paper's widths; compiling all of them takes longer than timing them.
SMALLER = {"multiples": (1, 2), "attention_levels": (2,), "num_res_blocks": 1}
QUICK = Effort(
    SIZES[:1],
    {"forward_32": 9, "train_32": 7, "sampling_32": 5},
    warm_up=2,
    sampled=2,
    compared={32: SMALLER},
    full=False,
)
FULL = Effort(
    SIZES,
    {"forward_32": 21, "forward_64": 11, "train_32": 11, "train_64": 7, "sampling_32": 9},
    warm_up=3,
    sampled=8,
    compared={32: {}, 64: SMALLER},
    full=True,
)
