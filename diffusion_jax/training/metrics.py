"""A run's metrics.jsonl: what its records are called, and reading them back."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.runtime.files import parse_json
from diffusion_jax.runtime.patience import patiently

# Of an evaluation; the losses are followed by a slash and the band of time.
FRACTION, RATIO = "memorised_fraction", "neighbour_ratio"
TRAINING, HELD_OUT = "training_loss", "held_out_loss"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, except for those that a kill tore or a disk damaged."""
    records = []
    text = patiently(path, lambda: path.read_text(errors="replace") if path.exists() else "")
    for line in text.splitlines():
        with suppress(ValueError):
            record = parse_json(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """One entry of all records, NaN where a record has none or no number (n,)."""
    values = (record.get(name) for record in records)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], np.float64)


def bands(records: list[dict[str, Any]], name: str) -> dict[str, np.ndarray]:
    """The losses of evaluations, TRAINING or HELD_OUT, by their band of time (n,)."""
    found = dict.fromkeys(key for each in records for key in each if key.startswith(f"{name}/"))
    return {key.removeprefix(f"{name}/"): column(records, key) for key in found}
