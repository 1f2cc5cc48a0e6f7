"""The figures and the report of `experiments.memorisation`, and what it prints."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from diffusion_jax.memorising.series import TOLD_BY
from diffusion_jax.plots import memorisation as plots
from diffusion_jax.plots import modes, page
from diffusion_jax.plots.memorisation import Line
from diffusion_jax.runtime.files import plain, write_json
from diffusion_jax.runtime.tables import print_table
from experiments.memorisation_report import Findings, has_share, rows, stacked, to_json, words


def _fractions(findings: Findings) -> list[Line]:
    """The memorised fraction of every run with Wilson's intervals."""
    lines = findings.lines(lambda each: each.memorised)
    ends = (each.wilson for each in findings.series)
    return [
        replace(line, low=low, high=high) for line, (low, high) in zip(lines, ends, strict=True)
    ]


def _pictures(findings: Findings) -> Iterator[page.Picture]:
    yield from _memory(findings)
    yield from _distances(findings)
    yield from _times(findings)
    yield from _kinds(findings)
    yield from _modes(findings)


def _memory(findings: Findings) -> Iterator[page.Picture]:
    time = findings.series[0].time
    yield page.Picture.of(
        "memorised.png",
        plots.draw_collapse(_fractions(findings), "memorised fraction", findings.options.level),
        "Samples three times nearer to their nearest training image than to the second, against "
        "the update and against updates per training image (95 % intervals over the samples).",
    )
    yield page.Picture.of(
        "gap.png",
        plots.draw_collapse(
            findings.lines(stacked("gap")), f"G down to t = {time:.3g} (nats per image)"
        ),
        "G, the excess of the information that the losses have of held-out images over that of "
        "training images; no sample is drawn for it.",
    )
    if has_share(findings):
        yield page.Picture.of(
            "share.png",
            plots.draw_collapse(findings.lines(stacked("share")), "memory share M"),
            "The memory share M = G/(G + K): 1 for the exact score of the training images.",
        )
    training, held_out = (findings.lines(stacked(name)) for name in ("training", "held_out"))
    yield page.Picture.of(
        "losses.png",
        plots.draw_losses(training, held_out, time),
        "Information in the losses of training images (dashed) and of held-out images.",
    )


def _times(findings: Findings) -> Iterator[page.Picture]:
    series = findings.series
    by_width = {width: list(times.values()) for width, times in findings.times.items()}
    yield page.Picture.of(
        "times.png",
        plots.draw_times(by_width),
        "When samples are as good as they become, and when they are copies. Intervals are those "
        "of the samples and images drawn to see it, not of another training.",
    )
    yield page.Picture.of(
        "phases.png",
        plots.draw_phases(_fractions(findings), by_width),
        "The memorised fraction in the plane of training set and training time.",
    )
    bands = {
        (each.cell.size, each.cell.width): (each.bands.gap.value, each.bands.gap.interval)
        for each in series
        if each.cell.replica == 0
    }
    yield page.Picture.of(
        "bands.png",
        plots.draw_bands(series[0].edges, bands, series[0].time),
        "At which t the models know their training images: what each part of the log-SNR adds to "
        "G at the last evaluation.",
    )


def _modes(findings: Findings) -> Iterator[page.Picture]:
    with_modes = (each for each in findings.series if each.modes is not None)
    shown = max(with_modes, key=lambda each: each.cell.size, default=None)
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


def _explained(findings: Findings) -> Iterator[page.Paragraph]:
    if "tau_gen" in findings.kinds_of_time:
        yield page.Paragraph(
            f"τ_gen is the first update whose samples have at most twice the lowest Frechet "
            f"distance, by {TOLD_BY.replace('_', ' ')}; none where that stays over five times the "
            f"training images' own."
        )


def _remove_earlier(out: Path, drawn: list[str]) -> None:
    """Figures of an earlier report that this one does not have."""
    own = ("memorised", "gap", "share", "losses", "times", "phases", "bands", "kinds", "modes")
    for path in [*(out / f"{name}.png" for name in own), *out.glob("quality_w*.png")]:
        if path.name not in drawn:
            path.unlink(missing_ok=True)


def write(out: Path, findings: Findings, console: Console) -> None:
    """Prints the findings, and writes result.json, the figures and report.html."""
    header, cells = rows(findings)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name)
    for row in cells:
        table.add_row(*row)
    print_table(console, table)
    laws = words(findings)
    for line in laws:
        console.print(line, highlight=False, soft_wrap=True)
    write_json(out / "result.json", plain(to_json(findings)))
    pictures = list(_pictures(findings))
    _remove_earlier(out, [picture.name for picture in pictures])
    for picture in pictures:
        picture.save(out)
    time = findings.series[0].time
    parts: list[page.Part] = [
        page.Paragraph(
            "Trainings with other numbers n of training images, other widths, and as replicas on "
            "other images from another start, evaluated at the same updates on the same held-out "
            "images. A batch has no more than n images. Information is taken down to "
            f"t = {time:.3g}."
        ),
        *(page.Paragraph(f"{cell.name}: {why}.", True) for cell, why in findings.failed.items()),
        page.Table(header, cells),
        *(page.Paragraph(f"{line[0].upper()}{line[1:]}.") for line in laws),
        *_explained(findings),
    ]
    page.save(out / "report.html", "When does it memorise", [*parts, *pictures])
