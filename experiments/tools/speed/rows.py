"""The benchmark's rows for images of one size: forward pass, sampling and train step."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from experiments.tools.speed import programs, turns
from experiments.tools.speed.effort import SIZES, Effort
from experiments.tools.speed.programs import Program
from experiments.tools.speed.ratios import BOUNDS, extrapolate
from experiments.tools.speed.sides import Sides, on_gpu

if TYPE_CHECKING:  # it needs torch, which may be missing
    from experiments.tools.speed.reference import MakeCall, Reference

# Pixels a side, and whether in bfloat16.
Case = tuple[int, bool]


def suffix(size: int, bfloat16: bool) -> str:
    """What the names of a case's rows end in."""
    return f"{size}_bfloat16" if bfloat16 else f"{size}"


def compile_programs(
    sides: Sides, effort: Effort, cases: Sequence[Case]
) -> dict[Case, dict[str, Program]]:
    """Compiles JAX's programs of all cases at the same time.

    One program alone does not keep two cores busy.
    """
    makers = {
        (case, name): maker
        for case in cases
        for name, maker in _makers(sides, effort, *case).items()
    }
    found: dict[Case, dict[str, Program]] = {}
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda make: make(), makers.values())
        for (case, name), program in zip(makers, made, strict=True):
            found.setdefault(case, {})[name] = program
    return found


def _makers(
    sides: Sides, effort: Effort, size: int, bfloat16: bool
) -> dict[str, Callable[[], Program]]:
    model, params = sides.model_in(bfloat16), sides.params
    (x, step), images = sides.inputs(size), sides.images(size)
    makers: dict[str, Callable[[], Program]] = {
        "forward": lambda: programs.forward(model, params, x, step),
        "train": lambda: programs.train_step(model, lambda: params, images, sides.config),
    }
    if size == SIZES[0]:
        makers["sampling"] = lambda: programs.sampling(model, params, x, effort.sampled)
    return makers


def _reference_calls(
    sides: Sides, reference: "Reference", effort: Effort, size: int
) -> dict[str, "MakeCall"]:
    x, step = sides.inputs(size)
    mean = programs.MEAN[: sides.model.channels]
    return {
        "forward": reference.forward(x, step),
        "sampling": reference.sampling(x, effort.sampled),
        "train": reference.train_step(sides.images(size), mean, sides.config),
    }


def measure(
    report: dict[str, Any],
    sides: Sides,
    effort: Effort,
    made: Mapping[str, Program],
    case: Case,
    say: Callable[[str], None],
) -> None:
    """Times the programs of a case, and adds the rows to the benchmark's report.

    Args:
      report: its `seconds`, `compile_seconds`, `ratios` and more.
      sides: the two models.
      effort: how much is measured.
      made: from `compile_programs`.
      case: which.
      say: prints what comes next.
    """
    (size, bfloat16), end, reference = case, suffix(*case), sides.reference
    calls = {} if reference is None else _reference_calls(sides, reference, effort, size)
    compile = effort.full and (on_gpu() or size == SIZES[0])
    for what in ("forward", "sampling", "train"):
        if what not in made:
            continue
        name, pairs = f"{what}_{end}", effort.pairs[f"{what}_{size}"]
        say(f"Measuring {name}")
        take_turns = turns.TakeTurns(pairs, effort.pause, effort.warm_up, effort.together)
        if reference is None:
            row = turns.alone(made[what], take_turns)
        else:
            if what != "sampling":  # which is made of forward passes, and has their layout
                layout, trial = reference.faster_layout(calls[what], bfloat16)
            its = reference, calls[what], reference.setting(layout, bfloat16)
            compiled = partial(turns.compile_reference, *its)
            *_, row = turns.side_by_side(
                *(made[what], *its, take_turns),
                compiled if compile and what != "sampling" else None,
            )
            row["ratios"]["layout_trial_seconds"] = trial
            if name in BOUNDS:
                row["ratios"]["bound"] = BOUNDS[name]
        for part, value in row.items():
            report[part][name] = value
    if "sampling" in made:
        seconds = report["seconds"][f"sampling_{end}"]
        report[f"sampling_{end}"] = {
            "steps_timed": effort.sampled,
            "seconds_of_1000_steps": {
                side: extrapolate(value, effort.sampled) for side, value in seconds.items()
            },
        }
    report.setdefault("compiler_memory", {})[f"train_{end}"] = made["train"].memory
