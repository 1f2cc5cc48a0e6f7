"""Images a second, and the share of a GPU's peak that the model's FLOPs take."""

import jax

from experiments.tools.gpu.flops import model_flops
from experiments.tools.speed.notes import note
from experiments.tools.speed.programs import Program

# Dense bfloat16 peak in TFLOP/s, from NVIDIA's data sheets (SXM forms).
PEAK_TFLOPS = {"H100": 989.4, "H200": 989.4, "A100": 312.0}


def throughput(
    batch: int, update: Program, seconds: float, peak_tflops: float | None
) -> dict[str, float]:
    """What the benchmark's report says of a train step.

    Args:
      batch: images an update.
      update: the train step.
      seconds: what one takes.
      peak_tflops: the GPU's peak; by default from its name, without which there is no utilisation.
    """
    found = {"images_per_second": batch / seconds}
    kind, flops = jax.devices()[0].device_kind, model_flops(update.lowered)
    known = (peak for name, peak in PEAK_TFLOPS.items() if name in kind)
    peak = peak_tflops or next(known, None)
    if peak is None:
        note(f"the peak of {kind} is not known, so no utilisation: give --peak-tflops")
    elif flops:
        found["model_flop_utilisation"] = flops / seconds / (1e12 * peak)
    return found
