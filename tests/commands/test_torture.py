"""A short form of `experiments.tools.torture`, whose long form docs/robustness.md tells of."""

import json
import os
import sys

import numpy as np
import pytest
import two_convolutions
from two_convolutions import build

from diffusion_jax.config import ModelConfig
from diffusion_jax.training.checkpoint import DamagedCheckpoint
from experiments.tools.kills.verdict import Lost, check_same
from experiments.tools.torture import Torture


@pytest.mark.slow
def test_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelConfig, "build", build)
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8))
    command = (
        *(sys.executable, two_convolutions.__file__, "--data", str(images), "--image-size", "None"),
        *("--images-per-class", "None", "--batch-size", "4", "--diffusion-steps", "25"),
        *("--log-every", "1", "--checkpoint-every", "5", "--sample-every", "10"),
        *("--num-samples", "4", "--classes"),
    )
    torture = Torture(tmp_path, seed=0, steps=20, command=command)
    torture.run(["kill checkpoint", "starve training"])
    summary = torture.summary()
    assert sum(summary["kills"].values()) == 1
    assert sum(summary["full disks"].values()) == 1
    assert summary["starts"] == {"in all": 3}

    # A difference would have been noticed.
    whole, run = torture.whole, torture._new("struck0")
    metrics = whole.folder / "metrics.jsonl"
    text = metrics.read_text()
    record = json.loads(text.splitlines()[7])
    metrics.write_text(text.replace(str(record["loss"]), str(np.nextafter(record["loss"], 2))))
    with pytest.raises(Lost, match="losses"):
        check_same(run, whole)
    metrics.write_text(text)
    check_same(run, whole)
    os.truncate(whole.checkpoints / "20" / "metadata" / "metadata", 20)
    with pytest.raises(DamagedCheckpoint):
        check_same(run, whole)
    (whole.folder / "samples" / "step_00000010.png").unlink()
    with pytest.raises(Lost, match="images"):
        check_same(run, whole)
