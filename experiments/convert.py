"""Converts between the original's PyTorch checkpoints and runs of this project.

python -m experiments.convert from-torch CHECKPOINT --run-dir DIR [--mean M ...] [OPTION ...]
    A .pt, .pth or .safetensors state dict becomes a run that experiments.sample and further
    training accept. The options are those of experiments.train_lsun (--preset, --data, --data-dir,
    --image-size, --schedule ...) and should describe how the model was trained; its own shape
    follows from the file. The training set's mean is computed from the data, or given by --mean.
    The original never trains step 0, so the run is --faithful True unless told otherwise. The
    file's fixed table of times, which may differ from ours in its last digits (by less than 1e-4,
    or it is refused), is kept beside the run: the run computes with ours, to-torch gives it back.

python -m experiments.convert to-torch RUN_DIR FILE
    The averaged parameters of a run's last checkpoint become a state dict that the original loads.
    What a network predicts is in units of [0, 1] minus the mean, which the command prints.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.config import ModelConfig
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend
from diffusion_jax.training import run
from experiments import train_lsun
from experiments.command import program, reports_errors

TIME_TABLE = "time_table.npy"


def from_torch(checkpoint: Path, mean: list[float] | None, arguments: list[str]) -> None:
    """Makes a run from a state dict; `arguments` are those of experiments.train_lsun."""
    from torch_ref import bridge

    state_dict = bridge.load(checkpoint)
    model, params = bridge.from_torch(state_dict)
    if model.dtype != np.float32:
        raise UserError(f"{checkpoint} is float64, but runs hold float32 parameters; convert it")
    if not any(word.startswith("--faithful") for word in arguments):
        arguments = [*arguments, "--faithful", "True"]
    config = train_lsun.parse(arguments)
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(ModelConfig)
        if field.name not in ("dropout", "dtype")
    }
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))
    count, size = config.data.images_per_class, config.data.image_size
    if mean is None or count is None or size is None:
        images = data.load(config.data)
        mean, (num_images, *sides) = mean or images.mean.tolist(), images.images.shape
        shape = (sides[0], sides[1], sides[2])
    else:
        num_images, shape = count * len(config.data.classes), (size, size, model.channels)
    if len(mean) != model.channels:
        raise UserError(
            f"the model takes images of {model.channels} channel(s), but the mean has {len(mean)}; "
            f"give the options of the data that it was trained on"
        )
    beside = {TIME_TABLE: bridge.time_table(state_dict)}
    run.import_parameters(config, params, shape, np.array(mean, np.float32), num_images, beside)
    again = [*arguments, *(word for name, value in fields.items() for word in _flag(name, value))]
    print(f"Wrote the run {config.output.run_dir}. To sample from it:")
    print(f"  python -m experiments.sample {config.output.run_dir}")
    print(f"To train it further:\n  python -m experiments.train_lsun {shlex.join(again)}")


def _flag(name: str, value: int | tuple[int, ...]) -> list[str]:
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{name.replace('_', '-')}", *map(str, values)]


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
    print(f"Wrote {file}, the parameters of step {trained.step}; mean {trained.mean.tolist()}")


@reports_errors
def main() -> None:
    """Parses the command line and converts."""
    parser = argparse.ArgumentParser(
        program("convert"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    source = commands.add_parser("from-torch", help="a state dict becomes a run")
    source.add_argument("checkpoint", type=Path)
    source.add_argument("--mean", type=float, nargs="+", help="per-channel mean, in [0, 1]")
    target = commands.add_parser("to-torch", help="a run becomes a state dict")
    target.add_argument("run_dir", type=Path)
    target.add_argument("file", type=Path)
    words = sys.argv[1:]
    misplaced = words[:1] == ["from-torch"] and words[1:2] != ["--help"]
    if misplaced and words[1:] and words[1].startswith("--"):
        parser.error("CHECKPOINT comes right after from-torch, the options after it")
    options, rest = parser.parse_known_args(words)
    backend.configure()
    if options.command == "from-torch":
        from_torch(options.checkpoint, options.mean, rest)
    elif rest:
        parser.error(f"unknown option(s): {' '.join(rest)}")
    else:
        to_torch(options.run_dir, options.file)


if __name__ == "__main__":
    sys.exit(main())
