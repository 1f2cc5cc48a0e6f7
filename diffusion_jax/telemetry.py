"""What a run tells: JSON lines, TensorBoard and a progress bar."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from diffusion_jax.errors import UserError


def memory() -> dict[str, float]:
    """Memory in use in GiB: of the host process, and at its peak on the fullest device if known."""
    gib = 2.0**30
    used = {"host_memory_gib": psutil.Process().memory_info().rss / gib}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return used | ({"device_memory_gib": max(peaks) / gib} if peaks else {})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, but for a last one torn by a kill."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Telemetry:
    """Writes metrics.jsonl and TensorBoard events, and shows the progress of a training.

    On a terminal it is a progress bar; elsewhere a line at each logged step. To be used as a
    context manager.
    """

    def __init__(self, run_dir: Path, start: int, steps: int, batch_size: int) -> None:
        """Opens the files; what they hold of updates after `start` is dropped, to be done again.

        Args:
          run_dir: the run's folder.
          start: updates done before.
          steps: updates in all.
          batch_size: images an update.
        """
        self._path = run_dir / "metrics.jsonl"
        kept = [record for record in read_metrics(self._path) if record["step"] <= start]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)
        self._batch_size = batch_size
        self._last = (start, time.monotonic())
        self._smooth_loss = math.nan
        self.console = Console()
        self._progress = Progress(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:.1f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(
            "", total=steps, completed=start, loss=math.nan, speed=math.nan
        )

    def __enter__(self) -> "Telemetry":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._board.close()
        self._file.close()

    def advance(self, step: int, loss: float) -> None:
        """Moves the progress bar to an update, with a running mean of the loss."""
        first = math.isnan(self._smooth_loss)
        self._smooth_loss = loss if first else 0.95 * self._smooth_loss + 0.05 * loss
        self._progress.update(self._task, completed=step, loss=self._smooth_loss)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of one update, with throughput and memory.

        Raises:
          UserError: the files cannot be written to.
        """
        now = time.monotonic()
        last_step, last_time = self._last
        speed = max(step - last_step, 0) * self._batch_size / max(now - last_time, 1e-9)
        self._last = (step, now)
        record = metrics | {"images_per_second": speed} | memory()
        try:
            self._file.write(json.dumps({"step": step, "time": time.time()} | record) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error}; free some space and run the same command "
                f"again, which goes on from the last complete checkpoint"
            ) from error
        for name, value in record.items():
            self._board.add_scalar(name, value, step)
        self._progress.update(self._task, speed=speed)
        if self._progress.disable:
            self.console.print(
                f"step {step}  loss {metrics['loss']:.4f}  {speed:.1f} images/s", highlight=False
            )

    def pause(self, step: int) -> None:
        """Starts the next throughput after this update, leaving out what is not training."""
        self._last = (step, time.monotonic())
