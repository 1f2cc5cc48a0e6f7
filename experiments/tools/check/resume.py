"""Whether a run that was stopped and resumed ends as one that was not, bit for bit."""

import os
import subprocess
from pathlib import Path

from diffusion_jax.training.metrics import read_metrics
from experiments.tools.check.task import Task, finish, start

# Without the option two sums may be added in either order, from one run to the next.
FORMS = {"by default": "", "deterministic": "--xla_gpu_deterministic_ops=true"}


def measure(task: Task) -> None:
    """The item `resume`: the sample run, straight and stopped half-way, both with each option.

    Nothing is timed, so all that do not wait for one another run at the same time.
    """
    updates = task.sizes.run_updates
    forms = list(FORMS)[-task.sizes.forms :]
    for parts in ({"straight": updates, "stopped": updates // 2}, {"stopped": updates}):
        runs = [
            (log := task.scratch / f"{name}_{part}.log", _start(task, name, part, steps, log))
            for name in forms
            for part, steps in parts.items()
        ]
        for log, process in runs:
            finish(process, log, task.seconds)
    for name in forms:
        straight, stopped = (_losses(_folder(task, name, p)) for p in ("straight", "stopped"))
        apart = [step for step in straight if straight[step] != stopped.get(step)]
        first = f"apart from update {apart[0]} on" if apart else "equal bit for bit"
        task.add({name: f"losses of {len(straight)} updates {first}, resumed at {updates // 2}"})
        task.add({f"losses {name}": [straight, stopped]})
        if name == "deterministic":
            task.judge("deterministic: losses apart", len(apart), 0)


def _folder(task: Task, name: str, part: str) -> Path:
    return task.scratch / name / part


def _start(task: Task, name: str, part: str, steps: int, log: Path) -> "subprocess.Popen[bytes]":
    arguments = (
        *("-m", "experiments.train_lsun", "--preset", "sample", "--dtype", "float32"),
        *("--run-dir", str(_folder(task, name, part)), "--steps", str(steps)),
        *("--log-every", "1", "--checkpoint-every", str(task.sizes.run_updates // 2)),
        *task.sizes.run,
    )
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FORMS[name]}".strip()
    return start(arguments, log, {"XLA_FLAGS": flags})


def _losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r}
