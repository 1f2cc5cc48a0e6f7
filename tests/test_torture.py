"""A short form of `python -m experiments.torture`, whose long form docs/robustness.md tells of."""

import json
import random

import numpy as np
import pytest

from diffusion_jax.checkpoint import DamagedCheckpoint
from experiments.torture import Lost, Torture, damage


def test_nothing_is_lost(tmp_path):
    torture = Torture(tmp_path, seed=0, steps=20)
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
        torture._compare(run)
    metrics.write_text(text)
    torture._compare(run)
    damage(whole.checkpoints / "20", random.Random(1))
    with pytest.raises(DamagedCheckpoint):
        torture._compare(run)
    (whole.folder / "samples" / "step_00000010.png").unlink()
    with pytest.raises(Lost, match="images"):
        torture._compare(run)
