"""SIGTERM and Ctrl-C as a request to save and stop; a second one ends the process at once."""

import signal
import sys
import threading
from collections import deque
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.runtime.devices import sharded

# EX_TEMPFAIL of sysexits.h: what failed now will go on if it is tried again.
EXIT_STATUS = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Answers that are being gathered while the program goes on.
_AHEAD = 2


class Stopped(Exception):
    """A run was asked to stop, and has saved itself; it ends with EXIT_STATUS."""


_any = jax.jit(jnp.max)


class StopRequest:
    """Whether a signal asked this process, or another of the run, to stop.

    To be used as a context manager, which puts the signals' handlers back. Python lets the main
    thread alone handle signals: in others none asks this process. A handler that is not Python's
    could not be put back, so its signal is left to it.
    """

    def __init__(self) -> None:
        self._requested = False
        self._asked: deque[Array] = deque()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if (handler := signal.getsignal(number)) is not None:
                    self._before[number] = handler
                    signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        print(f"{name}: saving after this update; a second one ends at once", file=sys.stderr)

    def agreed(self) -> bool:
        """Whether to stop now: the same answer in all processes, which all call it equally often.

        With several processes it is the answer to an earlier call, so that none waits for it.
        """
        if jax.process_count() == 1:
            return self._requested
        shape, mine = (jax.device_count(),), np.array([self._requested], np.int32)
        self._asked.append(_any(jax.make_array_from_callback(shape, sharded(), lambda _: mine)))
        return len(self._asked) > _AHEAD and bool(self._asked.popleft())
