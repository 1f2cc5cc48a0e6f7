"""Speciation and collapse of a data set: python -m experiments.regimes --data DATA [--out DIR].

DATA is the name of a data set, as docs/data.md describes them, a folder of images (one subfolder
per class), a table of images, Parquet, or an .npy or .npz file of images and labels. No training is
needed: the answers come from the data's covariance and from their exact empirical score. Prints a
table, and writes result.json, the figures and report.html, which shows them all; with --explorer a
page to mail as well, in which backward processes of these data run.
"""

import json
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from diffusion_jax import data, study
from diffusion_jax.data.notes import say_notes
from diffusion_jax.errors import UserError, brief
from diffusion_jax.explorer import mailed
from diffusion_jax.regimes.class_information import groups_named
from diffusion_jax.regimes.transitions import check_accuracy
from diffusion_jax.runtime import backend, distributed
from diffusion_jax.runtime.devices import is_first_process
from diffusion_jax.runtime.files import expanded, parse_json
from diffusion_jax.runtime.tables import print_table
from diffusion_jax.runtime.text import shown
from diffusion_jax.symmetry import GROUPS, check_symmetry
from experiments import data_options
from experiments.command import parse, reports_errors
from experiments.data_options import DataOptions


@dataclass(frozen=True)
class Options(DataOptions):
    """Measures speciation and collapse of a data set, without training."""

    data: str
    """A data set of the list above, or the path of a folder of images, a table of them, Parquet,
    an .npy or an .npz."""
    out: Path | None = None
    """Folder for result.json, the figures and report.html; by default runs/regimes/NAME, or
    NAME_SYMMETRY; with -DIGEST at its end where data of that name from another place were first.
    An earlier result there is replaced; a note says so where its settings were others."""
    accuracy: float = 2e-3
    """Target standard error of phi, phi_C and f^e/alpha, at every time."""
    max_draws: int = 50_000
    """Largest number of draws of the posterior engine."""
    seed: int = 0
    """Seed of the draws."""
    symmetry: Annotated[str | None, tyro.conf.arg(metavar="|".join(GROUPS))] = None
    """Measure the images together with all images that the maps of a group make of them; beside
    each time stands that of the images alone. flip: left for right; dihedral: that and quarter
    turns, of square images; translations: every shift around the edges. None by default."""
    explorer: bool = False
    """Write explorer.html too: one page to mail, which holds the images, runs backward processes
    under their exact and their Gaussian score in the browser, and needs no server."""
    partition: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Names of the classes that make up a group; give it once for each group, as in --partition 0 6
    --partition 1 4 7. The time at which x_t tells its group is then measured too, without the
    images of other classes."""

    def check(self) -> None:
        """Raises a UserError naming the first field that is out of range."""
        if self.symmetry is not None:
            check_symmetry(self.symmetry)
        if self.explorer and self.symmetry is not None:
            raise UserError(
                "--explorer writes a page that computes the score of the images alone: leave it "
                "out, or --symmetry"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError("seed must lie between 0 and 2^32 - 1")
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise UserError(f"memory_gib = {self.memory_gib} must be a positive number of GiB")
        check_accuracy(self.accuracy, self.max_draws)


def default_folder(options: Options) -> Path:
    """See `data_options.default_folder`; with a symmetry NAME has that at its end."""
    endings = (options.symmetry,) if options.symmetry else ()
    return data_options.default_folder("runs/regimes", options.data, options.data_dir, endings)


def _changed(options: Options, out: Path, settings: dict[str, Any]) -> list[str]:
    """What the result in a folder is of, where that is not this, in words; none without one."""
    asked = json.loads(json.dumps(settings))
    try:
        earlier = parse_json((out / "result.json").read_bytes())["settings"]
        place = data_options.place_of(options.data, options.data_dir)
        moved = data_options.place_of(earlier["data"], earlier["data_dir"]) != place
        others = [name for name in asked if name in earlier and earlier[name] != asked[name]]
        others = ["data"] * moved + others
        return [f"{name} = {brief(earlier[name])}" for name in others]
    except (OSError, ValueError, LookupError, TypeError, UserError):
        return []


def _folder(options: Options) -> str:
    """The folder for the results, made."""
    out = default_folder(options) if options.out is None else expanded(options.out)
    try:
        study.require_own(out, ("spectrum.png", "collapse.png", *[mailed.NAME] * options.explorer))
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made a folder: {error.strerror}") from error
    return str(out)


def _warn(console: Console, warnings: Iterable[str]) -> None:
    for text in warnings:
        console.print(Text(f"warning: {shown(text)}", "yellow"))


@reports_errors
def main() -> None:
    """Loads, measures, prints and writes."""
    started = time.monotonic()
    options = parse(Options, "regimes", f"{__doc__}\n{data.listing()}")
    options.check()
    backend.configure()
    distributed.join()
    images = data_options.load(options.data, options)
    distributed.require_same("data set", json.dumps([images.mean.tolist(), len(images.images)]))
    group = study.symmetry_of(options.symmetry, images)
    partition = groups_named(options.partition, images.class_names) if options.partition else None
    warnings = study.warnings_of(images, options.memory_gib, group)
    said = say_notes(images)
    out = Path(distributed.from_first(lambda: _folder(options)))
    if is_first_process():
        how = (options.accuracy, options.max_draws, options.seed, group, partition)
        if changed := _changed(options, out, study.settings_of(images, *how)):
            text = shown(f"replaces the earlier result of {', '.join(changed)} in {out}")
            print(f"note: {text}; --out names another folder", file=sys.stderr)
    console = Console(emoji=False)
    console.print(study.describe(images))
    _warn(console, [text for text in warnings if text not in said])
    with console.status("Measuring") as status:
        found = study.measure(
            images,
            data.name_of(options.data),
            warnings,
            options.accuracy,
            options.max_draws,
            options.seed,
            lambda draws, error: status.update(
                f"{draws} draws, largest standard error {error:.4f}"
            ),
            group,
            partition,
        )
    if not is_first_process():
        return
    _warn(console, found.analysis.warnings)
    print_table(console, found.table())
    print_table(console, found.information_table())
    if found.notes:
        console.print(Text(found.notes))
    named = {
        name: getattr(options, name)
        for name in ("data", "images_per_class", "image_size", "flat", "data_dir")
    }
    pages = {mailed.NAME: mailed.page(found)} if options.explorer else {}
    pictures = replace(found, settings=named | found.settings).save(out, pages)
    seconds = time.monotonic() - started
    files = "".join(f", {name} ({len(text) / 1e6:.1f} MB)" for name, text in pages.items())
    print(
        f"Wrote {out / 'result.json'}, {len(pictures)} figures{files} and report.html in "
        f"{seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
