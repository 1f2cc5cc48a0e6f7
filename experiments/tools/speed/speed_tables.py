"""What `regimes_speed` prints: the factors with their bounds, and how each came about."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.tools.speed.entropy_speed import LOOP_DRAWS

FORMS = ("loop", "batched", "curve")


def entropy_table(by_time: Sequence[Mapping[str, float]]) -> Table:
    """The ratios of variances and the factors at every time; see `prices`."""
    table = Table("t", "variance ratio", "i.i.d.", *(f"factor, {f}" for f in FORMS), "z")
    for row in by_time:
        table.add_row(
            f"{row['time']:g}",
            f"{row['variance_ratio']:.3g}",
            f"{row['variance_ratio_unstratified']:.3g}",
            *(f"{row[f'factor_{form}']:.3g}" for form in FORMS),
            f"{row['difference_in_standard_errors']:+.2f}",
        )
    return table


def prices(entropy: Mapping[str, Any]) -> str:
    """What the columns of `entropy_table` mean, and what a draw takes."""
    each = entropy["seconds_per_draw"]
    return (
        "i.i.d.: if the points were taken at random in the engine too. z: difference of the two "
        "routes on the same draws, in standard errors of the published "
        f"one.\nMicroseconds per draw: loop {1e6 * each['published_loop']:.3g}, batched "
        f"{1e6 * each['published_batched']:.3g}, ours {1e6 * each['ours']:.3g}, and "
        f"{1e6 * each['ours_per_time_of_a_curve']:.3g} for each time of a curve of "
        f"{len(entropy['by_time'])}."
    )


def factors(report: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """How many times faster each analysis is, and how that came about."""
    entropy, cloning, top = report["entropy"], report["cloning"], report["Lambda"]
    least, ratio = entropy["least_favourable"], entropy["time_ratio"]
    whole = entropy["whole_call"]
    return {
        "entropy, loop": (
            least["factor_loop"],
            f"{ratio['loop']:.3g} per draw x {least['variance_ratio']:.3g} in draws, at the least "
            f"favourable t = {least['time']:g}",
        ),
        "entropy, loop, a whole call": (
            whole["factor"],
            f"{whole['published_loop_seconds_extrapolated']:.3g} s for "
            f"{whole['published_draws']:.3g} draws, extrapolated from {LOOP_DRAWS}, against "
            f"{whole['our_seconds']:.3g} s for {whole['our_draws']}",
        ),
        "entropy, loop, as part of a curve": (
            least["factor_curve"],
            f"{ratio['curve']:.3g} per draw and time",
        ),
        "entropy, batched": (least["factor_batched"], f"{ratio['batched']:.3g} per draw"),
        "cloning": (
            cloning["factor"],
            f"{cloning['published_seconds_extrapolated']:.4g} s against "
            f"{cloning['ours_seconds']:.3g} s; from {cloning['extrapolated_from']}",
        ),
        "Lambda": (
            top["factor"],
            f"{top['published_seconds']:.3g} s against {top['ours_seconds']:.3g} s; "
            f"{top['published']:.6g} and {top['ours']:.6g}",
        ),
    }


def judged(
    found: Mapping[str, tuple[float, str]], bounds: Mapping[str, float]
) -> tuple[Table, list[str]]:
    """The table of the factors, and a line for each that is under its bound; a NaN is.

    Args:
      found: from `factors`.
      bounds: for some of them, the least.
    """
    table, broken = Table("what", "times faster", "bound", "how"), []
    for name, (factor, how) in found.items():
        bound = bounds.get(name)
        holds = bound is None or factor >= bound
        if not holds:
            broken.append(f"{name}: {factor:.3g} is under {bound:g}")
        cell = "" if bound is None else f"{bound:g}" + ("" if holds else " BROKEN")
        table.add_row(name, f"{factor:.4g}", cell, how)
    return table, broken
