"""The one worker that owns the device, and the work that it does in turns, a step at a time.

Work is a generator that computes a step between two yields. All that was admitted is advanced in
turns, so that a short request does not wait for a long one; nobody's arrays are joined with
another's, so that turns change no bytes. Results are kept as long as there is room for them, and
computed again where they are not.
"""

import sys
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusion_jax.errors import UserError

Status = Literal["queued", "running", "done", "cancelled", "failed"]
Steps = Generator[None, None, None]
# Bytes of results that are kept.
KEPT_BYTES = 2**29


class Busy(Exception):
    """There is more work than may wait."""


@dataclass(eq=False)
class Job:
    """A piece of work, and what is known of it so far.

    Attributes:
      id: its name.
      status: where it stands.
      done: steps done.
      of: steps in all.
      result: what the work fills in; of a kind of its own.
      events: what happened, as (name, data), in order.
      detail: why it failed or was cancelled.
      is_fault: whether it failed by a fault of the program.
      num_bytes: of the result.
      waiters: called, from any thread, after each change.
    """

    id: str
    result: Any
    status: Status = "queued"
    done: int = 0
    of: int = 1
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    detail: str | None = None
    is_fault: bool = False
    num_bytes: int = 0
    cancelled: bool = False
    waiters: set[Callable[[], None]] = field(default_factory=set)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ("done", "cancelled", "failed")

    def tell(self, name: str, data: dict[str, Any]) -> None:
        """Adds an event."""
        self.events.append((name, data))
        self.changed()

    def changed(self) -> None:
        """Wakes those who wait."""
        for waiter in tuple(self.waiters):
            waiter()


class Worker:
    """Runs work on a thread of its own.

    Attributes:
      most: pieces of work that may be unfinished at a time.
    """

    def __init__(self, most: int, kept_bytes: int = KEPT_BYTES) -> None:
        self.most = most
        self._kept_bytes = kept_bytes
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._turns: deque[tuple[Job, Steps]] = deque()
        self._lock = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, prepare: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Starts the thread, which first prepares itself.

        Args:
          prepare: called on the thread before any work.
          failed: called with what it raises; no work is done then.
        """

        def run() -> None:
            try:
                prepare()
            except Exception as error:
                failed(error)
                return
            self._run()

        # The thread hands the interpreter over at each program that it runs, and would wait five
        # milliseconds to have it back from the one who answers requests.
        sys.setswitchinterval(5e-4)
        self._thread = threading.Thread(target=run, name="device", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether no more work is done."""
        return self._stopping

    def stop_soon(self) -> None:
        """Ends the thread after the step that it is at, and wakes all who wait for work."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
            jobs = list(self._jobs.values())
        for job in jobs:
            job.changed()

    def stop(self) -> None:
        """Ends the thread as `stop_soon` does, and waits for it."""
        self.stop_soon()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def find(self, name: str) -> Job | None:
        """The job of this name, if it is known."""
        with self._lock:
            if name in self._jobs:
                self._jobs.move_to_end(name)
            return self._jobs.get(name)

    def submit(
        self, name: str, result: Any, work: Callable[[Job], Steps], anew: bool = False
    ) -> Job:
        """The job of this name: one that is known, or a new one.

        Args:
          name: a function of all that the result depends on.
          result: what the work fills in.
          work: makes the generator of a new job.
          anew: whether one that failed or was cancelled is begun again.

        Raises:
          Busy: there is too much unfinished work.
        """
        with self._lock:
            job = self.find(name)
            lost = job is not None and (job.cancelled or job.status == "failed")
            if job is not None and not (lost and anew):
                return job
            if len(self._turns) >= self.most:
                raise Busy
            job = Job(name, result)
            self._jobs[name] = job
            self._turns.append((job, work(job)))
            self._lock.notify_all()
            return job

    def ahead(self) -> int:
        """Pieces of work that are not finished."""
        return len(self._turns)

    def cancel(self, job: Job) -> None:
        """Asks a job to end before its next step."""
        with self._lock:
            job.cancelled = not job.ended
            self._lock.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._turns and not self._stopping:
                    self._lock.wait()
                if self._stopping:
                    return
                job, steps = self._turns[0]
            finished = self._advance(job, steps)
            with self._lock:
                self._turns.popleft()
                if not finished:
                    self._turns.append((job, steps))
                else:
                    self._forget()
            if finished:
                job.changed()

    def _advance(self, job: Job, steps: Steps) -> bool:
        """Takes one step; whether it was the last."""
        if job.cancelled:
            steps.close()
            job.detail, job.status = "it was cancelled", "cancelled"
            return True
        try:
            job.status = "running"
            next(steps)
            job.done += 1
            job.changed()
            return False
        except StopIteration:
            job.done, job.status = job.of, "done"
        except UserError as error:
            job.detail, job.status = str(error), "failed"
        except Exception:
            traceback.print_exc()
            job.is_fault = True
            job.detail, job.status = "the computation failed; the server's log says how", "failed"
        return True

    def _forget(self) -> None:
        """Drops the results that were asked for longest ago, where they are too many."""
        total = sum(job.num_bytes for job in self._jobs.values())
        for name, job in list(self._jobs.items())[:-1]:
            if total <= self._kept_bytes and len(self._jobs) <= 10_000:
                return
            if job.ended:
                total -= job.num_bytes
                del self._jobs[name]
