"""What a run tells: JSON lines, TensorBoard, a progress bar and a profile."""

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from diffusion_jax.runtime.files import unwritten, writing
from diffusion_jax.training.metrics import read_metrics


def memory() -> dict[str, float]:
    """Memory in use in GiB: of the host process, and at its peak on the fullest device if known."""
    gib = 2.0**30
    used = {"host_memory_gib": psutil.Process().memory_info().rss / gib}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return used | ({"device_memory_gib": max(peaks) / gib} if peaks else {})


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
          batch_size: images per update.
        """
        self._path = run_dir / "metrics.jsonl"
        kept = [record for record in read_metrics(self._path) if record["step"] <= start]
        with writing(self._path) as partial:
            partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a")
        (run_dir / "tensorboard").mkdir(exist_ok=True)
        # TensorBoard reads the files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._board = RecordWriter((run_dir / "tensorboard" / name).open("wb"))
        with self._errors():
            self._add_event(start + 1, file_version="brain.Event:2")
            # Hides what an earlier run logged of this update and of later ones.
            self._add_event(start + 1, session_log=SessionLog(status=SessionLog.START))
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
        for file in (self._board, self._file):
            try:
                file.close()
            except OSError as failure:
                if error is None:
                    raise unwritten(self._path, failure) from failure

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
        self._write(step, metrics | {"images_per_second": speed} | memory())
        self._progress.update(self._task, speed=speed)
        if self._progress.disable:
            self.console.print(
                f"step {step}  loss {metrics['loss']:.4f}  {speed:.1f} images/s", highlight=False
            )

    def log_evaluation(self, step: int, metrics: dict[str, float], shown: str) -> None:
        """Logs an evaluation, on a line of its own, and says the gist of it.

        Args:
          step: updates done.
          metrics: what was measured.
          shown: the gist, in words.

        Raises:
          UserError: the files cannot be written to.
        """
        self._write(step, metrics)
        self.say(step, shown)

    def say(self, step: int, words: str) -> None:
        """Says something of an update, on a line of its own."""
        self.console.print(f"step {step}  {words}", highlight=False, soft_wrap=True)

    def _write(self, step: int, record: dict[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items()]
        with self._errors():
            self._file.write(json.dumps({"step": step, "time": time.time()} | record) + "\n")
            self._file.flush()
            self._add_event(step, summary=Summary(value=values))

    def _add_event(self, step: int, **content: Any) -> None:
        event = Event(step=step, wall_time=time.time(), **content)
        self._board.write(event.SerializeToString())
        self._board.flush()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritten(self._path, error) from error

    def pause(self, step: int) -> None:
        """Starts the next throughput after this update, leaving out what is not training."""
        self._last = (step, time.monotonic())


# Updates before a profile: the first compiles, and the queue of the next ones must fill.
_WARM_UP = 3


class Profile:
    """Traces some updates with jax.profiler, for XProf and TensorBoard.

    To be used as a context manager, which ends a trace that the end of the run cuts short.
    """

    def __init__(self, folder: Path, updates: int | None) -> None:
        """Says what to trace.

        Args:
          folder: where the trace goes.
          updates: how many updates, or None for no trace; whole dispatches, so perhaps a few more.
        """
        self._folder, self._updates = folder, updates
        self._dispatches = 0
        self._left: int | None = None  # of the updates, while a trace is being taken

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def updates(self, step: int, updates: int, state: Any) -> AbstractContextManager[Any]:
        """Marks the next dispatch in the trace, which it begins or ends where it is time to.

        Args:
          step: updates done.
          updates: updates of the dispatch.
          state: what the last dispatch returned; waited for, so that a trace holds whole updates.
        """
        if self._left is not None and self._left <= 0:
            jax.block_until_ready(state)
            self._stop()
        if self._updates is not None and self._dispatches == _WARM_UP:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of a Python function buries the rest
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._left = self._updates
        self._dispatches += 1
        if self._left is not None:
            self._left -= updates
        return jax.profiler.StepTraceAnnotation("train", step_num=step + 1)

    def _stop(self) -> None:
        if self._left is not None:
            self._left = None
            jax.profiler.stop_trace()
            print(f"Profile: xprof --logdir {self._folder} opens it")
