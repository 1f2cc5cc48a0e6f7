"""What `experiments.memorisation` found: its curves and times, as tables and as JSON."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion_jax.memorising.cells import Cell
from diffusion_jax.memorising.series import Series
from diffusion_jax.plots.memorisation import Line, Times
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.loss_information import Resampled
from diffusion_jax.regimes.training_times import Reached, power_law
from diffusion_jax.training import saved_config
from experiments.memorisation_options import Options


@dataclass(frozen=True)
class Findings:
    """Everything that was measured.

    Attributes:
      options: what was asked for.
      series: of each run that was evaluated.
      failed: why runs did not end well, one sentence each.
      stopped: at which update early stopping ended a run, and why.
    """

    options: Options
    series: list[Series]
    failed: dict[Cell, str]
    stopped: dict[Cell, dict[str, object] | None]

    @property
    def widths(self) -> list[int]:
        """Base channels of the runs."""
        return sorted({each.cell.width for each in self.series})

    @property
    def nats(self) -> float:
        """Growth of G from which on a model memorises."""
        return self.options.config.stopping.stop_nats

    @cached_property
    def kinds_of_time(self) -> dict[str, tuple[str, Callable[[Series], Reached | None]]]:
        """What each time is, in figures and tables, and how a run has it."""
        level, nats = self.options.level, self.nats
        found: dict[str, tuple[str, Callable[[Series], Reached | None]]] = {}
        if any(each.tau_gen is not None for each in self.series):
            found["tau_gen"] = ("τ_gen", lambda each: each.tau_gen)
        found["tau_mem"] = (f"τ_mem, {level:.0%} copies", lambda each: each.tau_mem(level))
        unit = "nat" if nats == 1 else "nats"
        found["tau_nats"] = (f"G grown by {nats:g} {unit}", lambda each: each.tau_nats(nats))
        return found

    @cached_property
    def times(self) -> dict[int, dict[str, Times]]:
        """Each time of all runs of a width, against n."""
        return {
            width: {
                name: _times(label, [each for each in self.series if each.cell.width == width], of)
                for name, (label, of) in self.kinds_of_time.items()
            }
            for width in self.widths
        }

    def lines(self, of: Callable[[Series], Resampled | np.ndarray]) -> list[Line]:
        """A quantity of every run, for figures."""
        found = []
        for each in self.series:
            value = of(each)
            cell, low, high = each.cell, None, None
            if isinstance(value, Resampled):
                (low, high), value = value.interval, value.value
            found.append(Line(cell.size, cell.width, each.updates, value, low, high))
        return found


def _times(label: str, series: list[Series], of: Callable[[Series], Reached | None]) -> Times:
    found = [(each, reached) for each in series if (reached := of(each)) is not None]
    within = [(each.cell.size, one) for each, one in found if math.isfinite(one.update)]
    told = [(size, one) for size, one in within if not one.from_start]
    return Times(
        label,
        [size for size, _ in told],
        [one.estimate for _, one in told],
        [(e.cell.size, float(e.updates[-1])) for e, one in found if not math.isfinite(one.update)],
        [(size, one.update) for size, one in within if one.from_start],
        power_law([size for size, _ in told], [one for _, one in told]),
    )


def stacked(name: str) -> Callable[[Series], Resampled]:
    """A number of the information at each evaluation, with its replicates."""

    def of(series: Series) -> Resampled:
        each = [getattr(found, name) for found in series.information]
        values = np.array([one.value for one in each], np.float64)
        return Resampled(values, np.stack([one.replicates for one in each], axis=-1))

    return of


def has_share(findings: Findings) -> bool:
    """Whether all runs have a memory share."""
    return all(found.share is not None for each in findings.series for found in each.information)


def _estimate(values: Resampled, i: int = -1) -> dict[str, float]:
    low, high = values.interval
    return {"value": values.value[i], "low": low[i], "high": high[i]}


def _cell(findings: Findings, each: Series) -> dict[str, Any]:
    """What result.json says of one run."""
    cell = each.cell
    curves: dict[str, Any] = {"memorised_fraction": each.memorised}
    curves["nats_gained"] = each.gained
    curves |= {
        name: stacked(of)(each)
        for name, of in (
            ("training_nats", "training"),
            ("held_out_nats", "held_out"),
            ("nats_per_image", "gap"),
            *([("memory_share", "share")] if each.information[-1].share is not None else []),
        )
    }
    found: dict[str, Any] = {
        "size": cell.size,
        "width": cell.width,
        "replica": cell.replica,
        "steps": cell.steps,
        "failed": findings.failed.get(cell),
        "stopped": findings.stopped.get(cell),
    }
    for name, (_, of) in findings.kinds_of_time.items():
        reached = of(each)
        found[name] = found[f"{name}_from_start"] = None
        if reached is not None and math.isfinite(reached.update):
            found[name] = reached.estimate
            found[f"{name}_from_start"] = reached.from_start
    for name in ("nats_per_image", "memory_share"):
        found[name] = _estimate(curves[name]) if name in curves else None
    found["information_time"] = each.time
    found["updates"] = each.updates
    found["series"] = {
        name: {"value": curve.value, "low": curve.interval[0], "high": curve.interval[1]}
        for name, curve in curves.items()
    }
    low, high = each.wilson
    found["series"]["memorised_fraction"] |= {"low": low, "high": high}
    found["series"]["neighbour_ratio"] = each.ratio
    if each.kinds is not None:
        fractions = [kinds.fractions() for kinds in each.kinds]
        found["series"]["kinds"] = {name: [one[name] for one in fractions] for name in fractions[0]}
    found["series"]["distances"] = each.distances
    found["training_images"] = each.own
    low, high = each.bands.gap.interval
    found["bands"] = {"time": each.edges, "gap": each.bands.gap.value, "low": low, "high": high}
    if each.bands.share is not None:
        found["bands"]["memory_share"] = each.bands.share.value
    if each.modes is not None:
        found["modes"] = {"eigenvalues": each.modes.eigenvalues, "learned": each.modes.learned}
    return found


def to_json(findings: Findings) -> dict[str, Any]:
    """What result.json holds; null for what was not reached."""
    options = findings.options
    laws = {
        width: {
            name: None
            if each.law is None
            else {"exponent": each.law.exponent, "prefactor": each.law.prefactor}
            for name, each in times.items()
        }
        for width, times in findings.times.items()
    }
    return {
        "settings": {
            "sizes": options.sizes,
            "widths": findings.widths,
            "replicas": options.replicas,
            "level": options.level,
            "nats": findings.nats,
            "config": saved_config.to_dict(options.config),
        },
        "laws": laws,
        "cells": {each.cell.name: _cell(findings, each) for each in findings.series},
        "failed": {cell.name: why for cell, why in findings.failed.items()},
    }


def _shown(found: Reached | None, last: float) -> str:
    if found is None:
        return ""
    if not math.isfinite(found.update):
        return f"> {last:.0f}"
    each = found.estimate
    if found.from_start:
        return f"< {each.value:.0f}"
    low, high = (f"{end:.0f}" if math.isfinite(end) else "?" for end in (each.low, each.high))
    return f"{each.value:.0f} ({low} to {high})"


def rows(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """The table of all runs."""
    header = ["n", "base channels", "replica", "updates", "memorised"]
    header += [label for label, _ in findings.kinds_of_time.values()]
    header += ["G (nats)", "M"]
    found = []
    for each in findings.series:
        low, high = each.wilson[:, -1]
        memorised = f"{each.memorised.value[-1]:.0%} ({low:.0%} to {high:.0%})"
        last = float(each.updates[-1])
        gap, share = each.information[-1].gap.estimate, each.information[-1].share
        found.append(
            [
                f"{each.cell.size}",
                f"{each.cell.width}",
                f"{each.cell.replica}",
                f"{last:.0f}",
                memorised,
                *(_shown(of(each), last) for _, of in findings.kinds_of_time.values()),
                f"{gap.value:.2f} ({gap.low:.2f} to {gap.high:.2f})",
                "" if share is None else f"{float(share.value):.2f}",
            ]
        )
    return header, found


def words(findings: Findings) -> list[str]:
    """What the laws say, one sentence each."""
    found = []
    for width, times in findings.times.items():
        for each in times.values():
            if each.law is not None:
                b: Estimate = each.law.exponent
                found.append(
                    f"base channels {width}: {each.label} grows as n^{b.value:.2f} "
                    f"({b.low:.2f} to {b.high:.2f}), of {len(each.law.sizes)} trainings"
                )
    return found
