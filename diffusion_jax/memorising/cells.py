"""The runs of a study of memorisation: one for each size, width and replica, each a folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from diffusion_jax import data
from diffusion_jax.config import Config
from diffusion_jax.errors import UserError
from diffusion_jax.training import evaluations, memory, saved_config
from diffusion_jax.training.run import has_checkpoint, steps_of

# Images of which losses are kept, if the configuration says nothing: as many as an evaluation has.
_HELD_OUT = 64


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
        """That of its folder."""
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

    These follow the images of the largest size that the data have room for, with all its replicas;
    larger sizes are refused.

    Args:
      out: the study's folder.
      base: a configuration; its images_per_class, width, seed, steps and folder are the cells' own,
        and a batch has no more images than the cell.
      cells: the runs.

    Raises:
      UserError: data that cannot be read, or without room for one size and the held-out images.
    """
    classes = _num_classes(base)
    held_out = base.data.held_out_per_class or -(-_HELD_OUT // classes)
    base = dataclasses.replace(
        base, data=dataclasses.replace(base.data, held_out_per_class=held_out)
    )
    refused: dict[Cell, str] = {}
    room: int | None = None
    for size in sorted({cell.size for cell in cells}, reverse=True):
        own = [cell for cell in cells if cell.size == size]
        why = f"size = {size} cannot be shared evenly by {classes} classes: give a multiple of it"
        if size % classes == 0:
            end = max(cell.replica + 1 for cell in own) * size // classes
            if room is not None:
                continue
            last = max(own, key=lambda cell: cell.replica)
            try:
                data.load_split(_config(out, base, last, classes, end).data)
                room = end
                continue
            except UserError as error:
                why = str(error)
        refused |= dict.fromkeys(own, why)
    if room is None:
        raise UserError(f"none of the sizes can be trained: {next(iter(refused.values()))}")
    configs = {}
    for cell in cells:
        if cell not in refused:
            config = _config(out, base, cell, classes, room)
            try:
                config.check()
                configs[cell] = settled(config)
            except UserError as error:
                refused[cell] = str(error)
    return Plan(configs, refused)


def _num_classes(base: Config) -> int:
    """Among how many classes a size is shared; 1 without labels."""
    if base.data.classes:
        return len(base.data.classes)
    return max(1, len(data.load(dataclasses.replace(base.data, images_per_class=1)).class_names))


def _config(out: Path, base: Config, cell: Cell, classes: int, room: int) -> Config:
    each = cell.size // classes
    return dataclasses.replace(
        base,
        output=dataclasses.replace(base.output, run_dir=out / cell.name, sample_every=None),
        data=dataclasses.replace(
            base.data,
            images_per_class=each,
            skip_per_class=cell.replica * each,
            held_out_after=room,
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
    if binding and (changed := saved_config.differences(saved_config.read(folder), config)):
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
    return done >= config.steps and config.steps in evaluations.kept(folder)


def stopped(folder: Path) -> dict[str, object] | None:
    """At which update early stopping ended a run, and why; None where it did not."""
    found = memory.memory_of(folder)
    ended: dict[str, object] | None = None if found is None else found.get("stopped")
    return ended
