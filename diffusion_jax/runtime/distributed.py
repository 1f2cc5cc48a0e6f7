"""Several processes that run one program together, on one host or many, over jax.distributed.

Whoever starts them gives each process JAX_COORDINATOR_ADDRESS (host:port of process 0, any free
port), JAX_NUM_PROCESSES and JAX_PROCESS_ID; under SLURM's srun and Open MPI's mpirun they are
found. What jax.distributed leaves open is here: all must do the same, and where one ends, the
others end too and name it.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the key-value store has no public name

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.text import shown

# Seconds without a sign of life after which a process is taken for dead.
SILENCE = 20.0
_BEAT = 1.0
# Seconds in which all processes must have come.
_START = 300
# Seconds for which processes wait for what one of them does, such as preparing the data.
_PATIENCE = 24 * 3600
# Seconds within which a shared file system shows a file to the other hosts.
VISIBLE = 60.0
# What collectives raise when a process at the other end is gone.
_LOST = ("gloo", "nccl", "closed by peer", "connection", "collective")

_ADDRESS, _COUNT, _INDEX = VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)


def join() -> None:
    """Joins the other processes, if there are any; call it before the first JAX computation.

    Standard output is that of process 0 alone.

    Raises:
      UserError: some of the variables are missing or wrong, or the others do not come.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    launched = any(
        os.environ.get(name, "1") != "1"
        for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    if not given and not launched:
        return
    arguments: dict[str, Any] = {}
    if not launched:
        arguments = _arguments(given)
    # Its handler of SIGTERM would come before ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=_START, shutdown_timeout_seconds=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not find each other within {_START} s: "
            f"{str(error).splitlines()[0]}; see that all are started, and that {_ADDRESS} is host "
            f"and free port of process 0 as the others reach it"
        ) from error
    if jax.process_count() > 1:
        _Watch.current = _Watch(jax.process_index(), jax.process_count())
        if jax.process_index() > 0:
            sys.stdout = Path(os.devnull).open("w", errors="replace")  # noqa: SIM115


def _arguments(given: dict[str, str]) -> dict[str, Any]:
    if missing := [name for name in VARIABLES if name not in given]:
        known, unknown = ("is" if len(names) == 1 else "are" for names in (given, missing))
        raise UserError(
            f"{' and '.join(given)} {known} set, but {' and '.join(missing)} {unknown} not: "
            f"several processes need all three, one process none"
        )
    try:
        count, index = int(given[_COUNT]), int(given[_INDEX])
        port = int(given[_ADDRESS].rsplit(":", 1)[1])
    except (ValueError, IndexError):
        port = count = index = -1
    if not (0 <= index < count and 0 < port < 2**16):
        raise UserError(
            f"{_ADDRESS}={given[_ADDRESS]} {_COUNT}={given[_COUNT]} {_INDEX}={given[_INDEX]}: "
            f"these are host:port, the number of processes, and one's own from 0 on"
        )
    return {"coordinator_address": given[_ADDRESS], "num_processes": count, "process_id": index}


def gather(value: str) -> list[str]:
    """The values of all processes, in their order, on each; it waits until all have come here.

    Args:
      value: this process's.
    """
    watch = _Watch.current
    return [value] if watch is None else watch.gather(value)


def from_first(make: Callable[[], str]) -> str:
    """What process 0 makes; the others wait for it."""
    return gather(make() if jax.process_index() == 0 else "")[0]


def wait_until_seen(path: Path, seen: Callable[[], bool]) -> None:
    """Waits until this process sees what process 0 wrote: other hosts may have it a little later.

    Args:
      path: what was written, for the message.
      seen: whether it is there as it should be.

    Raises:
      UserError: it does not come within a minute.
    """
    deadline = time.monotonic() + VISIBLE
    while True:
        with suppress(OSError):
            if seen():
                return
        if time.monotonic() > deadline:
            raise UserError(
                f"this process does not see what process 0 wrote to {path}: all processes need one "
                f"folder that they share; give a --run-dir on a file system of all hosts"
            )
        time.sleep(0.1)


def require_same(what: str, value: str) -> None:
    """Refuses processes that are not about to do the same.

    Args:
      what: the subject of the message, such as "configuration".
      value: what must be equal.

    Raises:
      UserError: a process has another value than process 0; it is named.
    """
    values = gather(value)
    others = [index for index, other in enumerate(values) if other != values[0]]
    if others and _Watch.current is not None:
        raise UserError(
            f"{_Watch.current.name(others[0])} has another {what} than process 0; give all "
            f"processes the same command and the same data"
        )


def leave(error: BaseException, status: int) -> None:
    """Ends this process because of an error, and tells the others why; alone, it does nothing.

    Args:
      error: what was raised.
      status: exit status.
    """
    if _Watch.current is not None:
        text = str(error) or type(error).__name__
        _Watch.current.leave(shown(text.splitlines()[0]), status)


def blame(error: Exception) -> None:
    """Where an error may only say that another process is gone, waits until it is known which.

    This process ends then, with that one's name; if it is none, or alone, the function returns.
    """
    if _Watch.current is not None and any(word in str(error).lower() for word in _LOST):
        time.sleep(SILENCE + 5 * _BEAT)


def finish() -> None:
    """Ends together with the others; alone, it does nothing."""
    if _Watch.current is not None:
        _Watch.current.finish()


class _Watch:
    """Tells the others that this process lives, and ends it when one of them does not.

    A thread of its own, since the program may be waiting for the lost process. It goes through the
    key-value store that process 0 holds. Where process 0 itself is lost, jax.distributed ends the
    others at once with a message of its own.
    """

    current: "_Watch | None" = None

    def __init__(self, index: int, count: int) -> None:
        self._client: Any = global_state.client
        self._index, self._count = index, count
        self._calls = 0
        self._finished = threading.Event()
        self._hosts = self.gather(socket.gethostname())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def name(self, index: int) -> str:
        return f"process {index} of {self._count} ({self._hosts[index]})"

    def gather(self, value: str) -> list[str]:
        self._calls += 1
        key = f"gather/{self._calls}"
        self._client.key_value_set(f"{key}/{self._index}", value)
        return [
            self._client.blocking_key_value_get(f"{key}/{index}", 1000 * _PATIENCE)
            for index in range(self._count)
        ]

    def leave(self, reason: str, status: int) -> None:
        self._client.key_value_set(f"ended/{self._index}", reason)
        if self._index == 0:
            time.sleep(3 * _BEAT)  # the store ends with this process: the others must hear of it
        self._exit(status)

    def finish(self) -> None:
        self.gather("")  # as long as one is at work, the others watch it
        self._finished.set()
        self._thread.join()
        jax.distributed.shutdown()

    def _watch(self) -> None:
        heard: dict[int, tuple[str, float]] = {}
        beat = 0
        while not self._finished.wait(_BEAT):
            beat += 1
            try:
                self._client.key_value_set(f"beat/{self._index}", str(beat), allow_overwrite=True)
                beats, ended = (
                    {int(key.rsplit("/", 1)[1]): value for key, value in entries}
                    for entries in map(self._client.key_value_dir_get, ("beat/", "ended/"))
                )
            except jax.errors.JaxRuntimeError:
                self._lost(f"{self.name(0)} cannot be reached any more")
            for index in set(range(self._count)) - {self._index}:
                if index in ended:
                    self._lost(f"{self.name(index)} ended: {ended[index]}")
                last, when = heard.get(index, ("", time.monotonic()))
                if beats.get(index, "") != last or index not in heard:
                    heard[index] = (beats.get(index, ""), time.monotonic())
                elif time.monotonic() - when > SILENCE:
                    self._lost(
                        f"{self.name(index)} has given no sign of life for {SILENCE:.0f} s: it was "
                        f"killed, or its host is down"
                    )

    def _lost(self, message: str) -> NoReturn:
        sys.stdout.flush()
        print(f"error: {message}; so {self.name(self._index)} ends too", file=sys.stderr)
        self._exit(1)

    def _exit(self, status: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # an orderly end would wait for the others
