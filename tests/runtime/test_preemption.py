"""Signals: the first asks a run to save and stop, the second ends it."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import two_convolutions
from two_convolutions import build

from diffusion_jax.config import ModelConfig
from diffusion_jax.runtime.preemption import EXIT_STATUS, StopRequest
from diffusion_jax.training import loop
from experiments.tools.kills.child_run import Run
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_the_next_is_none(number, capsys):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with StopRequest() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed()
        assert stop.agreed()
        assert all(signal.getsignal(each) is signal.SIG_DFL for each in before)
    assert {each: signal.getsignal(each) for each in before} == before
    assert f"{number.name}: saving after this update; a second one" in capsys.readouterr().err


@pytest.mark.parametrize("foreign", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)])
def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch, foreign):
    """As in a program that embeds Python: such a handler could not be put back."""
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
from diffusion_jax.runtime.preemption import StopRequest
with StopRequest():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_ends_the_process_at_once(second):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=5) == -second
    finally:
        process.kill()
        process.communicate()


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    """Stopped by Ctrl-C where a grid of samples was due, too."""
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
    command = [sys.executable, two_convolutions.__file__, *words(stopped, 1_000_000)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe)
    first = stopped.folder / "samples" / "step_00000001.png"
    while not first.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == EXIT_STATUS, err
    (step,) = stopped.saved()
    assert f"stopped after step {step} of 1000000, which is saved" in out
    assert f"step_{step:08d}.png" not in stopped.images()  # it did not stay to draw it
    loop.train(parse(words(stopped, step + 3)))
    assert f"Resuming after step {step}" in capsys.readouterr().out
    loop.train(parse(words(whole, step + 3)))
    assert stopped.losses() == whole.losses()
    assert stopped.images() == whole.images()
    assert stopped.arrays(step + 3) == whole.arrays(step + 3)
