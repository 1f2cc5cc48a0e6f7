"""Training in several processes, on changing numbers of devices, stopped by signals."""

import signal
import time

import numpy as np
import pytest
import two_convolutions
from processes import finish, start
from two_convolutions import build

from diffusion_jax.config import ModelConfig
from diffusion_jax.training import loop
from diffusion_jax.training.metrics import read_metrics
from experiments.tools.kills.child_run import Run
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def settings(run, steps):
    words = (
        *("--data", run.data, "--image-size", "None", "--images-per-class", "None"),
        *("--batch-size", 24, "--diffusion-steps", 25, "--log-every", 1, "--num-samples", 8),
        *("--checkpoint-every", 50, "--classes", "--run-dir", run.folder, "--steps", steps),
    )
    return [str(word) for word in words]


def stop(run, count, devices, target):
    """Starts a run without end and sends SIGUSR1 to one process once it trains; their ends."""
    processes = start([two_convolutions.__file__, *settings(run, 1_000_000)], count, devices)
    deadline = time.monotonic() + 300
    while not any(r["step"] >= 4 for r in read_metrics(run.folder / "metrics.jsonl")):
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            return finish(processes, timeout=0)
        time.sleep(0.02)
    processes[target].send_signal(signal.SIGUSR1)
    return finish(processes)


def vector(run, step):
    """All floats of a checkpoint."""
    arrays = run.arrays(step)
    chosen = [x for name, x in arrays.items() if "params" in name or "mu" in name or "nu" in name]
    return np.concatenate([np.frombuffer(x, np.float32) for x in chosen]).astype(np.float64)


@pytest.mark.slow
def test_processes_and_devices_may_change_between_two_starts(tmp_path, monkeypatch, capsys):
    """Three processes, stopped; two with two devices each; one with eight; all as one alone."""
    monkeypatch.setattr(ModelConfig, "build", build)
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8))
    run, whole = (Run(tmp_path / name, images, 0, ()) for name in ("elastic", "whole"))
    ends = stop(run, 3, 1, target=2)
    step = run.saved()[0]
    assert [code for code, _, _ in ends] == [75] * 3, ends
    assert f"stopped after step {step} of 1000000, which is saved" in ends[0][1]
    assert "Devices: 3 x cpu" in ends[0][1]
    assert all("step" not in out for _, out, _ in ends[1:])  # one log
    assert "SIGUSR1: saving after this update" in ends[2][2]
    ends = finish(start([two_convolutions.__file__, *settings(run, step + 6)], 2, devices=2))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [out.count(f"Resuming after step {step}") for _, out, _ in ends] == [1, 0]
    loop.train(parse(settings(run, step + 12)))
    assert f"Resuming after step {step + 6}" in capsys.readouterr().out

    loop.train(parse(settings(whole, step + 12)))
    ours, theirs = np.array(run.losses()), np.array(whole.losses())
    np.testing.assert_array_equal(ours[:, [0, 3]], theirs[:, [0, 3]])  # steps and learning rates
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], rtol=1e-5)
    ours, theirs = vector(run, step + 12), vector(whole, step + 12)
    # In norm: Adam makes steps of the rounding where a gradient is nothing else.
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
