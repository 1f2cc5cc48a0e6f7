"""A data set's regimes in one call: measured, shown, drawn and reported."""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from diffusion_jax.data.checks import check, check_maps, require_memory
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.plots import page
from diffusion_jax.plots import regimes as plots
from diffusion_jax.plots.pictures import pictures_of
from diffusion_jax.plots.times import MOST_COLUMNS, class_notes, information_rows, rows_of
from diffusion_jax.regimes import analysis as numbers
from diffusion_jax.regimes.class_information import groups_named
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.runtime.files import parse_json, unwritten, write_bytes, write_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.runtime.text import shown
from diffusion_jax.symmetry import Group, group_named

# What a study may write. Each result.json says which of them are its own.
FILES = (
    *("symmetry.png", "spectrum.png", "speciation.png", "collapse.png", "information.png"),
    *("pairs.png", "lipschitz.png"),
    *("samples.png", "schedule.png", "schedule.json", "report.html", "explorer.html"),
)
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
      warnings: what to know before trusting a number, one sentence each.
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
        console = Console(
            file=io.StringIO(), width=100, color_system=None, force_jupyter=False, emoji=False
        )
        with console.capture() as text:
            for warning in self.warnings:
                console.print(Text(f"warning: {shown(warning)}"))
            print_table(console, self.table())
            print_table(console, self.information_table())
            if self.notes:
                console.print(Text(self.notes))
        lines = [line.rstrip() for line in text.get().splitlines()]
        return "\n".join([describe(self.images), *lines])

    @property
    def title(self) -> str:
        """What was measured."""
        symmetry = self.analysis.symmetry
        return self.name if symmetry is None else f"{self.name} with the symmetry {symmetry.name}"

    @property
    def notes(self) -> str:
        """What the tables do not say, one line each: of which law they are, and `norm`."""
        symmetry = self.analysis.symmetry
        last = [each for each in (*class_notes(self.analysis), self.norm) if each]
        if symmetry is None:
            return "\n".join(last)
        maps, points = symmetry.order * len(self.images.images), symmetry.num_distinct
        fewer = f" ({points} points, since some maps leave an image as it is)" * (points < maps)
        law = (
            f"With the symmetry {symmetry.name} the law is that of the {maps} maps of the images "
            f"minus their mean{fewer}: so are Lambda, the times, the curves and the schedule. Only "
            f"the Lipschitz constants are those of the images alone."
        )
        return "\n".join([law, *last])

    @property
    def norm(self) -> str:
        """That the mean squared norm of x_t is the same at every t, where it is; else nothing."""
        norm = self.analysis.norm
        if norm.critical_point == "nowhere":
            return ""
        return (
            f"The images minus their mean have the mean squared norm of the noise, E|a|^2 = d = "
            f"{norm.dimension}: so has x_t at every time t"
        )

    def table(self) -> Table:
        """The table of times as rich prints it."""
        title = None if self.analysis.symmetry is None else Text(shown(self.title))
        return _printed(*rows_of(self.analysis, class_intervals=False), title)

    def information_table(self) -> Table:
        """The table of what x_t says of its class and its training point, at these times."""
        return _printed(*information_rows(self.analysis))

    def plot(self) -> Figure:
        """phi, phi_C and f^e/alpha along time, the three regimes shaded."""
        return plots.draw_regimes(self.analysis.overall.curves, self.times)

    def save(self, folder: Path | str, pages: Mapping[str, str] | None = None) -> list[Path]:
        """Writes result.json, the figures and report.html into a folder, made if it is missing.

        And schedule.json, the data's own noise schedule, where it can be made: its name, the data's
        name, and the times of its 1 000 steps. What an earlier study wrote there is replaced, or
        removed where this one has no such file; other files are left alone.

        Args:
          folder: the folder.
          pages: texts that are written beside the report, by names that are in `FILES`.

        Returns:
          The paths of the figures.

        Raises:
          UserError: they cannot be written, or see `require_own`.
        """
        folder, pages = Path(folder).expanduser(), pages or {}
        pictures, schedule = list(pictures_of(self.analysis, self.images)), self.analysis.schedule
        own = [picture.name for picture in pictures] + ["report.html"]
        own += [*(["schedule.json"] if schedule is not None else []), *pages]
        require_own(folder, own)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in _written_before(folder):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritten(folder, error) from error
        described = {"settings": self.settings | {"warnings": self.warnings}, "files": own}
        write_json(folder / "result.json", described | numbers.to_json(self.analysis))
        if schedule is not None:
            content = {"name": "adaptive", "of": self.name, "time": schedule}
            write_json(folder / "schedule.json", content)
        for picture in pictures:
            picture.save(folder)
        for name, text in pages.items():
            write_bytes(folder / name, text.encode())
        self._report(folder / "report.html", pictures)
        return [folder / picture.name for picture in pictures]

    def report(self, path: Path | str) -> None:
        """Writes one HTML page that shows everything and needs no other file.

        Raises:
          UserError: it cannot be written.
        """
        self._report(Path(path).expanduser(), list(pictures_of(self.analysis, self.images)))

    def _report(self, path: Path, pictures: list[page.Picture]) -> None:
        parts: list[page.Part] = [
            page.Paragraph(
                f"{describe(self.images)}. Times are Ornstein-Uhlenbeck times: "
                "x_t = e^-t a + sqrt(1 - e^-2t) z. The curves are those of the exact empirical "
                "score; intervals cover the draws, and for Lambda the choice of the images."
            ),
            *(page.Paragraph(f"Warning: {text}.", warning=True) for text in self.warnings),
            page.Table(*rows_of(self.analysis, class_intervals=True)),
            page.Table(*information_rows(self.analysis)),
        ]
        if len(self.analysis.per_class) > MOST_COLUMNS:
            parts.append(page.Paragraph("The times of each class are in result.json."))
        notes = [page.Paragraph(f"{line.removesuffix('.')}.") for line in self.notes.splitlines()]
        page.save(path, f"Regimes of {self.title}", [*parts, *notes, *pictures])


def _printed(header: list[str], rows: list[list[str]], title: Text | None = None) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=title)
    for name in header:
        table.add_column(Text(shown(name)))
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def analyse(
    images: np.ndarray | ImageSet,
    labels: np.ndarray | None = None,
    accuracy: float = 2e-3,
    max_draws: int = 50_000,
    seed: int = 0,
    name: str = "the images",
    symmetry: Group | str | None = None,
    partition: Iterable[str | Iterable[Any]] | None = None,
) -> Study:
    """When does a sample of these images commit to its class, and to a training image?

    No training is needed: the answers come from the covariance of the images and from their exact
    empirical score. See docs/regimes.md for the definitions of t_S and t_C.

    Args:
      images: (n, height, width), (n, height, width, channels) or flattened (n, d); integers from 0
        to 255, or floats in [0, 1]. Or an `ImageSet`, as `load_images` returns, labels and all.
      labels: one integer or string per image (n,); without them phi and its t_S are missing.
      accuracy: target standard error of phi, phi_C and f^e/alpha, at every time.
      max_draws: most draws of the posterior engine.
      seed: of the draws.
      name: of the data set, for the report's title.
      symmetry: a group of maps under which the images' law is to be symmetric, or the name of one:
        "flip", "dihedral" or "translations". Each time is then measured with it and without.
      partition: groups of names of classes, as [["cat", "dog"], ["car"]]: what x_t says of its
        group is then measured too. Images of classes that are in no group are left out of that.

    Raises:
      UserError: images, labels, a symmetry or a partition that cannot be used; the message says
        why.
    """
    if isinstance(images, ImageSet):
        if labels is not None:
            raise UserError("an ImageSet has its own labels: give images and labels as arrays")
        chosen = images
    else:
        chosen = image_set(images, labels)
    group = symmetry_of(symmetry, chosen)
    groups = None if partition is None else groups_named(partition, chosen.class_names)
    warnings = warnings_of(chosen, group=group)
    settings = (accuracy, int(max_draws), seed)
    return measure(chosen, name, warnings, *settings, group=group, partition=groups)


def symmetry_of(symmetry: Group | str | None, images: ImageSet) -> Group | None:
    """The group, by its name or itself, for these images.

    Raises:
      UserError: no such name, or a group that does not map such images.
    """
    if symmetry is None:
        return None
    height, width, channels = images.images.shape[1:]
    if isinstance(symmetry, Group):
        symmetry.require((height, width, channels))
        return symmetry
    group = group_named(symmetry, (height, width, channels))
    if height == 1 or width == 1:
        raise UserError(
            f"the symmetry {symmetry} maps images of rows and columns, and these are rows of "
            f"{height * width} values, as flattened images are: give (n, height, width, channels)"
        )
    return group


def warnings_of(
    images: ImageSet, memory_gib: float | None = None, group: Group | None = None
) -> list[str]:
    """What is odd about a set of images, one sentence each.

    Args:
      images: the data set.
      memory_gib: memory that measuring may take, in GiB; by default what is free.
      group: symmetries with which they are to be measured.

    Raises:
      UserError: they have no regimes (see `checks.check`), or are too large for the memory.
    """
    warnings = check(images)
    n, d = len(images.images), math.prod(images.images.shape[1:])
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    num_bytes, what = (8 + 4 * copies) * n * d, f"measuring {n} images of {d} values"
    if group is not None:
        num_bytes += 4 * n * d + 40 * copies * n * group.order
        what += f" and their {n * group.order} images under the symmetry {group.name}"
    require_memory(what, num_bytes, memory_gib)
    if group is not None:
        warnings += check_maps(images, group)
    return warnings if images.labels is not None else [*warnings, _NO_LABELS]


def measure(
    images: ImageSet,
    name: str,
    warnings: Iterable[str],
    accuracy: float,
    max_draws: int,
    seed: int,
    progress: Callable[[int, float], None] = lambda num_draws, error: None,
    group: Group | None = None,
    partition: Sequence[Sequence[int]] | None = None,
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
      group: see `symmetry_of`.
      partition: see `class_information.groups_named`.

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
        group,
        partition,
    )
    settings = settings_of(images, accuracy, max_draws, seed, group, partition)
    return Study(name, images, analysis, (*warnings, *analysis.warnings), settings)


def settings_of(
    images: ImageSet,
    accuracy: float,
    max_draws: int,
    seed: int,
    group: Group | None = None,
    partition: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """How images are measured, as result.json has it; the arguments are those of `measure`."""
    names = images.class_names
    groups = tuple(tuple(names[label] for label in each) for each in partition or ())
    return {
        "classes": names,
        "num_images": len(images.images),
        "shape": images.images.shape[1:],
        "accuracy": accuracy,
        "max_draws": max_draws,
        "seed": seed,
        "symmetry": None if group is None else group.name,
        "partition": groups or None,
    }


def require_own(folder: Path, names: Sequence[str] = ("spectrum.png", "collapse.png")) -> None:
    """Refuses a folder where a study would write over files that no study wrote.

    Args:
      folder: where the study is to be saved; it need not exist.
      names: the files besides result.json; by default what every study writes.

    Raises:
      UserError: one is there; nothing is changed.
    """
    foreign = [name for name in ("result.json", *names) if (folder / name).is_file()]
    try:
        found = parse_json((folder / "result.json").read_bytes())
        if isinstance(found, dict) and {"settings", "Lambda"} <= found.keys():
            earlier = found.get("files", FILES)  # versions before named none
            foreign = [name for name in foreign if name not in ("result.json", *earlier)]
    except (OSError, ValueError, TypeError):
        pass
    if foreign:
        raise UserError(
            f"{folder} holds {', '.join(foreign)}, which no study of this project wrote there: "
            f"name another folder, or move them away"
        )


def _written_before(folder: Path) -> list[str]:
    """The files that an earlier study wrote into a folder, as its result.json says."""
    try:
        named = parse_json((folder / "result.json").read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in FILES if isinstance(named, list) and name in named]


def describe(images: ImageSet) -> str:
    """How many images of how many values, in how many classes."""
    classes = len(images.class_names)
    kinds = f" in {classes} class{'es' * (classes != 1)}" if images.labels is not None else ""
    return f"{len(images.images)} images of {math.prod(images.images.shape[1:])} values{kinds}"
