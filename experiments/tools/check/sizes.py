"""How large the items of `gpu_check` are: in full, and tiny, to try the command on a CPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are in full.

    Attributes:
      fields: the UNet's that are not the paper's.
      pixels: a side, of the larger and the smaller images.
      batch: images per batch of each.
      batches: larger ones, of the larger images.
      together: updates that are timed together, with one wait.
      repeats: timed calls of each side.
      warm_up: calls of each that are not timed.
      chain: steps of sampling that a call runs.
      copied: MiB that are read, and as many written, to time the memory.
      side: of the square matrices multiplied.
      compared: fields of the UNet that is compared with float64.
      compared_images: how many images it takes, and of how many pixels per side.
      updates: whose losses are compared with float64's.
      points: training points of the posterior engine, for each of its timings.
      draws: of it.
      run: options of the train run that is resumed, and its updates.
      forms: with how many of its forms the run is resumed.
      options: how many of XLA's options are tried.
      paper: options of the paper's run.
      samples: of its samples.
      cloning: of its cloning.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    pixels: tuple[int, int] = (64, 32)
    batch: tuple[int, int] = (64, 128)
    batches: tuple[int, ...] = (128, 256, 512)
    together: int = 20
    repeats: int = 7
    warm_up: int = 2
    chain: int = 50
    copied: int = 1024
    side: int = 8192
    compared: Mapping[str, Any] = field(
        default_factory=lambda: {
            "base_channels": 32,
            "multiples": (1, 2, 2),
            "attention_levels": (2,),
            "num_res_blocks": 1,
        }
    )
    compared_images: tuple[int, int] = (4, 16)
    updates: int = 50
    points: tuple[int, ...] = (1_000, 10_000)
    draws: int = 2_048
    run: tuple[str, ...] = ()
    run_updates: int = 60
    forms: int = 2
    options: int = 5
    paper: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    cloning: tuple[str, ...] = ("--num-trunks", "128")


# Heads of 8 channels, the fewest that fused attention takes.
_SMALL = {"base_channels": 32, "multiples": (1,), "attention_levels": (), "num_res_blocks": 1}
_SMALL_RUN = (
    *("--base-channels", "8", "--multiples", "1", "--attention-levels", "1"),
    *("--num-res-blocks", "1", "--images-per-class", "40", "--batch-size", "8"),
    *("--diffusion-steps", "21", "--num-samples", "1", "--data", "mnist", "--image-size", "28"),
)
FULL = Sizes()
TINY = Sizes(
    fields=_SMALL,
    pixels=(4, 4),
    batch=(2, 4),
    batches=(4,),
    together=2,
    repeats=2,
    warm_up=1,
    chain=3,
    copied=8,
    side=128,
    compared=_SMALL,
    compared_images=(2, 8),
    updates=3,
    points=(50, 100),
    draws=64,
    run=_SMALL_RUN,
    run_updates=4,
    forms=1,
    options=3,
    # One class needs no classifier.
    paper=(*_SMALL_RUN, "--image-size", "28", "--classes", "1", "--steps", "4"),
    samples=("--num-samples", "2", "--calls", "5"),
    cloning=(*("--num-trunks", "30", "--calls", "5", "--times", "1.0", "--accuracy", "0.05"),),
)
