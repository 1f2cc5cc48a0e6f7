"""Signals as a request to save and stop; a later one ends the process at once."""

import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.runtime.devices import sharded

# EX_TEMPFAIL of sysexits.h: what failed now will go on if it is tried again.
EXIT_STATUS = 75
# What asks: systems and schedulers, Ctrl-C, a terminal that is gone, what a job script chose, and a
# limit of processor time. Not every system has all of them.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
# The system sends it again for every second of processor time over the limit.
_REPEATED = getattr(signal, "SIGXCPU", None)
# Seconds in which several signals are one request: a launcher and the group that it signals too,
# or a terminal and its shell, send it twice.
_AS_ONE = 1.0
# Answers that are being gathered while the program goes on.
_AHEAD = 2


class Stopped(Exception):
    """A run was asked to stop, and has saved itself; it ends with EXIT_STATUS."""


_any = jax.jit(jnp.max)


class StopRequest:
    """Whether one of SIGNALS asked this process, or another of the run, to stop.

    Another one within a second is the same request. A later one ends the process at once, except
    SIGXCPU, which the system repeats.

    To be used as a context manager, which puts the signals' handlers back. Python lets the main
    thread alone handle signals: in others none asks this process. What is ignored, as SIGHUP is
    under nohup, stays ignored; so do a program's own handlers of the signals other than SIGTERM and
    SIGINT stay, and handlers that are not Python's, which could not be put back.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._asked: deque[Array] = deque()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if _may_be_taken(number, handler):
                    self._before[number] = handler
                    signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._since is not None:  # what belongs to the request is not to end what is saved
            time.sleep(max(0.0, self._since + _AS_ONE - time.monotonic()))
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._since is None:
            self._since = time.monotonic()
            name = signal.Signals(number).name
            # The terminal may be gone, or this be called while something else is being printed.
            with suppress(OSError, RuntimeError, ValueError):
                text = f"{name}: saving after this update; a second one ends at once"
                print(text, file=sys.stderr)
        elif time.monotonic() - self._since > _AS_ONE and number != _REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def agreed(self) -> bool:
        """Whether to stop now: the same answer in all processes, which all call it equally often.

        With several processes it is the answer to an earlier call, so that none waits for it.
        """
        requested = self._since is not None
        if jax.process_count() == 1:
            return requested
        shape, mine = (jax.device_count(),), np.array([requested], np.int32)
        self._asked.append(_any(jax.make_array_from_callback(shape, sharded(), lambda _: mine)))
        return len(self._asked) > _AHEAD and bool(self._asked.popleft())


def _may_be_taken(number: signal.Signals, handler: Any) -> bool:
    if number == signal.SIGINT:  # a shell ignores it, unasked, for what it starts with &
        return handler is not None
    if number == signal.SIGTERM:
        return handler is not None and handler != signal.SIG_IGN
    return bool(handler == signal.SIG_DFL)
