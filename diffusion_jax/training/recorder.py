"""The metrics of the updates, read a little late, logged, and watched for what is not finite."""

import math
from collections import deque

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.errors import UserError
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.step import Metrics
from diffusion_jax.training.telemetry import Telemetry

# Dispatches that the host may be ahead of the metrics it reads: the device always has work queued.
_AHEAD = 2


class Recorder:
    """Reads the metrics a little late, logs them, and stops the run where they are not finite.

    A checkpoint is saved only after `drain`, so never after a loss that is not finite. `telemetry`
    is where they are logged: nowhere, but in the first process.
    """

    def __init__(self, config: Config, checkpoints: Checkpoints) -> None:
        self._config, self._checkpoints = config, checkpoints
        self._pending: deque[tuple[int, Metrics]] = deque()
        self.telemetry: Telemetry | None = None

    def pause(self, step: int) -> None:
        """See `Telemetry.pause`."""
        if self.telemetry is not None:
            self.telemetry.pause(step)

    def log_evaluation(self, step: int, metrics: dict[str, float], shown: str) -> None:
        """See `Telemetry.log_evaluation`."""
        if self.telemetry is not None:
            self.telemetry.log_evaluation(step, metrics, shown)
        self.pause(step)

    def say(self, step: int, words: str) -> None:
        """Says something of an update, on a line of its own."""
        if self.telemetry is not None:
            self.telemetry.say(step, words)

    def add(self, first: int, metrics: Metrics) -> None:
        """Takes the metrics of one dispatch, whose first update is given."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((first, metrics))
        if len(self._pending) > _AHEAD:
            self._record()

    def drain(self) -> None:
        """Reads all that is left."""
        while self._pending:
            self._record()

    def _record(self) -> None:
        first, metrics = self._pending.popleft()
        rows = {name: np.atleast_1d(value).tolist() for name, value in metrics.items()}
        for step, row in enumerate(zip(*rows.values(), strict=True), first):
            self._record_update(step, dict(zip(rows, row, strict=True)))

    def _record_update(self, step: int, values: dict[str, float]) -> None:
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self._checkpoints.wait()
            good = self._checkpoints.latest
            saved = "nothing is saved"
            if good is not None:
                saved = f"the last good checkpoint is {self._checkpoints.folder / str(good)}"
            raise UserError(
                f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']} at "
                f"step {step}; {saved}; try, in another --run-dir, a lower --learning-rate, a "
                f"longer --warmup-steps or --dtype float32"
            )
        if self.telemetry is None:
            return
        self.telemetry.advance(step, values["loss"])
        if step % self._config.output.log_every == 0 or step == self._config.steps:
            self.telemetry.log(step, values)
