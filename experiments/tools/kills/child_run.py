"""A training in a process of its own: how it is started, and what it left in its folder."""

import dataclasses
import os
import subprocess
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.saved_config import from_dict
from diffusion_jax.training.saved_state import structure_of
from diffusion_jax.training.step import init_state, make_optimizer

Process = subprocess.Popen[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, and the command that starts it or goes on with it."""

    folder: Path
    data: Path
    steps: int
    command: tuple[str, ...]

    def start(self) -> Process:
        """Starts it."""
        words = [*self.command, "--steps", str(self.steps), "--run-dir", str(self.folder)]
        words += ["--data-dir", str(self.data)]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        pipe = subprocess.PIPE
        return subprocess.Popen(words, env=env, text=True, stdout=pipe, stderr=pipe)

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.folder / "checkpoints"

    def saved(self) -> list[int]:
        """The steps of the complete checkpoints, newest first."""
        names = (path.name for path in self.checkpoints.glob("*"))
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)

    def arrays(self, step: int) -> dict[str, bytes]:
        """The bytes of every array of a checkpoint, by its name."""
        with Checkpoints(self.checkpoints, read_only=True) as checkpoints:
            metadata = checkpoints.metadata(step)
            config, shape = from_dict(metadata["config"]), metadata["shape"]
            model, optimizer = config.model.build(shape[-1]), make_optimizer(config.training)
            like = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), shape))
            state = checkpoints.restore(step, structure_of(like, metadata))
        state = dataclasses.replace(state, key=jax.random.key_data(state.key))
        leaves = jax.tree.leaves_with_path(state)
        return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}

    def losses(self) -> list[tuple[float, ...]]:
        """What metrics.jsonl holds of the training itself, not of its speed."""
        names = ("step", "loss", "grad_norm", "learning_rate")
        return [
            tuple(record[name] for name in names)
            for record in read_metrics(self.folder / "metrics.jsonl")
        ]

    def images(self) -> dict[str, bytes]:
        """The grids of samples and of training images."""
        return {path.name: path.read_bytes() for path in (self.folder / "samples").iterdir()}
