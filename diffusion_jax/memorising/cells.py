"""The runs of a study of memorisation: one for each size, width and replica, each a folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_jax import data
from diffusion_jax.config import Config
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import parse_json, write_json
from diffusion_jax.training import evaluations, memory, saved_config
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.run import check_same_data, data_of, has_checkpoint, steps_of
from diffusion_jax.training.saved_state import upgrade

# Images of which losses are kept, if the configuration says nothing: as many as an evaluation has.
_HELD_OUT = 64
# Which images a study holds out.
STUDY = "study.json"
_REMEMBERED = ("held_out_per_class", "held_out_after")
# Which images a run has, wherever they lie now.
_IMAGES = (*_REMEMBERED, "skip_per_class", "images_per_class", "image_size", "grey")


@dataclass(frozen=True)
class Cell:
    """One run of the study.

    Attributes:
      size: n, how many training images.
      width: base channels.
      replica: which disjoint part of the data, images replica n to (replica + 1) n - 1.
      steps: updates in all.
    """

    size: int
    width: int
    replica: int
    steps: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"n{self.size}_w{self.width}_s{self.replica}"


def cells_of(
    sizes: tuple[int, ...], widths: tuple[int, ...], replicas: int, steps: tuple[int, ...]
) -> list[Cell]:
    """All runs of a study, the quick ones first: by size, then width, then replica.

    Args:
      sizes: numbers of training images.
      widths: base channels.
      replicas: how many of each, on images of their own.
      steps: updates of the runs of each size.
    """
    return [
        Cell(size, width, replica, own)
        for size, own in sorted(zip(sizes, steps, strict=True))
        for width in sorted(widths)
        for replica in range(replicas)
    ]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
      configs: of each cell that can be run.
      refused: why the others cannot.
    """

    configs: dict[Cell, Config]
    refused: dict[Cell, str]


def plan(out: Path, base: Config, cells: list[Cell]) -> Plan:
    """The configuration of each cell, all judged by the same held-out images.

    These are the held_out_per_class images after the first held_out_after of each class; if the
    configuration says nothing, 64 in all, after the images of the largest size that the data have
    room for with all its replicas. The study's folder remembers it (study.json), so that what is
    added later is judged by the same images. Sizes that reach into them are refused.

    Args:
      out: the study's folder.
      base: a configuration; its images_per_class, width, seed, steps and folder are the cells' own,
        and a batch has no more images than the cell.
      cells: the runs.

    Raises:
      UserError: data that cannot be read, or without room for one size and the held-out images, or
        a folder whose study has other held-out images.
    """
    classes = _num_classes(base)
    base = _with_known_held_out(out, base)
    held_out = base.data.held_out_per_class or -(-_HELD_OUT // classes)
    base = _with_data(base, held_out_per_class=held_out)
    ends = {cell: (cell.replica + 1) * cell.size // classes for cell in cells}
    refused = {
        cell: f"n = {cell.size} cannot be shared evenly by {classes} classes: give a multiple of it"
        for cell in cells
        if cell.size % classes
    }
    for cell in sorted(set(cells) - set(refused), key=ends.__getitem__, reverse=True):
        try:
            base = _with_room(base, ends[cell])
        except UserError as error:
            refused[cell] = str(error)
    if len(refused) == len(cells):
        raise UserError(f"none of the sizes can be trained: {next(iter(refused.values()))}")
    write_json(out / STUDY, {name: getattr(base.data, name) for name in _REMEMBERED})
    configs = {}
    for cell in cells:
        if cell not in refused:
            try:
                config = _config(out, base, cell, classes)
                config.check()
                configs[cell] = settled(config)
            except UserError as error:
                refused[cell] = str(error)
    return Plan(configs, refused)


def _with_room(base: Config, end: int) -> Config:
    """The configuration with held-out images that begin after the first few of each class.

    Raises:
      UserError: they begin before already, or the data have too few images.
    """
    first = base.data.held_out_after
    if first is not None and end > first:
        raise UserError(
            f"the images held out begin after the first {first} of each class, and it needs the "
            f"first {end}: give another --out, and a larger --held-out-after"
        )
    room = end if first is None else first
    data.load_split(_with_data(base, images_per_class=end, held_out_after=room).data)
    return _with_data(base, held_out_after=room)


def _with_data(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def _with_known_held_out(out: Path, base: Config) -> Config:
    """The configuration with the held-out images that the study in a folder has, if there is one.

    Raises:
      UserError: others are asked for.
    """
    path = out / STUDY
    if not path.is_file():
        return base
    try:
        known = parse_json(path.read_bytes())
        known = {name: int(known[name]) for name in _REMEMBERED}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {error}; remove it, and give the --held-out-per-class and the "
            f"--held-out-after that the config.json of each run in {out} has"
        ) from error
    for name, value in known.items():
        if (asked := getattr(base.data, name)) not in (0, None, value):
            raise UserError(
                f"the study in {out} has {name} = {value}, not {asked}: give another --out"
            )
    return _with_data(base, **known)


def _num_classes(base: Config) -> int:
    """Among how many classes a size is shared; 1 without labels."""
    if base.data.classes:
        return len(base.data.classes)
    return max(1, len(data.load(dataclasses.replace(base.data, images_per_class=1)).class_names))


def _config(out: Path, base: Config, cell: Cell, classes: int) -> Config:
    each = cell.size // classes
    return dataclasses.replace(
        base,
        output=dataclasses.replace(base.output, run_dir=out / cell.name),
        data=dataclasses.replace(
            base.data,
            images_per_class=each,
            skip_per_class=cell.replica * each,
        ),
        model=dataclasses.replace(base.model, base_channels=cell.width),
        training=dataclasses.replace(
            base.training, batch_size=min(base.training.batch_size, cell.size)
        ),
        steps=cell.steps,
        seed=base.seed + cell.replica,
    )


def settled(config: Config) -> Config:
    """The configuration as its folder's run has it, where that is the same training.

    Raises:
      UserError: the folder holds another.
    """
    folder = config.output.run_dir
    config = dataclasses.replace(config, schedule=config.schedule.settled())
    binding = has_checkpoint(folder)
    if binding and config.model.dtype == "auto":
        began = saved_config.read(folder).model
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, dtype=began.dtype)
        )
    if not binding:
        return config
    own = saved_config.read(folder)
    changed = saved_config.differences(own, config)
    for name in _IMAGES:
        before, after = getattr(own.data, name), getattr(config.data, name)
        if before != after:
            changed.append(f"{name}: {before} -> {after}")
    if changed:
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}): give the "
            f"same values, or another --out"
        )
    return config


def is_done(config: Config) -> bool:
    """Whether a cell has nothing left to do: all its updates are made, or it was stopped."""
    folder = config.output.run_dir
    if not has_checkpoint(folder):
        return False
    if stopped(folder) is not None and saved_config.read(folder).stopping == config.stopping:
        return True
    done = max(steps_of(folder), default=0)
    return done > config.steps or (
        done == config.steps and config.steps in evaluations.kept(folder)
    )


def stopped(folder: Path) -> dict[str, object] | None:
    """At which update early stopping ended a run, and why; None where it did not."""
    found = memory.memory_of(folder)
    ended: dict[str, object] | None = None if found is None else found.get("stopped")
    return ended


def require_own_images(config: Config, images: ImageSet) -> None:
    """Refuses other images than those that a run was trained on.

    Args:
      config: the run's.
      images: those that its configuration names now.

    Raises:
      UserError: they are others, or the newest checkpoint is not readable.
    """
    checkpoints = Checkpoints(config.output.run_dir / "checkpoints", read_only=True)
    if (newest := checkpoints.latest) is not None:
        check_same_data(upgrade(checkpoints.metadata(newest)), data_of(images))
