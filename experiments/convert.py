"""Converts between the original's PyTorch checkpoints and runs of this project.

python -m experiments.convert from-torch CHECKPOINT --run-dir DIR [--mean M ...] [OPTION ...]
    A state dict becomes a run that experiments.sample and further training accept. The file's
    content tells its format, torch's (old or new) or safetensors, whatever its name; dictionaries
    and prefixes around the weights are looked through. Where a file holds raw weights and their
    average (EMA), the average is taken, and --weights raw takes the others: which it was is
    printed, and kept in the run's converted.json and summary.json. The options are those of
    experiments.train_lsun (--preset, --data, --data-dir, --image-size, --schedule ...) and should
    describe how the model was trained; its own shape follows from the file. The training set's mean
    is computed from the data, or given by --mean. The original never trains step 0, so the run is
    --faithful unless told otherwise. The file's fixed table of times, which may differ from ours in
    its last digits (by less than 1e-4, or it is refused), is kept beside the run: the run computes
    with ours, to-torch gives it back.

python -m experiments.convert to-torch RUN_DIR FILE
    The averaged parameters of a run's last checkpoint become a state dict that the original loads:
    a safetensors file where FILE ends in .safetensors, else a torch file. What a network predicts
    is in units of [0, 1] minus the mean, which the command prints.
"""

import shlex
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from diffusion_jax import data
from diffusion_jax.config import Config, DataConfig, ModelConfig
from diffusion_jax.data.notes import say_notes
from diffusion_jax.errors import MissingData, UserError
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.text import shown
from diffusion_jax.training import run
from diffusion_jax.training.memory import SUMMARY
from diffusion_jax.training.outputs import CONVERTED, which_parameters
from experiments import command, train_lsun
from experiments.command import reports_errors

TIME_TABLE = "time_table.npy"


@dataclass(frozen=True, kw_only=True)
class FromTorch(train_lsun.Choice):
    """A state dict becomes a run."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The file of weights, torch's or a safetensors, under any name."""
    weights: Literal["average", "raw"] = "average"
    """Which weights are taken from a file that holds both."""
    mean: tuple[float, ...] | None = None
    """The training set's mean, one number per channel, in [0, 1]; by default that of the data."""


@dataclass(frozen=True, kw_only=True)
class ToTorch:
    """A run becomes a state dict."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    file: Annotated[Path, tyro.conf.Positional]
    """The file to write: safetensors where the name ends in .safetensors, else a torch file."""


def from_torch(
    checkpoint: Path,
    mean: tuple[float, ...] | None,
    config: Config,
    weights: Literal["average", "raw"] = "average",
) -> None:
    """Makes a run from a state dict.

    Args:
      checkpoint: the file of weights.
      mean: of the training set, or None for that of the data.
      config: how the model was trained; its shape is that of the state dict.
      weights: which are taken from a file that holds both.
    """
    from torch_ref import bridge

    found = bridge.read(checkpoint, weights)
    model, params = bridge.from_torch(found.state_dict)
    if model.dtype != np.float32:
        raise UserError(f"{checkpoint} is float64, but runs hold float32 parameters; convert it")
    shape = {
        field.name: getattr(model, field.name)
        for field in fields(ModelConfig)
        if field.name not in ("dropout", "dtype")
    }
    config = replace(config, model=replace(config.model, **shape))
    known, notes = _training_set(config.data, mean, model.channels)
    if len(known["mean"]) != model.channels:
        raise UserError(
            f"the model takes images of {model.channels} channel(s), but the mean has "
            f"{len(known['mean'])}; give the options of the data that it was trained on"
        )
    converted = {"file": str(checkpoint.absolute()), "weights": found.kind, "prefix": found.place}
    beside = {
        TIME_TABLE: bridge.time_table(found.state_dict),
        CONVERTED: converted,
        SUMMARY: _summary(config, params, known) | notes | {"converted": converted},
    }
    run.import_parameters(config, params, known, beside)
    print(f"Took {found}")
    if mean is None:
        numbers = ", ".join(f"{number:.4g}" for number in known["mean"])
        images = shown(Path(config.data.data).name)
        print(f"mean {numbers} of {known['num_images']} images ({images})")
    folder = shlex.quote(str(config.output.run_dir))
    print(f"Wrote the run {config.output.run_dir}. To sample from it:")
    print(f"  python -m experiments.sample {folder}")
    print(f"To train it further:\n  python -m experiments.train_lsun --resume {folder}")


def _training_set(
    config: DataConfig, mean: tuple[float, ...] | None, channels: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run knows of its data, which need not be at hand where the configuration says all.

    See `run.data_of`; beside it the notes for the summary, where the data were loaded.
    """
    notes: dict[str, Any] = {}
    count, size, classes = config.images_per_class, config.image_size, config.classes
    if mean is None or count is None or size is None or not classes:
        try:
            images = data.load(config)
        except MissingData as error:
            raise UserError(
                f"{error}; without these data, give --mean of the images that the model was "
                f"trained on"
            ) from error
        notes = {"notes": say_notes(images)}
        known = run.data_of(images)
    else:
        known = {
            "shape": [size, size, channels],
            "classes": list(classes),
            "num_images": count * len(classes),
            "fingerprint": None,
        }
    if mean is not None:
        known |= {"mean": np.array(mean, np.float32).tolist()}
    return known, notes


def _summary(config: Config, params: Any, known: dict[str, Any]) -> dict[str, Any]:
    """What is known before any training of what `outputs.summarize` writes then."""
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "data": config.data.data,
        "images": known["num_images"],
        **{name: known[name] for name in ("shape", "classes", "mean", "fingerprint")},
    }


def _time_table(path: Path) -> np.ndarray | None:
    """What `from_torch` kept; None for a run that was trained from the start."""
    if not path.exists():
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; restore it, or remove it to have the table made anew"
        ) from error


def to_torch(run_dir: Path, file: Path) -> None:
    """Writes the averaged parameters of a run as a state dict."""
    from torch_ref import bridge

    trained = run.load_model(run_dir)
    params = jax.tree.map(np.asarray, trained.denoiser.params)
    model = trained.config.model.build(trained.shape[-1])
    bridge.save(file, bridge.to_torch(model, params, _time_table(run_dir / TIME_TABLE)))
    which = which_parameters(run_dir, trained.step)
    print(f"Wrote {file}, the parameters of {which}; mean {trained.mean.tolist()}")


def _default(preset: str | None, data: str | None) -> FromTorch:
    """What from-torch is by default."""
    config = train_lsun.begin(preset, data)
    config = replace(config, training=replace(config.training, faithful=True))
    return FromTorch(checkpoint=tyro.MISSING, config=config)


def _refined(first: FromTorch | ToTorch) -> FromTorch:
    if isinstance(first, ToTorch):
        return UNSAID
    return _default(first.preset, first.config.data.data or None)


# Of a first reading: no --data was given.
UNSAID = FromTorch(checkpoint=tyro.MISSING, config=train_lsun.UNSAID.config)
COMMANDS: Any = (
    Annotated[FromTorch, tyro.conf.subcommand("from-torch")]
    | Annotated[ToTorch, tyro.conf.subcommand("to-torch")]
)


def parse(words: list[str]) -> FromTorch | ToTorch:
    """Reads the command line."""
    return command.parse(COMMANDS, "convert", __doc__, words, UNSAID, _refined)


@reports_errors
def main() -> None:
    """Parses the command line and converts."""
    options = parse(sys.argv[1:])
    backend.configure()
    if isinstance(options, FromTorch):
        from_torch(options.checkpoint, options.mean, options.config, options.weights)
    else:
        to_torch(options.run_dir, options.file)


if __name__ == "__main__":
    sys.exit(main())
