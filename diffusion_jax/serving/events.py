"""What happens to a job, as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from diffusion_jax.serving.work import Job, Worker

MEDIA_TYPE = "text/event-stream"
# Seconds after which a line is sent where nothing happens, so that one who went away is noticed.
_ALIVE = 10.0


def written(name: str, data: dict[str, Any], number: int | None = None) -> str:
    """An event as it is sent."""
    line = "" if number is None else f"id: {number}\n"
    return f"{line}event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"


async def stream(job: Job, worker: Worker, after: int = -1) -> AsyncIterator[str]:
    """The events of a job: those that were, and those to come, until it ends.

    Args:
      job: whose events.
      worker: tells how much other work there is.
      after: number of the last event that is known already.

    Yields:
      Events, numbered except for progress, of which no more is sent than there is news.
    """
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(woken.set)

    job.waiters.add(wake)
    told = None
    try:
        at = after + 1
        while True:
            woken.clear()
            ended = job.ended  # before what it told last is read
            news = job.events[at:]
            for name, data in news:
                yield written(name, data, at)
                at += 1
            progress = {"status": job.status, "done": min(job.done, job.of), "of": job.of}
            if progress != told:
                told = progress
                yield written("progress", progress | {"ahead": max(0, worker.ahead() - 1)})
            if worker.stopping and not ended:
                return
            if ended:
                yield written("end", {"status": job.status, "detail": job.detail})
                return
            try:
                await asyncio.wait_for(woken.wait(), _ALIVE)
            except TimeoutError:
                yield ": waiting\n\n"
    finally:
        job.waiters.discard(wake)


async def finished(job: Job, worker: Worker) -> None:
    """Waits for the end of a job, or of the worker."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(woken.set)

    job.waiters.add(wake)
    try:
        while not (job.ended or worker.stopping):
            await woken.wait()
            woken.clear()
    finally:
        job.waiters.discard(wake)
