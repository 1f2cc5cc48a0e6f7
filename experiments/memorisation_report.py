"""What `experiments.memorisation` prints and writes: tables, result.json, figures, report.html."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from diffusion_jax.memorising.cells import Cell
from diffusion_jax.memorising.series import TOLD_BY, Series
from diffusion_jax.plots import memorisation as plots
from diffusion_jax.plots import modes, page
from diffusion_jax.plots.memorisation import Line, Times
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.loss_information import Resampled
from diffusion_jax.regimes.training_times import Reached, power_law
from diffusion_jax.runtime.files import plain, write_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.training import saved_config
from experiments.memorisation_options import Options


@dataclass(frozen=True)
class Findings:
    """Everything that was measured.

    Attributes:
      options: what was asked for.
      series: of each run that was evaluated.
      failed: why runs did not end well, a sentence each.
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


def _stacked(name: str) -> Callable[[Series], Resampled]:
    """A number of the information at each evaluation, with its replicates."""

    def of(series: Series) -> Resampled:
        each = [getattr(found, name) for found in series.information]
        values = np.array([one.value for one in each], np.float64)
        return Resampled(values, np.stack([one.replicates for one in each], axis=-1))

    return of


def _has_share(findings: Findings) -> bool:
    return all(found.share is not None for each in findings.series for found in each.information)


def _estimate(values: Resampled, i: int = -1) -> dict[str, float]:
    low, high = values.interval
    return {"value": values.value[i], "low": low[i], "high": high[i]}


def _cell(findings: Findings, each: Series) -> dict[str, Any]:
    """What result.json says of one run."""
    cell = each.cell
    curves: dict[str, Any] = {"memorised_fraction": each.memorised}
    curves |= {
        name: _stacked(of)(each)
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
        found[name] = None
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
    found["series"]["nats_gained"] = each.gained
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


def _rows(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """The table of all runs."""
    header = ["n", "base channels", "updates", "memorised"]
    header += [label for label, _ in findings.kinds_of_time.values()]
    header += ["G (nats)", "M"]
    rows = []
    for each in findings.series:
        low, high = each.wilson[:, -1]
        memorised = f"{each.memorised.value[-1]:.0%} ({low:.0%} to {high:.0%})"
        last = float(each.updates[-1])
        gap, share = each.information[-1].gap.estimate, each.information[-1].share
        rows.append(
            [
                f"{each.cell.size}",
                f"{each.cell.width}",
                f"{last:.0f}",
                memorised,
                *(_shown(of(each), last) for _, of in findings.kinds_of_time.values()),
                f"{gap.value:.2f} ({gap.low:.2f} to {gap.high:.2f})",
                "" if share is None else f"{float(share.value):.2f}",
            ]
        )
    return header, rows


def _pictures(findings: Findings) -> Iterator[page.Picture]:
    series, level = findings.series, findings.options.level
    time = series[0].time
    fraction = [
        replace(line, low=low, high=high)
        for line, each in zip(findings.lines(lambda e: e.memorised), series, strict=True)
        for low, high in [each.wilson]
    ]
    yield page.Picture.of(
        "memorised.png",
        plots.draw_collapse(fraction, "memorised fraction", level),
        "Samples three times nearer to their nearest training image than to the second, against "
        "the update and against updates per training image (95 % intervals over the samples).",
    )
    yield page.Picture.of(
        "gap.png",
        plots.draw_collapse(
            findings.lines(_stacked("gap")), f"G down to t = {time:.3g} (nats per image)"
        ),
        "G, the excess of the information that the losses have of held-out images over that of "
        "training images; no sample is drawn for it.",
    )
    if _has_share(findings):
        yield page.Picture.of(
            "share.png",
            plots.draw_collapse(findings.lines(_stacked("share")), "memory share M"),
            "The memory share M = G/(G + K): 1 for the exact score of the training images.",
        )
    training, held_out = (findings.lines(_stacked(name)) for name in ("training", "held_out"))
    yield page.Picture.of(
        "losses.png",
        plots.draw_losses(training, held_out, time),
        "Information in the losses of training images (dashed) and of held-out images.",
    )
    yield from _distances(findings)
    by_width = {width: list(times.values()) for width, times in findings.times.items()}
    yield page.Picture.of(
        "times.png",
        plots.draw_times(by_width),
        "When samples are as good as they become, and when they are copies. Intervals are those "
        "of the samples and images drawn to see it, not of another training.",
    )
    yield page.Picture.of(
        "phases.png",
        plots.draw_phases(fraction, by_width),
        "The memorised fraction in the plane of training set and training time.",
    )
    bands = {
        (each.cell.size, each.cell.width): (each.bands.gap.value, each.bands.gap.interval)
        for each in series
        if each.cell.replica == 0
    }
    yield page.Picture.of(
        "bands.png",
        plots.draw_bands(series[0].edges, bands, time),
        "At which t the models know their training images: what each part of the log-SNR adds to "
        "G at the last evaluation.",
    )
    yield from _kinds(findings)
    shown = max((e for e in series if e.modes is not None), key=lambda e: e.cell.size, default=None)
    if shown is not None and shown.modes is not None:
        found = shown.modes
        yield page.Picture.of(
            "modes.png",
            modes.draw_learned(found.eigenvalues, found.curves, found.learned),
            f"Variance of the samples along the principal components of the training set, n = "
            f"{shown.cell.size}, base channels {shown.cell.width}.",
        )


def _distances(findings: Findings) -> Iterator[page.Picture]:
    for width in findings.widths:
        own = [each for each in findings.series if each.cell.width == width and each.distances]
        if not own:
            continue
        lines = {
            name: [
                Line(each.cell.size, width, each.updates, each.distances[name]["frechet"])
                for each in own
            ]
            for name in own[0].distances
        }
        known = {name: {e.cell.size: e.own[name]["frechet"] for e in own} for name in lines}
        yield page.Picture.of(
            f"quality_w{width}.png",
            plots.draw_distances(lines, known, width),
            "Frechet distance of samples to held-out images in features that need no download; "
            "dotted, that of the training images. It is biased, alike at all updates.",
        )


def _kinds(findings: Findings) -> Iterator[page.Picture]:
    kinds = {}
    for each in findings.series:
        if each.kinds is not None and each.cell.replica == 0:
            fractions = [found.fractions() for found in each.kinds]
            by_name = {name: [one[name] for one in fractions] for name in fractions[0]}
            kinds[each.cell.size, each.cell.width] = (each.updates, by_name)
    if kinds:
        yield page.Picture.of(
            "kinds.png",
            plots.draw_kinds(kinds),
            "Samples that are memorised, spurious (three times nearer to another sample than to a "
            "training image) or novel.",
        )


def _words(findings: Findings) -> list[str]:
    """What the laws say, a sentence each."""
    words = []
    for width, times in findings.times.items():
        for each in times.values():
            if each.law is not None:
                b: Estimate = each.law.exponent
                words.append(
                    f"base channels {width}: {each.label} grows as n^{b.value:.2f} "
                    f"({b.low:.2f} to {b.high:.2f}), of {len(each.law.sizes)} trainings"
                )
    return words


def write(out: Path, findings: Findings, console: Console) -> None:
    """Prints the findings, and writes result.json, the figures and report.html."""
    header, rows = _rows(findings)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    print_table(console, table)
    words = _words(findings)
    for line in words:
        console.print(line, highlight=False)
    write_json(out / "result.json", plain(to_json(findings)))
    pictures = list(_pictures(findings))
    for picture in pictures:
        picture.save(out)
    time = findings.series[0].time
    parts: list[page.Part] = [
        page.Paragraph(
            "Trainings that differ in nothing but the number n of training images, and the width, "
            "evaluated at the same updates on the same held-out images. Information is taken down "
            f"to t = {time:.3g}."
        ),
        *(page.Paragraph(f"{cell.name}: {why}.", True) for cell, why in findings.failed.items()),
        page.Table(header, rows),
        *(page.Paragraph(f"{line[0].upper()}{line[1:]}.") for line in words),
        page.Paragraph(
            f"τ_gen is the first update whose samples have at most twice the lowest Frechet "
            f"distance, by {TOLD_BY.replace('_', ' ')}."
        ),
    ]
    page.save(out / "report.html", "When does it memorise", [*parts, *pictures])
