"""Images per second, and the share of a GPU's peak that the model's FLOPs take."""

import jax

from experiments.tools.gpu.flops import model_flops
from experiments.tools.speed.cards import peak_tflops
from experiments.tools.speed.notes import note
from experiments.tools.speed.programs import Program


def throughput(
    batch: int,
    update: Program,
    seconds: float,
    bfloat16: bool,
    peak: float | None = None,
) -> dict[str, float]:
    """What is said of a train step of one update beside its seconds.

    Args:
      batch: images per update.
      update: the train step.
      seconds: what one update takes.
      bfloat16: whether it computes in bfloat16; else in TF32, of which the peak is half.
      peak: the GPU's in bfloat16, in TFLOP/s; by default from its name, without which there is no
        utilisation.
    """
    found = {"images_per_second": batch / seconds}
    kind, flops = jax.devices()[0].device_kind, model_flops(update.lowered)
    known = peak_tflops(kind, bfloat16) if peak is None else peak if bfloat16 else peak / 2
    if known is None:
        note(f"the peak of {kind} is not known, so there is no utilisation")
    elif flops:
        found["model_flop_utilisation"] = flops / seconds / (1e12 * known)
    return found
