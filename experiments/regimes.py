"""Speciation and collapse of a data set: python -m experiments.regimes --data DATA [--out DIR].

DATA is mnist, mnist_full, cifar10, imagenet16, imagenet32, imagenet64, celeba, lsun or photographs,
as docs/data.md describes them, a folder of images (a subfolder a class), or an .npy or .npz file of
images and labels. No training is needed:
the answers come from the data's covariance and from their exact empirical score. Prints a table,
and writes result.json, the figures and report.html, which shows them all.
"""

import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffusion_jax import data
from diffusion_jax.data.checks import check, require_memory
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.plots import page
from diffusion_jax.plots import regimes as plots
from diffusion_jax.presets import DATA_DEFAULTS
from diffusion_jax.regimes.analysis import Analysis, analyse, to_json
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.transitions import SPECIATION_LEVEL, Regimes, check_accuracy
from diffusion_jax.runtime import backend, distributed
from diffusion_jax.runtime.devices import is_first_process
from experiments.command import reports_errors

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


@dataclass(frozen=True)
class Options:
    """Measures speciation and collapse of a data set, without training."""

    data: str
    """mnist, mnist_full, cifar10, imagenet16, imagenet32, imagenet64, celeba, lsun, photographs, a
    folder of images, or an .npy or .npz file."""
    out: Path | None = None
    """Folder for result.json, the figures and report.html; by default runs/regimes/NAME."""
    classes: tuple[str, ...] | None = None
    """Names of the data set's classes; by default those of the paper (1 and 8, church_outdoor and
    conference_room, and so on), of the sample run, or all of your own files'."""
    images_per_class: int | None = None
    """The first so many images of each class."""
    image_size: int | None = None
    """Pixels a side, to which images are cropped and resized."""
    data_dir: Path | None = None
    """Where the data set's files lie; by default data/NAME below the current folder."""
    prepared_dir: Path | None = None
    """Where prepared images lie; by default DATA_DIR/prepared."""
    accuracy: float = 2e-3
    """Standard error asked for of phi, phi_C and f^e/alpha, at every time."""
    max_draws: int = 50_000
    """Most draws of the posterior engine."""
    seed: int = 0
    """Seed of the draws."""
    memory: float | None = None
    """Memory that may be used, in GiB; by default what is free."""


def load(options: Options) -> ImageSet:
    """The images that the options name.

    Raises:
      UserError: options that do not belong to the data named, and all that the sources raise.
    """
    if options.data in DATA_DEFAULTS:
        if options.data == "mnist" and (options.data_dir or options.prepared_dir):
            raise UserError("mnist comes with a package: it has no --data-dir and --prepared-dir")
        chosen = {
            name: value
            for name in ("classes", "images_per_class", "image_size", "data_dir", "prepared_dir")
            if (value := getattr(options, name)) is not None
        }
        return data.load(replace(DATA_DEFAULTS[options.data], **chosen))
    for name in ("data_dir", "prepared_dir"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not for files of your own")
    path = Path(options.data)
    return data.load_files(
        path, options.image_size, options.images_per_class, options.memory, options.classes or ()
    )


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


def table_of(analysis: Analysis, class_intervals: bool) -> tuple[list[str], list[list[str]]]:
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


def _figures(out: Path, images: ImageSet, analysis: Analysis) -> list[page.Picture]:
    pixels = images.images
    overall, times = analysis.overall, analysis.times
    is_image = min(pixels.shape[1:3]) > 1
    pictures = []

    def add(name: str, caption: str) -> Path:
        pictures.append(page.Picture(out / name, caption))
        return out / name

    if math.isfinite(analysis.all_channels.t_S.value):
        plots.save_spectrum(
            add(
                "spectrum.png",
                "Of all channels together: eigenvalues of the covariance, the time at which signal "
                "and noise of each mode are equal with t_S = 1/2 log Lambda, and the first modes.",
            ),
            analysis.eigenvalues,
            analysis.all_channels.modes,
            pixels.shape[1:] if is_image and pixels.shape[3] in (1, 3) else None,
            analysis.all_channels.t_S,
        )
    if "phi" in overall.curves:
        plots.save_speciation(
            add(
                "speciation.png",
                "Probability that two clones forked at time t end in the same class, with 95 % "
                "intervals, overall and of the draws that start from each class. The horizontal "
                "line is the level of t_S (phi). The regimes are parted by phi_C = 1/2 and by it.",
            ),
            overall.curves,
            {name: each.curves["phi"] for name, each in analysis.per_class.items()},
            times,
            overall.floor,
            overall.floor + (1 - overall.floor) * SPECIATION_LEVEL,
        )
    plots.save_collapse(
        add(
            "collapse.png",
            "Above: excess entropy over alpha = log(n)/d, and the probability that two clones end "
            "in the same training point. Below: exp of the posterior's entropy, the effective "
            "number of training points behind x_t. Bands are 95 % intervals. The regimes are "
            "parted by phi_C = 1/2 and by t_S (phi); the other t_C is as good a boundary.",
        ),
        overall.curves,
        times,
        analysis.num_points,
    )
    plots.save_lipschitz(
        add(
            "lipschitz.png",
            "Lipschitz constant of the exact empirical score. An explicit Euler step eta in "
            "Ornstein-Uhlenbeck time is stable while eta (2/Delta_t - 1) <= 2.",
        ),
        analysis.lipschitz,
    )
    if is_image and pixels.shape[3] in (1, 3):
        if images.labels is None:
            chosen = np.linspace(0, len(pixels) - 1, 4).astype(int)
        else:
            names = range(min(4, len(images.class_names)))
            each = 2 if len(names) < 4 else 1
            chosen = np.concatenate([np.flatnonzero(images.labels == c)[:each] for c in names])
        scale = 255 if pixels.dtype == np.uint8 else 1
        named = {"image": 0.0, "": 5.0}
        for name, label in (
            ("t_C_entropy", "$t_C$ (f$^e$)"),
            ("t_C_phi", "$t_C$ (φ$_C$)"),
            ("t_S_phi", "$t_S$ (φ)"),
            ("t_S_spectrum", "$t_S$ (Λ)"),
        ):
            if name in times and math.isfinite(times[name].value) and times[name].value > 0:
                named[label] = times[name].value
        plots.save_noisy_samples(
            add("samples.png", "Images with the noise of the named times, x_t."),
            pixels[chosen] / np.float32(scale) - images.mean,
            images.mean,
            named,
        )
    return pictures


@reports_errors
def main() -> None:
    """Loads, measures, prints and writes."""
    start = time.monotonic()
    options = tyro.cli(Options, prog="python -m experiments.regimes", description=__doc__)
    if not 0 <= options.seed < 2**32:
        raise UserError("seed must lie between 0 and 2^32 - 1")
    if options.memory is not None and not 0 < options.memory < math.inf:
        raise UserError(f"memory = {options.memory} must be a positive number of GiB")
    check_accuracy(options.accuracy, options.max_draws)
    backend.configure()
    distributed.join()
    images = load(options)
    distributed.require_same("data set", json.dumps([images.mean.tolist(), len(images.images)]))
    warnings = check(images)
    n, d = len(images.images), math.prod(images.images.shape[1:])
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    require_memory(f"measuring {n} images of {d} values", (8 + 4 * copies) * n * d, options.memory)
    out = options.out or Path("runs/regimes") / (Path(options.data).stem or "data")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made a folder: {error.strerror}") from error
    for name in FIGURES:  # of an earlier run
        (out / name).unlink(missing_ok=True)
    console = Console()
    kinds = f" in {len(images.class_names)} classes" if images.labels is not None else ""
    console.print(f"{n} images of {d} values{kinds}")
    if images.labels is None:
        warnings.append(
            "the images have no labels: phi, the class entropy and t_S_phi need them and are not "
            "given; t_S_spectrum and the collapse need none"
        )
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    with console.status("Measuring") as status:
        analysis, _ = analyse(
            images.images,
            images.labels,
            images.class_names,
            images.mean,
            jax.random.key(options.seed),
            options.accuracy,
            options.max_draws,
            lambda draws, error: status.update(
                f"{draws} draws, largest standard error {error:.4f}"
            ),
        )
    if not is_first_process():
        return
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for warning in analysis.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    warnings.extend(analysis.warnings)
    header, rows = table_of(analysis, class_intervals=False)
    for name in header:
        table.add_column(escape(name), no_wrap=not name.startswith("from"), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    if analysis.norm.critical_point == "nowhere":
        norm = f"E|a|^2 = {analysis.norm.initial:.4g}, d = {d}: E|x_t|^2 has no stationary point"
    else:
        norm = f"E|a|^2 = d = {d}: E|x_t|^2 is the same at every t"
    console.print(norm, highlight=False)
    settings = {
        "data": options.data,
        "classes": images.class_names,
        "images_per_class": options.images_per_class,
        "image_size": options.image_size,
        "data_dir": str(options.data_dir) if options.data_dir else None,
        "shape": images.images.shape[1:],
        "accuracy": options.accuracy,
        "max_draws": options.max_draws,
        "seed": options.seed,
        "warnings": warnings,
    }
    result = {"settings": settings, **to_json(analysis)}
    (out / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    pictures = _figures(out, images, analysis)
    page.save(
        out / "report.html",
        f"Regimes of {Path(options.data).name}",
        [
            page.Paragraph(
                f"{n} images of {d} values{kinds}. Times are Ornstein-Uhlenbeck times: "
                "x_t = e^-t a + sqrt(1 - e^-2t) z. The curves are those of the exact empirical "
                "score; intervals cover the draws, and for Lambda the choice of the images."
            ),
            *(page.Paragraph(f"Warning: {warning}.", warning=True) for warning in warnings),
            page.Table(*table_of(analysis, class_intervals=True)),
            *(
                [page.Paragraph("The times of each class are in result.json.")]
                if len(analysis.per_class) > MOST_COLUMNS
                else []
            ),
            page.Paragraph(norm + "."),
            *pictures,
        ],
    )
    seconds = time.monotonic() - start
    print(
        f"Wrote {out / 'result.json'}, {len(pictures)} figures and report.html in {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
