"""The figures and the page of `experiments.modes`."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from diffusion_jax.comparing.sources import TRAINING
from diffusion_jax.plots import modes as plots
from diffusion_jax.plots import page
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.theories import FAMILIES
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.runtime.text import shown
from experiments import modes_report as report
from experiments.cloning_report import printed
from experiments.modes_report import NETWORK, Findings


def _curves(
    findings: Findings, curve: str, names: set[str] | None = None
) -> dict[str, dict[str, list[Estimate]]]:
    """A number of each denoiser, or of some, by source."""
    return {
        source: {
            name: report.estimates(found.curves[curve])
            for name, found in own.items()
            if names is None or name in names
        }
        for source, own in findings.table.items()
    }


def figures(findings: Findings) -> Iterator[page.Picture]:
    """The figures, each with its caption."""
    times, marks = findings.times, findings.marks
    yield page.Picture.of(
        "open_modes.png",
        plots.draw_open_modes(
            times,
            _curves(findings, "open_modes"),
            {
                source: {name: found.at_least for name, found in own.items()}
                for source, own in findings.table.items()
            },
            _curves(findings, "trace"),
            findings.leading,
            marks,
            findings.mode_times,
        ),
        f"Above: how many eigenvalues of M = e^-t dD/dx are over 1/2, the mean over draws with "
        f"95 % intervals. {findings.leading} were looked for: at hollow triangles all of them are "
        f"open in one draw or more, and the number is a lower bound. Ticks at the top: the times "
        f"at which the training set's Gaussian opens its modes, of the first "
        f"{len(findings.eigenvalues)}. Below: the trace of M, which has no such bound. Upright "
        f"lines are the training set's t_S and t_C.",
    )
    if len(times) > 1:
        yield _spectra(findings)
    if any(found.clear.any() for own in findings.table.values() for found in own.values()):
        yield page.Picture.of(
            "dimension.png",
            plots.draw_curves(
                times, _curves(findings, "local_dimension"), marks, "local dimension"
            ),
            "The dimension of the data about x_t, where a gap of the spectrum over 1/2 tells it: "
            "the number of eigenvalues above the gap, the mean over the draws that have such a "
            "gap, with 95 % intervals. result.json has their share.",
        )
    skewed = {name for name in findings.cells if name == NETWORK or _is_local(name)}
    if skewed:
        yield page.Picture.of(
            "asymmetry.png",
            plots.draw_curves(
                times, _curves(findings, "asymmetry", skewed), marks, "|J - J'|/|J + J'|", log=True
            ),
            "How far the Jacobian is from symmetric, which that of every true score is.",
        )
    if findings.stops and findings.images.images.shape[3] in (1, 3):
        yield _along(findings)
    if findings.learned is not None:
        yield _learned(findings)


def _is_local(name: str) -> bool:
    family = name.rpartition("_")[0]
    return family in FAMILIES and FAMILIES[family].local


def _spectra(findings: Findings) -> page.Picture:
    source = TRAINING if TRAINING in findings.table else findings.sources[0]
    spectra = {name: found.eigenvalues for name, found in findings.table[source].items()}
    return page.Picture.of(
        "spectra.png",
        plots.draw_spectra(findings.times, spectra),
        f"The eigenvalues of M, the mean over draws, on {source}: of each denoiser, at time t, the "
        f"i-th largest. The line is 1/2, below and left of which modes are open.",
    )


def _along(findings: Findings) -> page.Picture:
    stops = findings.stops
    return page.Picture.of(
        "trajectory.png",
        plots.draw_along(
            [report.time_of(findings, stop) for stop in stops],
            [stop.state for stop in stops],
            [stop.predicted for stop in stops],
            [stop.open_modes for stop in stops],
            [(stop.eigenvalues, stop.directions) for stop in stops],
            findings.images.mean,
        ),
        f"One trajectory of the {findings.whose} denoiser, from left to right: x_t, the predicted "
        f"image D, and the modes that opened since the time before, with their eigenvalues, the "
        f"first {plots.MOST_DIRECTIONS} of them at most. New are the directions of the space of "
        f"open modes that make an angle of more than 45 degrees with the space that was open at "
        f"the time before (principal angles), and among them the modes are those of M on these "
        f"directions. In the first column all open modes are new. Times at which all "
        f"{findings.leading} modes that were looked for are open are left out. Red and blue are "
        f"the two signs, which may be exchanged.",
    )


def _learned(findings: Findings) -> page.Picture:
    found = findings.learned
    assert found is not None
    return page.Picture.of(
        "learned_modes.png",
        plots.draw_learned(found.eigenvalues, found.curves, found.learned),
        f"Left: the variance of {findings.settings['learned_samples']} samples of each checkpoint "
        f"(averaged parameters, DDIM, {findings.settings['sample_calls']} calls) along the "
        f"training set's first {len(found.eigenvalues)} modes, over its own. Right: the update at "
        f"which the variance reaches half of the training set's for good, with 95 % intervals over "
        f"samples, of the modes that reach it.",
    )


def _texts(findings: Findings) -> list[str]:
    settings = findings.settings
    who = "There is no network: the exact score's own law is that of the images."
    if settings["run_step"] is not None:
        who = (
            f"The network has the averaged parameters of step {settings['run_step']}, computes in "
            f"float32 and is not clipped here; its trajectories are those of its own samples."
        )
    return [
        f"M = e^-t dD/dx, with D the predicted image, is what the denoiser keeps of each direction "
        f"of x_t. A mode is open where its eigenvalue is over 1/2; of the training set's Gaussian "
        f"the mode of variance l opens at t = 1/2 log(1 + l), with the covariance divided by n. "
        f"The trace of M is the number of degrees of freedom. {who}",
        "Of a network and of theories of patches, whose M is not symmetric, the eigenvalues are "
        "those of (M + M')/2, by Lanczos' method; their traces are estimates over random probes, "
        "whose error is in result.json and in the intervals.",
        f"Intervals are a bootstrap over the {settings['draws']} draws of each source: they cover "
        f"the draws, not what another training of the network would give.",
    ]


def _tables(findings: Findings) -> Iterator[page.Part]:
    header = report.header(findings)
    for source, own in findings.table.items():
        yield page.Paragraph(f"Open modes and traces, {source}.")
        yield page.Table(header, report.open_rows(own))
    for source in findings.with_noise:
        yield page.Paragraph(
            f"Noise loss and trace, {source}: E|ε - z|² = 2 E tr M + E(|ε|² - |z|²) for any "
            f"denoiser, by integration by parts in the noise z, E|z|² = d; and E tr M for the "
            f"exact score on its own images. They agree up to the chance of "
            f"{findings.settings['draws']} draws; result.json has the difference with its interval."
        )
        yield page.Table(header, report.identity_rows(findings.table[source]))
    if findings.learned is not None:
        yield page.Paragraph("The training set's modes, and when samples have half their variance.")
        yield page.Table(report.LEARNED_HEADER, report.learned_rows(findings.learned))
    yield page.Table(["", "training set"], report.time_rows(findings))


def write(out: Path, findings: Findings, console: Console) -> None:
    """Prints the tables and writes result.json, the figures and report.html."""
    header = report.header(findings)
    for source, own in findings.table.items():
        console.print(f"Open modes and traces, {source}:", highlight=False)
        print_table(console, printed(header, report.open_rows(own)))
    for source in findings.with_noise:
        console.print(f"Noise loss and trace, {source}:", highlight=False)
        print_table(console, printed(header, report.identity_rows(findings.table[source])))
    if findings.learned is not None:
        console.print("Learned modes:")
        print_table(console, printed(report.LEARNED_HEADER, report.learned_rows(findings.learned)))
    print_table(console, printed(["", "training set"], report.time_rows(findings)))
    for text in findings.warnings:
        console.print(f"warning: {shown(text)}", style="yellow", highlight=False, markup=False)
    write_json(out / "result.json", report.to_json(findings))
    pictures = list(figures(findings))
    for picture in pictures:
        picture.save(out)
    parts: list[page.Part] = [page.Paragraph(text) for text in _texts(findings)]
    parts += [page.Paragraph(f"Warning: {text}.", warning=True) for text in findings.warnings]
    parts += [*pictures, *_tables(findings)]
    page.save(out / "report.html", f"Open modes, {Path(findings.settings['what']).name}", parts)
