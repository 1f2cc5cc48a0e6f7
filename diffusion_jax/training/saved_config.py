"""config.json of a run's folder: written, read, and compared with what is asked for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from diffusion_jax.config import Config
from diffusion_jax.errors import UserError, brief
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import parse_json, write_bytes
from diffusion_jax.runtime.patience import patiently
from diffusion_jax.schedules import SCHEDULES

NAME = "config.json"


def text_of(config: Config) -> str:
    """What config.json holds of a configuration."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def dtype_of(config: Config, binding: bool) -> str:
    """The compute type that `auto` means: that of the run in the folder, or the device's best.

    Args:
      config: the configuration asked for.
      binding: whether the one in its folder is kept to; see `settle`.

    Raises:
      UserError: the one there is damaged.
    """
    folder = config.output.run_dir
    began = read(folder).model.dtype if binding and (folder / NAME).exists() else "auto"
    return backend.best_dtype() if began == "auto" else began


def settle(config: Config, binding: bool) -> None:
    """Compares a configuration with the one in its run's folder, and writes it if that is free.

    Args:
      config: the configuration asked for.
      binding: whether the one there must be kept to; a start that failed before its first
        checkpoint binds nobody.

    Raises:
      UserError: the one there is damaged, or another training's.
    """
    folder = config.output.run_dir
    if not (binding and (folder / NAME).exists()):
        return write(config)
    if changed := differences(read(folder), config):
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}); "
            f"give the same values to resume it (--resume {folder} takes them from there), or "
            f"another --run-dir"
        )
    return None


def write(config: Config) -> None:
    """Writes a configuration into its run's folder."""
    write_bytes(config.output.run_dir / NAME, text_of(config).encode())


def read(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
      UserError: there is none, it is damaged, or the system does not let it be read.
    """
    path = folder / NAME
    if not patiently(path, path.is_file):
        raise UserError(f"{folder} is not the folder of a run: it has no {NAME}")
    return parsed(_values(path), str(path))


def parsed(values: dict[str, Any], what: str) -> Config:
    """The configuration that `to_dict` made `values` of; what they lack has its default.

    Raises:
      UserError: they are no configuration; the message begins with `what`.
    """
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(
            f"{what} cannot be read: {error}; restore it, or use the version that wrote it"
        ) from error


def require_same_model(folder: Path, config: Config, saved: dict[str, Any]) -> None:
    """Refuses a configuration whose model or schedule is not that of a checkpoint.

    Args:
      folder: the run's folder.
      config: as `read` from it.
      saved: `to_dict` of the configuration that the checkpoint was trained with.

    Raises:
      UserError: they differ, or the checkpoint's cannot be read.
    """
    trained = parsed(saved, f"the configuration in the checkpoints of {folder}")
    same = dataclasses.replace(config, model=trained.model, schedule=trained.schedule)
    if changed := differences(same, config):
        raise UserError(
            f"{folder / NAME} describes another model than its checkpoint holds "
            f"({'; '.join(changed)}); restore it"
        )


def _values(path: Path) -> dict[str, Any]:
    content = patiently(path, path.read_bytes)
    try:
        values = parse_json(content)
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return values
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; restore it or give another folder") from error


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON can hold it."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def from_dict(values: dict[str, Any], cls: type = Config) -> Any:
    """Inverse of `to_dict`; what an earlier version did not write has its default.

    Raises:
      UserError: an unknown field, or a value that is not of its field's type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{cls.__name__} is {brief(values)}, no JSON object")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = set(values) - set(fields)
    if unknown:
        names = ", ".join(map(ascii, sorted(unknown)[:10]))
        raise UserError(f"unknown field(s) of {cls.__name__}: {names}")

    def parse(name: str, value: Any) -> Any:
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            return from_dict(value, kind)  # type: ignore[arg-type]
        given = value
        if isinstance(value, str) and kind in (Path, Path | None):
            value = Path(value)
        value = tuple(value) if isinstance(value, list) else value
        try:
            check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            raise UserError(f"{name} = {brief(given)} is of another type: {error}") from error
        return value

    return cls(**{name: parse(name, value) for name, value in values.items()})


# What may change between a run and its resumption: how long and until when, where to, where from,
# how often, and in how much memory. The data are known by their images (see `run.check_same_data`),
# not by a name.
_FREE = (
    "output",
    "stopping",
    "steps",
    "data",
    "model.remat",
    "training.accumulation",
    "training.steps_per_dispatch",
)


def free_fields() -> list[str]:
    """Names of the fields that may change when a run is resumed."""
    return [
        path.rpartition(".")[2]
        for path in _flat(Config())
        if _is_free(path) and path != "output.run_dir"
    ]


def differences(old: Config, new: Config) -> list[str]:
    """Lines 'field: old -> new' for what must be equal for a run to go on, but is not.

    Args:
      old: the run's own configuration.
      new: the configuration asked for.
    """
    before, after = _flat(old), _flat(new)
    # A run that was imported chooses its compute type when it is trained first.
    chooses = {"model.dtype"} if old.model.dtype == "auto" else set()
    times, name = new.schedule.times, new.schedule.schedule
    if times is not None and times == old.schedule.times and name not in SCHEDULES:
        chooses.add("schedule.schedule")  # the name of a file
    return [
        f"{path.rpartition('.')[2]}: {_short(before[path])} -> {_short(after[path])}"
        for path in sorted(before)
        if before[path] != after[path] and not _is_free(path) and path not in chooses
    ]


def _short(value: Any) -> Any:
    return f"{len(value)} values" if isinstance(value, list) and len(value) > 10 else value


def _is_free(path: str) -> bool:
    return path in _FREE or path.partition(".")[0] in _FREE


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of all fields, as JSON can hold them, by their paths, "model.dtype"."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        inside = dataclasses.is_dataclass(value)
        flat |= _flat(value, path + ".") if inside else {path: _plain(value)}
    return flat
