"""Training in several processes, on changing numbers of devices, stopped by signals."""

import signal
import time

import numpy as np
from processes import finish, start
from test_run import TINY, losses, saved

from diffusion_jax.checkpoint import Checkpoints
from diffusion_jax.telemetry import read_metrics

TRAIN = ["-m", "experiments.train_lsun", *TINY]


def train(run_dir, steps, count, devices):
    """Their outputs, after they have ended well."""
    ends = finish(start([*TRAIN, "--run-dir", run_dir, "--steps", steps], count, devices))
    assert [code for code, _, _ in ends] == [0] * count, ends
    return [out for _, out, _ in ends]


def wait_for_step(run_dir, step, processes):
    deadline = time.monotonic() + 300
    while not any(r["step"] >= step for r in read_metrics(run_dir / "metrics.jsonl")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)


def stop(run_dir, count, devices, number, target):
    """Starts a run without end and sends a signal to one process; their ends, and the step."""
    words = [*TRAIN, "--run-dir", run_dir, "--steps", 1_000_000]
    processes = start(words, count, devices)
    wait_for_step(run_dir, 4, processes)
    processes[target].send_signal(number)
    ends = finish(processes, timeout=100)
    with Checkpoints(run_dir / "checkpoints", read_only=True) as checkpoints:
        return ends, checkpoints.latest


def test_processes_and_devices_may_change_between_two_starts(tmp_path):
    """Four processes, stopped; two with two devices each; one with eight; against one with one."""
    run_dir = tmp_path / "elastic"
    ends, step = stop(run_dir, 4, 1, signal.SIGTERM, 2)
    assert [code for code, _, _ in ends] == [75] * 4, ends
    assert f"stopped after step {step} of 1000000, which is saved" in ends[0][1]
    assert "Devices: 4 x cpu" in ends[0][1]
    assert all("step" not in out for _, out, _ in ends[1:])  # one log
    assert "SIGTERM: saving after this update" in ends[2][2]
    first, second = train(run_dir, step + 6, 2, 2)
    assert f"Resuming after step {step}" in first
    assert "Resuming" not in second
    (alone,) = train(run_dir, step + 12, 1, 8)
    assert f"Resuming after step {step + 6}" in alone
    train(tmp_path / "whole", step + 12, 1, 1)
    np.testing.assert_allclose(losses(run_dir), losses(tmp_path / "whole"), rtol=1e-5)
    ours, theirs = (read_metrics(path / "metrics.jsonl") for path in (run_dir, tmp_path / "whole"))
    assert [r["learning_rate"] for r in ours] == [r["learning_rate"] for r in theirs]
    ours, theirs = (
        np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in saved(path, step + 12)])
        for path in (run_dir, tmp_path / "whole")
    )
    # In norm: Adam makes steps of the rounding where a gradient is nothing else.
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
