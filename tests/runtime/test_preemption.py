"""Signals: the first asks a run to save and stop, the second ends it."""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import two_convolutions
from two_convolutions import build

from diffusion_jax.config import ModelConfig
from diffusion_jax.runtime import preemption
from diffusion_jax.runtime.preemption import EXIT_STATUS, SIGNALS, StopRequest
from diffusion_jax.training import loop
from experiments.tools.kills.child_run import Run
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


@pytest.fixture
def as_found():
    """All signals as a shell leaves them, whatever the tests were started by."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def handlers():
    return {each: signal.getsignal(each) for each in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_within_a_second_are_one_request(number, as_found, capsys, monkeypatch):
    """Of whatever number, and also while all is saved and the handlers are about to go back.

    By a clock of its own: on a busy machine the real one would make them two requests, the second
    of which ends the tests.
    """
    now, waits = [100.0], []

    def sleep(seconds):
        waits.append(seconds)
        os.kill(os.getpid(), number)
        now[0] += seconds

    monkeypatch.setattr(preemption, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    before = handlers()
    with StopRequest() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed()
        now[0] += 0.75
        for other in SIGNALS:
            os.kill(os.getpid(), other)
        assert stop.agreed()
    assert waits == [0.25]
    assert handlers() == before
    said = f"{number.name}: saving after this update; a second one ends at once\n"
    assert capsys.readouterr().err == said


def test_who_is_not_asked_does_not_wait(as_found):
    began = time.monotonic()
    with StopRequest() as stop:
        assert not stop.agreed()
    assert time.monotonic() - began < 0.5


def test_schedulers_signals_are_among_them():
    names = {each.name for each in SIGNALS}
    assert names == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}


@pytest.mark.parametrize("number", [each for each in SIGNALS if each != signal.SIGINT])
def test_what_is_ignored_stays_ignored(number, as_found):
    signal.signal(number, signal.SIG_IGN)  # as nohup does with SIGHUP
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert not stop.agreed()
        assert signal.getsignal(number) is signal.SIG_IGN


def test_a_shells_ampersand_does_not_switch_ctrl_c_off(as_found, monkeypatch):
    monkeypatch.setattr(preemption, "_AS_ONE", 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_programs_own_handler_of_a_users_signal_is_left(as_found):
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop.agreed()
    assert heard == [signal.SIGUSR1]


def test_a_lost_terminal_does_not_keep_the_request_from_being_heard(as_found, monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(preemption, "_AS_ONE", 0)
    monkeypatch.setattr(sys, "stderr", Gone())
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.agreed()


@pytest.mark.parametrize("foreign", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)])
def test_a_handler_that_is_not_pythons_is_left_alone(as_found, monkeypatch, foreign):
    """As in a program that embeds Python: such a handler could not be put back."""
    monkeypatch.setattr(preemption, "_AS_ONE", 0)
    known, set_handler = signal.getsignal, signal.signal

    def getsignal(number):
        return None if number in foreign else known(number)

    def put(number, handler):
        assert number not in foreign
        return set_handler(number, handler)

    monkeypatch.setattr(signal, "getsignal", getsignal)
    monkeypatch.setattr(signal, "signal", put)
    before = known(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.agreed()
        if signal.SIGINT not in foreign:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.agreed()
    assert known(signal.SIGINT) is before


def test_training_in_another_thread_is_asked_by_no_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelConfig, "build", build)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    words = ["--data", str(tmp_path / "images.npy"), "--batch-size", "8", "--steps", "2"]
    words += ["--num-samples", "1", "--diffusion-steps", "25", "--run-dir", str(tmp_path / "run")]
    handlers = []

    def train():
        loop.train(parse(words))
        handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train).result()
    assert handlers == [before]
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


PROGRAM = """
import time
from diffusion_jax.runtime import preemption
from diffusion_jax.runtime.preemption import StopRequest
preemption._AS_ONE = 0.4
with StopRequest():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_later_one_ends_the_process_at_once(second):
    """But for the one that the system sends for every second over a limit of processor time."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(second)
        time.sleep(0.8)
        process.send_signal(signal.SIGXCPU)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=60) == -second
    finally:
        process.kill()
        process.communicate()


# A terminal becomes that of a process which leads a session and asks for it. Under nohup the tests
# would hand down that SIGHUP is ignored.
ON_A_TERMINAL = """
import fcntl, runpy, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_whose_terminal_was_lost_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    """By SIGHUP, and nothing can be printed any more; where a grid of samples was due, too."""
    monkeypatch.setattr(ModelConfig, "build", build)
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8))
    settings = (
        *("--data", str(images), "--image-size", "None", "--images-per-class", "None"),
        *("--batch-size", "8", "--diffusion-steps", "25", "--log-every", "1"),
        *("--checkpoint-every", "1000", "--sample-every", "1", "--num-samples", "4", "--classes"),
    )

    def words(run, steps):
        return [*settings, "--steps", str(steps), "--run-dir", str(run.folder)]

    stopped, whole = (Run(tmp_path / name, images, 0, ()) for name in ("stopped", "whole"))
    command = [sys.executable, "-c", ON_A_TERMINAL, two_convolutions.__file__]
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [*command, *words(stopped, 1_000_000)],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        start_new_session=True,
    )
    os.close(terminal)
    os.set_blocking(master, False)
    first, said = stopped.folder / "samples" / "step_00000001.png", b""
    while not first.exists():
        with suppress(BlockingIOError):
            said += os.read(master, 10_000)
        assert process.poll() is None, said
        time.sleep(0.01)
    os.close(master)
    try:
        assert process.wait(timeout=300) == EXIT_STATUS
    finally:
        process.kill()
    (step,) = stopped.saved()
    assert f"step_{step:08d}.png" not in stopped.images()  # it did not stay to draw it
    loop.train(parse(words(stopped, step + 3)))
    assert f"Resuming after step {step}" in capsys.readouterr().out
    loop.train(parse(words(whole, step + 3)))
    assert stopped.losses() == whole.losses()
    assert stopped.images() == whole.images()
    assert stopped.arrays(step + 3) == whole.arrays(step + 3)
