"""The noise schedules that a configuration knows by name, and those that come from a file."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.files import parse_json
from diffusion_jax.schedule import (
    NoiseSchedule,
    constant_schedule,
    cosine_schedule,
    linear_schedule,
)

# Each is called with the number of steps, and with its further parameters by name.
SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": linear_schedule,
    "constant": constant_schedule,
    "cosine": cosine_schedule,
}


def is_path(name: str) -> bool:
    """Whether a schedule's name is the path of a file."""
    return name.endswith(".json") or "/" in name


def parameters_of(name: str) -> dict[str, float]:
    """The parameters that a schedule in SCHEDULES has beside its steps, with their defaults."""
    every = inspect.signature(SCHEDULES[name]).parameters.values()
    return {each.name: each.default for each in every if each.name != "num_steps"}


def make_schedule(name: str, num_steps: int, parameters: Mapping[str, float]) -> NoiseSchedule:
    """The schedule of a name in SCHEDULES.

    Raises:
      UserError: an unknown name or parameter, or values that the schedule refuses.
    """
    if name not in SCHEDULES:
        raise UserError(
            f"there is no schedule {name!r}; choose from {', '.join(SCHEDULES)}, or give the path "
            f"of a file as experiments.regimes writes it (schedule.json)"
        )
    known = parameters_of(name)
    if unknown := sorted(set(parameters) - set(known)):
        raise UserError(
            f"the {name} schedule has no parameter {', '.join(unknown)}; it has "
            f"{', '.join(f'{key} = {value:g}' for key, value in known.items()) or 'none'}"
        )
    try:
        with np.errstate(all="ignore"):
            return SCHEDULES[name](num_steps, **parameters)
    except UserError as error:
        given = "".join(f", {key} = {value:g}" for key, value in parameters.items())
        raise UserError(f"the {name} schedule of {num_steps} steps{given}: {error}") from error


def listing() -> str:
    """All that ScheduleConfig.schedule may be, one line each, for the help of commands."""
    lines = []
    for name in SCHEDULES:
        parameters = (f"{key} = {value:g}" for key, value in parameters_of(name).items())
        lines.append(f"  {name:<10} {', '.join(parameters)}")
    return "\n".join(["schedules, for --schedule, and --schedule-parameters of each:", *lines])


def read_times(path: Path | str) -> tuple[float, ...]:
    """The times of a schedule's steps from a JSON file: {"time": [t_0, ..., t_{L-1}]}.

    They are Ornstein-Uhlenbeck times, positive and increasing, as `from_time` takes them;
    experiments.regimes writes such a file for its data.

    Raises:
      UserError: no such file, or it holds something else.
    """
    path = Path(path).expanduser()
    try:
        values = parse_json(path.read_bytes())["time"]
        if not isinstance(values, list):
            raise TypeError("time is no list")
        times = tuple(float(value) for value in values)
    except OSError as error:
        raise UserError(f"the schedule {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path} holds no schedule: a JSON object is wanted whose entry time lists the "
            f"Ornstein-Uhlenbeck times of two steps or more"
        ) from error
    increase = np.all(np.diff(times, prepend=0) > 0) and np.isfinite(times).all()
    if len(times) < 2 or not increase:
        raise UserError(
            f"the times in {path} must be two or more, positive, and increase from step to step"
        )
    return times
