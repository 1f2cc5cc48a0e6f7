"""The paper's MNIST model for as long as there is time, its samples, and its cloning experiment."""

from pathlib import Path

from diffusion_jax.training.metrics import read_metrics
from experiments.tools.check import task as tasks
from experiments.tools.check.task import Task

# Of the seconds that there are, what samples and cloning get at most.
SHARE, AFTER = 0.4, 150.0
# Of a training that a signal stopped, and that is saved (`preemption.EXIT_STATUS`).
STOPPED = 75


def measure(task: Task) -> None:
    """The item `paper`; the run is in OUT/paper, and a later call goes on with it."""
    folder, log = task.folder / "paper", task.scratch / "train.log"
    arguments = (
        *("-m", "experiments.train_lsun", "--preset", "mnist", "--dtype", "bfloat16"),
        *("--run-dir", str(folder), *task.sizes.paper),
    )
    training = task.seconds - min(SHARE * task.seconds, AFTER)
    tasks.finish(tasks.start(arguments, log), log, training, allowed=(0, STOPPED))
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    step = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    task.add({"run": str(folder), "updates": step})
    if lines:
        task.add({"loss": lines[-1]["loss"], "images/s": lines[-1]["images_per_second"]})
    tasks.run(task, "sample", ["-m", "experiments.sample", str(folder), *task.sizes.samples])
    task.add({"samples": str(folder / "samples")})
    # Forks of other parameters are not to be mixed.
    out = folder / f"cloning_{step}"
    cloning = ("-m", "experiments.cloning", str(folder), "--out", str(out), *task.sizes.cloning)
    tasks.run(task, "cloning", cloning)
    task.add({"cloning": str(Path(out) / "report.html")})
