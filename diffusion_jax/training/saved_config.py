"""config.json of a run's folder: written, read, and held against what is asked for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from diffusion_jax.config import Config
from diffusion_jax.errors import UserError
from diffusion_jax.runtime import backend
from diffusion_jax.runtime.files import write_bytes

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
    """Writes a configuration into its run's folder, after holding it against the one there.

    Args:
      config: the configuration asked for.
      binding: whether the one there must be kept to; a start that failed before its first
        checkpoint binds nobody.

    Raises:
      UserError: the one there is damaged, or another training's.
    """
    folder = config.output.run_dir
    path = folder / NAME
    if binding and path.exists():
        changed = differences(_values(path), to_dict(config))
        if changed:
            raise UserError(
                f"{folder} holds a run with another configuration ({'; '.join(changed)}); "
                f"give the same values to resume it, or another --run-dir"
            )
    write_bytes(path, text_of(config).encode())


def read(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} is not the folder of a run: it has no {NAME}")
    try:
        return from_dict(_values(path))
    except (UserError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; restore it") from error


def require_same_model(folder: Path, config: Config, saved: dict[str, Any]) -> None:
    """Refuses a configuration whose model or schedule is not that of a checkpoint.

    Args:
      folder: the run's folder.
      config: as `read` from it.
      saved: `to_dict` of the configuration that the checkpoint was trained with.

    Raises:
      UserError: they differ.
    """
    values = to_dict(config)
    changed = [
        line
        for name in ("model", "schedule")
        for line in differences(saved[name], values[name], name + ".")
    ]
    if changed:
        raise UserError(
            f"{folder / NAME} describes another model than its checkpoint holds "
            f"({'; '.join(changed)}); restore it"
        )


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return values
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; restore it or give another folder") from error


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON can hold it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def from_dict(values: dict[str, Any], cls: type = Config) -> Any:
    """Inverse of `to_dict`.

    Raises:
      UserError: an unknown field.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = set(values) - set(fields)
    if unknown:
        raise UserError(f"unknown field(s) of {cls.__name__}: {', '.join(sorted(unknown))}")

    def parse(name: str, value: Any) -> Any:
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            return from_dict(value, kind)  # type: ignore[arg-type]
        if value is not None and kind in (Path, Path | None):
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    return cls(**{name: parse(name, value) for name, value in values.items()})


# What may change between a run and its resumption: how long, where to, where from, how often, and
# in how much memory.
_FREE = (
    "output",
    "steps",
    "data.data_dir",
    "data.prepared_dir",
    "data.held_out_per_class",
    "data.memory_gib",
    "model.remat",
    "training.steps_per_dispatch",
)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines 'field: old -> new' for what must be equal for a run to go on, but is not.

    Args:
      old: `to_dict` of the run's own configuration.
      new: `to_dict` of the configuration asked for.
      prefix: path of the two within the whole, for the recursion.
    """
    lines = []
    for name in sorted(set(old) | set(new)):
        path = prefix + name
        a, b = old.get(name), new.get(name)
        # A run that was imported chooses its compute type when it is trained first.
        if path in _FREE or a == b or (path == "model.dtype" and a == "auto"):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, path + ".")
        else:
            lines.append(f"{name}: {a} -> {b}")
    return lines
