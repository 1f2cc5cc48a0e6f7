"""A data set's regimes in one call: measured, shown, drawn and reported."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffusion_jax.data.arrays import image_set
from diffusion_jax.data.checks import check, require_memory
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.plots import page
from diffusion_jax.plots import regimes as plots
from diffusion_jax.regimes import analysis as numbers
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.transitions import SPECIATION_LEVEL, Regimes
from diffusion_jax.runtime.files import unwritten, write_json

MEANING = {
    "Lambda": "first channel",
    "Lambda_all_channels": "all channels",
    "t_S_spectrum": "1/2 log Lambda",
    "t_S_all_channels": "the same, all",
    "t_S_phi": "{phi}",
    "t_C_entropy": "f^e = 0.12 alpha",
    "t_C_phi": "phi_C = 1/2",
    "t_C_leave_one_out": "f_loo = 0",
    "t_C_phi_60": "phi_C = 0.6",
}

MOST_COLUMNS = 4
FIGURES = ("spectrum.png", "speciation.png", "collapse.png", "lipschitz.png", "samples.png")
_NO_LABELS = (
    "the images have no labels: phi, the class entropy and t_S_phi need them and are not given; "
    "t_S_spectrum and the collapse need none"
)


@dataclass(frozen=True, repr=False, eq=False)
class Study:
    """The regimes of a data set. Printed, it is the table of its times, with the warnings.

    Attributes:
      name: of the data set.
      images: the data set.
      analysis: all curves and times, in numbers.
      warnings: what to know before trusting a number, a sentence each.
      settings: how it was measured; saved with the results.
    """

    name: str
    images: ImageSet
    analysis: numbers.Analysis
    warnings: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def times(self) -> dict[str, Estimate]:
        """All times by name, with their 95 % intervals: t_S_spectrum, t_S_phi, t_C_phi, ..."""
        return self.analysis.times

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None, force_jupyter=False)
        with console.capture() as text:
            for warning in self.warnings:
                console.print(Text(f"warning: {warning}"))
            console.print(self.table())
            console.print(self.norm, highlight=False)
        lines = [line.rstrip() for line in text.get().splitlines()]
        return "\n".join([describe(self.images), *lines])

    @property
    def norm(self) -> str:
        """What E|x_t|^2 does along time, in words."""
        norm = self.analysis.norm
        if norm.critical_point == "nowhere":
            return (
                f"E|a|^2 = {norm.initial:.4g}, d = {norm.dimension}: E|x_t|^2 has no stationary "
                f"point"
            )
        return f"E|a|^2 = d = {norm.dimension}: E|x_t|^2 is the same at every t"

    def table(self) -> Table:
        """The table of times as rich prints it."""
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
        header, rows = rows_of(self.analysis, class_intervals=False)
        for name in header:
            table.add_column(Text(name), no_wrap=not name.startswith("from"), overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        return table

    def plot(self) -> Figure:
        """phi, phi_C and f^e/alpha along time, the three regimes shaded."""
        return plots.draw_regimes(self.analysis.overall.curves, self.times)

    def save(self, folder: Path | str) -> list[Path]:
        """Writes result.json, the figures and report.html into a folder, made if it is missing.

        Returns:
          The paths of the figures.

        Raises:
          UserError: they cannot be written.
        """
        folder = Path(folder).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in FIGURES:  # of an earlier study
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritten(folder, error) from error
        settings = self.settings | {"warnings": self.warnings}
        write_json(folder / "result.json", {"settings": settings} | numbers.to_json(self.analysis))
        pictures = list(_pictures(self))
        for picture in pictures:
            picture.save(folder)
        self._report(folder / "report.html", pictures)
        return [folder / picture.name for picture in pictures]

    def report(self, path: Path | str) -> None:
        """Writes one HTML page that shows everything and needs no other file.

        Raises:
          UserError: it cannot be written.
        """
        self._report(Path(path).expanduser(), list(_pictures(self)))

    def _report(self, path: Path, pictures: list[page.Picture]) -> None:
        parts: list[page.Part] = [
            page.Paragraph(
                f"{describe(self.images)}. Times are Ornstein-Uhlenbeck times: "
                "x_t = e^-t a + sqrt(1 - e^-2t) z. The curves are those of the exact empirical "
                "score; intervals cover the draws, and for Lambda the choice of the images."
            ),
            *(page.Paragraph(f"Warning: {text}.", warning=True) for text in self.warnings),
            page.Table(*rows_of(self.analysis, class_intervals=True)),
        ]
        if len(self.analysis.per_class) > MOST_COLUMNS:
            parts.append(page.Paragraph("The times of each class are in result.json."))
        page.save(
            path, f"Regimes of {self.name}", [*parts, page.Paragraph(f"{self.norm}."), *pictures]
        )


def analyse(
    images: np.ndarray | ImageSet,
    labels: np.ndarray | None = None,
    accuracy: float = 2e-3,
    max_draws: int = 50_000,
    seed: int = 0,
    name: str = "the images",
) -> Study:
    """When does a sample of these images commit to its class, and to a training image?

    No training is needed: the answers come from the covariance of the images and from their exact
    empirical score. See docs/regimes.md for the definitions of t_S and t_C.

    Args:
      images: (n, height, width), (n, height, width, channels) or flattened (n, d); integers from 0
        to 255, or floats in [0, 1]. Or an `ImageSet`, as `load_images` returns, labels and all.
      labels: one integer or string an image (n,); without them phi and its t_S are missing.
      accuracy: standard error asked for of phi, phi_C and f^e/alpha, at every time.
      max_draws: most draws of the posterior engine.
      seed: of the draws.
      name: of the data set, for the report's title.

    Raises:
      UserError: images or labels that cannot be used; the message says why.
    """
    if isinstance(images, ImageSet):
        if labels is not None:
            raise UserError("an ImageSet has its own labels: give images and labels as arrays")
        chosen = images
    else:
        chosen = image_set(images, labels)
    return measure(chosen, name, warnings_of(chosen), accuracy, int(max_draws), seed)


def warnings_of(images: ImageSet, memory_gib: float | None = None) -> list[str]:
    """What is odd about a set of images, a sentence each.

    Args:
      images: the data set.
      memory_gib: memory that measuring may take, in GiB; by default what is free.

    Raises:
      UserError: they have no regimes (see `checks.check`), or are too large for the memory.
    """
    warnings = check(images)
    n, d = len(images.images), math.prod(images.images.shape[1:])
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    require_memory(f"measuring {n} images of {d} values", (8 + 4 * copies) * n * d, memory_gib)
    return warnings if images.labels is not None else [*warnings, _NO_LABELS]


def measure(
    images: ImageSet,
    name: str,
    warnings: Iterable[str],
    accuracy: float,
    max_draws: int,
    seed: int,
    progress: Callable[[int, float], None] = lambda num_draws, error: None,
) -> Study:
    """What `analyse` does once the images are checked.

    Args:
      images: the data set.
      name: of the data set.
      warnings: see `warnings_of`.
      accuracy: see `analyse`.
      max_draws: see `analyse`.
      seed: see `analyse`.
      progress: see `transitions.measure`.

    Raises:
      UserError: see `regimes.analysis.measure`.
    """
    analysis = numbers.measure(
        images.images,
        images.labels,
        images.class_names,
        images.mean,
        jax.random.key(seed),
        accuracy,
        max_draws,
        progress,
    )
    settings = {
        "classes": images.class_names,
        "shape": images.images.shape[1:],
        "accuracy": accuracy,
        "max_draws": max_draws,
        "seed": seed,
    }
    return Study(name, images, analysis, (*warnings, *analysis.warnings), settings)


def describe(images: ImageSet) -> str:
    """How many images of how many values, in how many classes."""
    classes = len(images.class_names)
    kinds = f" in {classes} class{'es' * (classes != 1)}" if images.labels is not None else ""
    return f"{len(images.images)} images of {math.prod(images.images.shape[1:])} values{kinds}"


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def _interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return _number(estimate.value)
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _time(regimes: Regimes, name: str, interval: bool) -> str:
    if name not in regimes.times:
        return ""
    estimate = regimes.times[name]
    if not math.isfinite(estimate.value):
        return regimes.beyond(name)
    return _interval(estimate) if interval else _number(estimate.value)


def rows_of(analysis: numbers.Analysis, class_intervals: bool) -> tuple[list[str], list[list[str]]]:
    """The table's header and rows: each time, overall and for the draws from each class."""
    overall, classes = analysis.overall, analysis.per_class
    if len(classes) > MOST_COLUMNS:
        classes = {}
    spectra = {
        "Lambda": analysis.first_channel.Lambda,
        "t_S_spectrum": analysis.first_channel.t_S,
    }
    if analysis.all_channels is not analysis.first_channel:
        spectra["Lambda_all_channels"] = analysis.all_channels.Lambda
        spectra["t_S_all_channels"] = analysis.all_channels.t_S
    floors = {round(each.floor, 6) for each in (overall, *classes.values())}
    phi = f"phi = {overall.floor + (1 - overall.floor) * SPECIATION_LEVEL:.3f}"
    if len(floors) > 1:  # each has its own level
        phi = f"{100 * SPECIATION_LEVEL:.0f} % above floor"
    rows = []
    for name, meaning in MEANING.items():
        cells = [name, meaning.format(phi=phi)]
        if name in spectra:
            rows.append([*cells, _interval(spectra[name]), *("" for _ in classes)])
        elif name in overall.times:
            own = (_time(each, name, class_intervals) for each in classes.values())
            rows.append([*cells, _time(overall, name, True), *own])
    return ["", "where", "value [95 % interval]", *(f"from {name}" for name in classes)], rows


def _pictures(study: Study) -> Iterator[page.Picture]:
    """The figures that these images have."""
    analysis, pixels = study.analysis, study.images.images
    is_picture = min(pixels.shape[1:3]) > 1 and pixels.shape[3] in (1, 3)
    if math.isfinite(analysis.all_channels.t_S.value):
        yield _spectrum(analysis, pixels.shape[1:] if is_picture else None)
    if "phi" in analysis.overall.curves:
        yield _speciation(analysis)
    yield page.Picture.of(
        "collapse.png",
        plots.draw_collapse(analysis.overall.curves, analysis.times, analysis.num_points),
        "Above: excess entropy over alpha = log(n)/d, and the probability that two clones end in "
        "the same training point. Below: exp of the posterior's entropy, the effective number of "
        "training points behind x_t. Bands are 95 % intervals. The regimes are parted by "
        "phi_C = 1/2 and by t_S (phi); the other t_C is as good a boundary.",
    )
    yield page.Picture.of(
        "lipschitz.png",
        plots.draw_lipschitz(analysis.lipschitz),
        "Lipschitz constant of the exact empirical score. An explicit Euler step eta in "
        "Ornstein-Uhlenbeck time is stable while eta (2/Delta_t - 1) <= 2.",
    )
    if is_picture:
        yield _noisy_samples(study.images, analysis.times)


def _spectrum(analysis: numbers.Analysis, shape: tuple[int, ...] | None) -> page.Picture:
    every = analysis.all_channels
    return page.Picture.of(
        "spectrum.png",
        plots.draw_spectrum(analysis.eigenvalues, every.modes, shape, every.t_S),
        "Of all channels together: eigenvalues of the covariance, the time at which signal and "
        "noise of each mode are equal with t_S = 1/2 log Lambda, and the first modes.",
    )


def _speciation(analysis: numbers.Analysis) -> page.Picture:
    overall = analysis.overall
    figure = plots.draw_speciation(
        overall.curves,
        {name: each.curves["phi"] for name, each in analysis.per_class.items()},
        analysis.times,
        overall.floor,
        overall.floor + (1 - overall.floor) * SPECIATION_LEVEL,
    )
    return page.Picture.of(
        "speciation.png",
        figure,
        "Probability that two clones forked at time t end in the same class, with 95 % intervals, "
        "overall and of the draws that start from each class. The horizontal line is the level of "
        "t_S (phi). The regimes are parted by phi_C = 1/2 and by it.",
    )


def _noisy_samples(images: ImageSet, times: dict[str, Estimate]) -> page.Picture:
    pixels = images.images
    if images.labels is None:
        chosen = np.linspace(0, len(pixels) - 1, 4).astype(int)
    else:
        names = range(min(4, len(images.class_names)))
        each = 2 if len(names) < 4 else 1
        chosen = np.concatenate([np.flatnonzero(images.labels == c)[:each] for c in names])
    named = {"image": 0.0, "": 5.0}
    for name, label in (
        ("t_C_entropy", "$t_C$ (f$^e$)"),
        ("t_C_phi", "$t_C$ (φ$_C$)"),
        ("t_S_phi", "$t_S$ (φ)"),
        ("t_S_spectrum", "$t_S$ (Λ)"),
    ):
        if name in times and math.isfinite(times[name].value) and times[name].value > 0:
            named[label] = times[name].value
    return page.Picture.of(
        "samples.png",
        plots.draw_noisy_samples(images.centred(chosen), images.mean, named),
        "Images with the noise of the named times, x_t.",
    )
