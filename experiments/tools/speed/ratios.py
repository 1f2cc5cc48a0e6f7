"""The benchmark's ratios of times, and the bounds on them."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tools.speed import timing

# Largest ratio to the reference; what is not in `ratios` is explained where it is measured. Such
# that a bad day keeps them: the largest of four runs on several machines were 1.13, 0.91, 1.07,
# 1.13, 0.83 and, of the starts, 0.37.
BOUNDS = {
    "forward_32": 1.2,
    "forward_64": 1.1,
    "train_32": 1.2,
    "train_64": 1.2,
    "sampling_32": 1.0,
    "data_pipeline": 0.01,
    "second_start": 0.45,
}
DIFFUSION_STEPS = 1000


def ratio(
    timed: Mapping[str, Sequence[Sequence[float]]],
) -> dict[str, Any]:
    """The median ratio of paired seconds to the reference in the form that is faster.

    Args:
      timed: for each form of the reference, the seconds of JAX's calls and of its own, which took
        turns.

    Returns:
      `median`, `interval`, `coverage` and `count` of the ratios, of the form whose median is the
      largest, and `reference`, its name.
    """
    medians = {
        name: timing.median_interval([ours / theirs for ours, theirs in zip(*pair, strict=True)])
        for name, pair in timed.items()
    }
    reference = max(medians, key=lambda name: medians[name].median)
    return medians[reference].to_json() | {"reference": reference}


def against_quickest_adam(row: Mapping[str, Any], adam: Mapping[str, float]) -> dict[str, Any]:
    """The ratio to a reference whose Adam is its quickest form, which is not torch's default.

    Args:
      row: of train steps, in the report's `ratios`.
      adam: seconds of a step of each form of Adam, `default` among them.
    """
    gain = adam["default"] - min(adam.values())
    timed = row["timed_seconds"][row["reference"]]
    pairs = zip(timed["JAX"], timed["PyTorch"], strict=True)
    return timing.median_interval([ours / (theirs - gain) for ours, theirs in pairs]).to_json()


def extrapolate(seconds: float, steps: int) -> float:
    """Seconds of all 1000 steps from those of some; what a call costs once is counted as often."""
    return seconds * DIFFUSION_STEPS / steps


def bounded(report: Mapping[str, Any]) -> dict[str, float]:
    """What has a bound, as far as it was measured.

    Args:
      report: of `benchmark`.
    """
    values = {name: row["median"] for name, row in report["ratios"].items()}
    if "data_pipeline" in report:
        values["data_pipeline"] = report["data_pipeline"]["share_alone"]
    if "start" in report:
        values["second_start"] = report["start"]["second_to_first"]
    return values


def broken_bounds(values: Mapping[str, float]) -> list[str]:
    """Names what is over its bound; a NaN is. What was not measured is not judged."""
    return [
        f"{name}: {values[name]:.3g} is over {bound:g}"
        for name, bound in BOUNDS.items()
        if name in values and not values[name] <= bound
    ]
