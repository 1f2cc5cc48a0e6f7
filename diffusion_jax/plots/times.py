"""The tables of a data set's times, and what is said beneath them, as text."""

import math

import numpy as np

from diffusion_jax.regimes.analysis import Analysis
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.measures import level_of
from diffusion_jax.regimes.transitions import Regimes
from diffusion_jax.runtime.text import shown

MOST_COLUMNS = 4


def number(value: float) -> str:
    """A time or another value, as the tables show it: three decimals or three digits."""
    return f"{value:.3f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def _interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "none: Lambda <= 1"
    if not math.isfinite(estimate.low):
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _time(regimes: Regimes, name: str, interval: bool) -> str:
    estimate = regimes.times[name]
    if not math.isfinite(estimate.value):
        return regimes.beyond(name)
    return _interval(estimate) if interval else number(estimate.value)


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
    if analysis.partition is not None:
        parted, blank = analysis.partition.regimes, ["" for _ in (*both[1:], *classes)]
        for name in parted.times:
            meaning = level_of(name)[1].described({parted.levels[name][1]})
            rows.append([f"{name} of groups", meaning, _time(parted, name, True), *blank])
    value = ["value [95 % interval]"]
    if symmetry is not None:
        value = [f"with {symmetry.name} [95 %]", "without [95 %]"]
    return ["", "where", *value, *(f"from {name}" for name in classes)], rows


def information_rows(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """A table's header and rows: what x_t says of its class and its training point at the times."""
    curves = analysis.overall.curves
    columns = {
        "class_information": "I(c; x_t)",
        "point_information": "I(a; x_t)",
        "effective_points": "effective points",
        "largest_weight": "largest weight",
    }
    known = {name: head for name, head in columns.items() if name in curves}
    log_times = np.log(curves["point_information"].times)
    rows = []
    for name, time in sorted(analysis.times.items(), key=lambda item: item[1].value):
        if math.isfinite(time.value) and log_times[0] <= math.log(time.value) <= log_times[-1]:
            place = math.log(time.value)
            values = (np.interp(place, log_times, curves[curve].mean) for curve in known)
            rows.append([number(time.value), name, *(number(float(each)) for each in values)])
    return ["t", "", *known.values()], rows


def class_notes(analysis: Analysis) -> list[str]:
    """What is said of the partition and of the pairs of classes, one line each."""
    lines = []
    if (parted := analysis.partition) is not None:
        entropy = -float(np.sum(parted.weights * np.log(parted.weights)))
        lines.append(
            f"The partition is {shown(parted.name)}, of entropy {entropy:.3f} nats; images of "
            "classes that it does not name are left out of it"
        )
    found = [
        (pair.regimes.times["t_S_rate"].value, shown(pair.name))
        for pair in analysis.pairs
        if math.isfinite(pair.regimes.times["t_S_rate"].value)
    ]
    if found:
        (last, late), (first, early) = min(found), max(found)
        lines.append(
            f"Of the {len(analysis.pairs)} pairs of classes, each alone, {early} part first, with "
            f"t_S_rate = {number(first)}, and {late} last, with {number(last)}"
        )
    return lines
