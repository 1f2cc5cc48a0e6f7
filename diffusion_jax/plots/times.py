"""The table of a data set's times, as text."""

import math

from diffusion_jax.regimes.analysis import Analysis
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.measures import level_of
from diffusion_jax.regimes.transitions import Regimes

MOST_COLUMNS = 4


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def _interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "none: Lambda <= 1"
    if not math.isfinite(estimate.low):
        return _number(estimate.value)
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _time(regimes: Regimes, name: str, interval: bool) -> str:
    estimate = regimes.times[name]
    if not math.isfinite(estimate.value):
        return regimes.beyond(name)
    return _interval(estimate) if interval else _number(estimate.value)


def rows_of(analysis: Analysis, class_intervals: bool) -> tuple[list[str], list[list[str]]]:
    """The table's header and rows: each time, overall and for the draws from each class.

    With a symmetry each time without it is beside that with it.
    """
    overall, classes = analysis.overall, analysis.per_class
    if len(classes) > MOST_COLUMNS:
        classes = {}
    symmetry = analysis.symmetry
    both = [analysis] if symmetry is None else [analysis, symmetry.without]
    spectra = [
        ("Lambda", "first channel", [each.first_channel.Lambda for each in both]),
        ("Lambda_all_channels", "all channels", [each.all_channels.Lambda for each in both]),
        ("t_S_spectrum", "1/2 log Lambda", [each.first_channel.t_S for each in both]),
        ("t_S_all_channels", "the same, all", [each.all_channels.t_S for each in both]),
    ][:: 1 if analysis.all_channels is not analysis.first_channel else 2]
    empty = ["" for _ in classes]
    rows = [[name, what, *map(_interval, values), *empty] for name, what, values in spectra]
    for name in overall.times:
        those = [each for each in (overall, *classes.values()) if name in each.levels]
        levels = {round(each.levels[name][1], 6) for each in those}
        values = [_time(each.overall, name, True) for each in both]
        own = [
            _time(each, name, class_intervals) if name in each.times else ""
            for each in classes.values()
        ]
        rows.append([name, level_of(name)[1].described(levels), *values, *own])
    value = ["value [95 % interval]"]
    if symmetry is not None:
        value = [f"with {symmetry.name} [95 %]", "without [95 %]"]
    return ["", "where", *value, *(f"from {name}" for name in classes)], rows
