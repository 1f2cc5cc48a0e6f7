"""The figures and the page of `experiments.theories`."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from diffusion_jax.plots import page
from diffusion_jax.plots import theories as plots
from diffusion_jax.regimes.theories import FAMILIES
from diffusion_jax.runtime.files import write_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.runtime.text import shown
from experiments import theories_report as report
from experiments.cloning_report import printed
from experiments.theories_report import Findings


def figures(findings: Findings) -> Iterator[page.Picture]:
    """The figures, each with its caption."""
    summary, times, marks = findings.summary, findings.times, findings.marks
    r_squared = {
        source: {name: [each.r_squared for each in found] for name, found in theories.items()}
        for source, theories in summary.resemblance.items()
    }
    yield page.Picture.of(
        "resemblance.png",
        plots.draw_resemblance(times, r_squared, marks),
        "How much of what the network predicts each theory explains: R² of the predicted images, "
        "with 95 % intervals over images. Below -0.25 nothing is drawn. Upright lines are the "
        "training set's t_S and t_C.",
    )
    if known := report.with_noise(findings):
        yield _losses(findings, known)
    patches = {
        source: {family: [report.sides(each) for each in row] for family, row in families.items()}
        for source, families in summary.patches.items()
        if families
    }
    sides = sorted({each.patch for each in findings.theories if each.patch is not None})
    if patches:
        yield page.Picture.of(
            "patches.png",
            plots.draw_patches(times, patches, sides, marks),
            "The patch with the largest R², of those that were compared. Bars reach to the "
            "patches that these images cannot rule out: those that are the best in at least one "
            "of forty bootstrap replicates.",
        )
    if findings.two_moments is not None:
        yield _two_moments(findings)
    if findings.samples and findings.points.shape[3] in (1, 3):
        yield _samples(findings)
    if findings.two is not None:
        yield from _two_networks(findings)


def _losses(findings: Findings, known: list[str]) -> page.Picture:
    curves = {}
    for source in known:
        theories = findings.summary.resemblance[source]
        widest = max(theories.values(), key=lambda found: found[0].images)
        own = {name: [each.theory_loss for each in found] for name, found in theories.items()}
        curves[source] = {"network": [each.network_loss for each in widest]} | own
    return page.Picture.of(
        "losses.png",
        plots.draw_losses(findings.times, curves, findings.marks),
        "Mean squared error of the predicted noise, with 95 % intervals over images. On training "
        "images nothing has a smaller one than the exact score, in expectation; what lies above it "
        "is E|D - D_exact|², in the noise's units.",
    )


def _two_moments(findings: Findings) -> page.Picture:
    exact, moments = findings.exact, findings.two_moments
    assert moments is not None
    named = {"the data": exact, "two moments per class": moments}
    return page.Picture.of(
        "two_moments.png",
        plots.draw_two_moments(
            exact.curves["phi"],
            moments.curves["phi"],
            {name: each.times["t_S_phi"] for name, each in named.items()},
        ),
        "Probability that two clones end in one class: of the exact score of the data, and of the "
        "same data with no more than the mean and the covariance of each class.",
    )


def _samples(findings: Findings) -> page.Picture:
    rows = []
    for name, images in findings.samples.items():
        text, each = name, findings.rows[name]
        if name == "network":
            text = "the network"
        elif name != "other":
            text += f"\ncorrelation {each.correlation.value:.2f}"
        if name != "other":
            rows.append((text, images))
    rows.append(("nearest training image\nof the network's", findings.nearest["network"][0]))
    return page.Picture.of(
        "samples.png",
        plots.draw_rows(rows, findings.images.mean),
        "Samples from the same initial noise, a column each, by DDIM. The number is the median "
        "over the images of their correlation with the network's (all "
        f"{len(findings.samples['network'])} of them; 2412.20292 calls it r²).",
    )


def _two_networks(findings: Findings) -> Iterator[page.Picture]:
    curves = {
        source: {
            "R²": [each.r_squared for each in found],
            "cosine": [each.cosine for each in found],
        }
        for source, found in findings.others.items()
    }
    yield page.Picture.of(
        "other.png",
        plots.draw_resemblance(
            findings.times, curves, findings.marks, "the two networks' predicted images"
        ),
        "The two networks on the same noisy images: R² of what the other one predicts, and the "
        "cosine after removing the mean.",
    )
    if not findings.samples or findings.points.shape[3] not in (1, 3):
        return
    own, others = (findings.nearest[name] for name in ("network", "other"))
    pair = findings.rows["other"].correlation.value
    yield page.Picture.of(
        "other_samples.png",
        plots.draw_rows(
            [
                (f"its nearest\ntraining image\n{own[1].value:.2f}", own[0]),
                ("the network", findings.samples["network"]),
                (f"the other network\n{pair:.2f}", findings.samples["other"]),
                (f"its nearest\ntraining image\n{others[1].value:.2f}", others[0]),
            ],
            findings.images.mean,
        ),
        "Samples of the two networks from the same initial noise, between the training images of "
        "each that are nearest to them. Numbers are median correlations: of the two networks' "
        "samples, and of samples with these training images.",
    )


_PATCHES = (
    "local 5 is the local theory of patches of 5 x 5 pixels, and so on. A network with group "
    "normalisation or attention sees the whole image at every pixel, so that no theory of patches "
    "can be all of it."
)


def _texts(findings: Findings) -> list[str]:
    settings = findings.settings
    return [
        f"R² = 1 - E|D_net - D_theory|²/E|D_net - m|², with m the mean of what the network "
        f"predicts at that t: 1 where the theory is the network, 0 where the mean image would do "
        f"as well. D is the predicted image. The network has the averaged parameters of step "
        f"{settings['run_step']}, computes in float32 and is not clipped here.",
        "Noised images are taken from the training set, and from images that were held out where "
        "there are any; trajectories are the states of the model's own ancestral samples "
        f"({settings['trajectories']}). Intervals are 95 % bootstrap intervals over whole images; "
        "they cover neither the choice of the training set nor that of the network's seed.",
        "Theories: "
        + "; ".join(
            f"{name}, {FAMILIES[name].about}"
            for name in dict.fromkeys(each.family for each in findings.theories)
        )
        + ".",
        "An error of the predicted noise is sqrt(e^2t - 1) times as large in D: at large t, where "
        "images hardly differ in D, the network's own errors are much of its variance, and no "
        "theory explains them.",
        *([_PATCHES] if any(each.patch is not None for each in findings.theories) else []),
    ]


def _tables(findings: Findings) -> Iterator[page.Part]:
    yield page.Table(["", "the training set's exact score"], report.time_rows(findings))
    for source in findings.sources:
        count = max(each.images for each in findings.summary.closest[source])
        yield page.Paragraph(
            f"On {source}: the closest theory, those that {count} images cannot rule out, and the "
            f"best patch of each family."
        )
        rows = report.closest_rows(findings, source)
        yield page.Table(report.closest_header(findings, source), rows)
        yield page.Paragraph(f"R² of each theory, {source}.")
        yield page.Table(report.header(findings.times), report.r_squared_rows(findings, source))
    for source in report.with_noise(findings):
        yield page.Paragraph(f"Squared error of the predicted noise, {source}.")
        yield page.Table(report.header(findings.times), report.loss_rows(findings, source))


def _sample_parts(findings: Findings) -> Iterator[page.Part]:
    settings = findings.settings
    yield page.Paragraph(
        f"Samples from one seed: {settings['samples']} images from the same initial noise, by DDIM "
        f"with {settings['sample_calls']} calls of each. The network's are kept within the data's "
        f"range as its own samples are, those of the theories need no bound. A theory of patches "
        f"takes at each step the patch that is the best at the nearest time, on "
        f"{settings['patches_chosen_on']}. Medians over images: the correlation of the pixels of "
        f"each pair (2412.20292 calls it r², though it is not squared), its square, and R² over "
        f"the pixels of each image (2509.09672). The distance ratio is the distance to the nearest "
        f"training image over that to the second nearest; under 1/3 counts as memorised."
    )
    yield page.Table(report.SAMPLES_HEADER, report.sample_rows(findings))


def write(out: Path, findings: Findings, console: Console) -> None:
    """Prints the tables and writes result.json, the figures and report.html."""
    for source in findings.sources:
        rows = report.r_squared_rows(findings, source)
        console.print(f"R^2 of the network by each theory, on {source}:", highlight=False)
        print_table(console, printed(report.header(findings.times), rows))
        rows = report.closest_rows(findings, source)
        print_table(console, printed(report.closest_header(findings, source), rows))
    if findings.samples:
        console.print("Samples from one seed, beside the network's:")
        print_table(console, printed(report.SAMPLES_HEADER, report.sample_rows(findings)))
    print_table(console, printed(["", "exact score"], report.time_rows(findings)))
    if findings.two is not None:
        console.print("The two networks:")
        print_table(console, printed(report.header(findings.times), report.other_rows(findings)))
    for text in findings.warnings:
        console.print(f"warning: {shown(text)}", style="yellow", highlight=False, markup=False)
    write_json(out / "result.json", report.to_json(findings))
    pictures = list(figures(findings))
    for picture in pictures:
        picture.save(out)
    parts: list[page.Part] = [page.Paragraph(text) for text in _texts(findings)]
    parts += [page.Paragraph(f"Warning: {text}.", warning=True) for text in findings.warnings]
    parts += [*_tables(findings)]
    if findings.samples:
        parts += [*_sample_parts(findings)]
    if findings.two is not None:
        text = f"Beside the network of {findings.two.folder}, on the same noisy images."
        table = page.Table(report.header(findings.times), report.other_rows(findings))
        parts += [page.Paragraph(text), table]
    title = f"What {Path(findings.settings['run_dir']).name} resembles"
    page.save(out / "report.html", title, [*parts, *pictures])
