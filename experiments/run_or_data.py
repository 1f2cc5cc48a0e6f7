"""What commands are about that take a run's folder or a data set in its place."""

from collections.abc import Sequence
from pathlib import Path

from diffusion_jax import data, forking
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.images import ImageSet
from diffusion_jax.data.notes import say_notes
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import distributed
from diffusion_jax.runtime.files import expanded
from diffusion_jax.training import run
from experiments import data_options
from experiments.data_options import DataOptions

# Options of data sets that a run has no use for.
_OF_DATA = ("classes", "images_per_class", "image_size", "prepared_dir", "memory_gib")


def is_run(what: str) -> bool:
    """Whether a path is a run's folder; names of data sets are none."""
    if what in data.SOURCES:
        return False
    folder = expanded(what)
    return (folder / "config.json").is_file() or (folder / "checkpoints").is_dir()


def opened(
    what: str, options: DataOptions, of_runs: Sequence[str] = (), dtype: run.Dtype = "float32"
) -> tuple[run.TrainedModel | None, ImageSet]:
    """The run, if it is one, and its training images, or the data set's.

    Args:
      what: a run's folder; or the name of a data set, or a path of images.
      options: of the command; `data` and `data_dir` say where a run's images are now.
      of_runs: names of options, None by default, that are for runs alone, besides `data`.
      dtype: see `run.load_model`.

    Raises:
      UserError: neither, options that belong to the other, or what cannot be read.
    """
    if is_run(what):
        given = [name for name in _OF_DATA if getattr(options, name) is not None]
        given += ["flat"] * options.flat
        if given:
            raise UserError(
                f"--{given[0].replace('_', '-')} is for data sets: {what} is a run, which has the "
                f"images that it was trained on"
            )
        model = run.load_model(what, dtype).with_data(options.data, options.data_dir)
        return model, forking.training_images(model)
    for name in ("data", *of_runs):
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for runs, and {what} is none")
    path = expanded(what)
    if what not in data.SOURCES and not path.exists():
        raise UserError(
            f"{what} is neither a run's folder nor a data set: give the folder of a run, one of "
            f"{', '.join(data.SOURCES)}, or the path of images as experiments.regimes takes it"
        )
    try:
        images = data_options.load(what, options)
    except UserError as error:
        if what in data.SOURCES or not path.is_dir():
            raise
        raise UserError(
            f"{what} is no run's folder, which holds config.json and checkpoints, and no folder of "
            f"images either: {error}"
        ) from error
    say_notes(images)
    distributed.require_same("data set", fingerprint(images))
    return None, images


def folder_of(what: str, options: DataOptions, out: Path | None, command: str) -> Path:
    """Where the results go: RUN_DIR/COMMAND, or runs/COMMAND/NAME of a data set.

    Args:
      what: see `opened`.
      options: of the command.
      out: the folder that was asked for, if any.
      command: its name.
    """
    if out is not None:
        return out
    if is_run(what):
        return expanded(what) / command
    place = ("runs/" + command, what, options.data_dir)
    return Path(distributed.from_first(lambda: str(data_options.default_folder(*place))))
