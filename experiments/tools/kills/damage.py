"""Damages a checkpoint as a bad disk or a careless hand would."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def damage(checkpoint: Path, rng: random.Random) -> str:
    """Damages a checkpoint in a random way, and says how."""
    data = max((checkpoint / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    metadata = checkpoint / "metadata" / "metadata"
    kinds: dict[str, Callable[[], Any]] = {
        "one bit of the arrays": lambda: _flip(data, rng),
        "arrays cut short": lambda: os.truncate(data, rng.randrange(data.stat().st_size)),
        "arrays missing": data.unlink,
        "arrays zero": lambda: data.write_bytes(bytes(data.stat().st_size)),
        "one bit of the metadata": lambda: _flip(metadata, rng),
        "metadata cut short": lambda: os.truncate(metadata, rng.randrange(metadata.stat().st_size)),
        "all files missing": lambda: _empty(checkpoint),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    return kind
