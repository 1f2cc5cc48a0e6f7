"""Checkpoints of a run: Orbax, and only here."""

import errno
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from diffusion_jax.devices import replicated
from diffusion_jax.errors import UserError

T = TypeVar("T")


class Checkpoints:
    """The latest checkpoints below one folder, each a pytree of arrays and a JSON dictionary.

    Saving goes on in the background; a checkpoint appears under its step once it is complete. To be
    used as a context manager, which waits for the last one.
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        """Opens the folder, making it if it is missing.

        Args:
          folder: where the checkpoints lie, one folder a step.
          keep: how many of the latest are kept; all, by default.
        """
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._manager.close()
        except Exception as failure:
            if error is None:
                raise self._failed(failure) from failure

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before it returns, so they may be donated then.

        Args:
          step: number of updates done; saving a step again does nothing.
          state: a pytree of arrays.
          metadata: what JSON can hold.

        Raises:
          UserError: this checkpoint, or the one before, could not be written.
        """
        if step == self.latest:
            return
        # A write that runs into the end of the disk fails too, but with pages of tracebacks.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**20
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            message = f"it needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free"
            raise self._failed(OSError(errno.ENOSPC, message))
        try:
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)
            )
            self._manager.save(step, args=items)
        except Exception as failure:
            raise self._failed(failure) from failure

    def wait(self) -> None:
        """Waits until what is being saved is complete.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as failure:
            raise self._failed(failure) from failure

    def metadata(self, step: int) -> dict[str, Any]:
        """The dictionary saved with a step.

        Raises:
          UserError: it cannot be read.
        """
        try:
            items = ocp.args.Composite(metadata=ocp.args.JsonRestore())
            return dict(self._manager.restore(step, args=items).metadata)
        except Exception as failure:
            raise self._unreadable(step, failure) from failure

    def restore(self, step: int, like: T) -> T:
        """Reads the arrays saved with a step, onto all devices.

        Args:
          step: one of the steps saved.
          like: a pytree of the same structure, of arrays or of their shapes and types.

        Returns:
          The pytree saved, whole on every device.

        Raises:
          UserError: it is damaged, or of another structure.
        """
        sharding = replicated()
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
        )
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            return self._manager.restore(step, args=items).state
        except Exception as failure:
            raise self._unreadable(step, failure) from failure

    def _failed(self, failure: Exception) -> UserError:
        return UserError(
            f"cannot save a checkpoint to {self.folder}: {_first_line(failure)}; free some space "
            f"or mend the folder and run the same command again, which goes on from the last "
            f"complete checkpoint"
        )

    def _unreadable(self, step: int, failure: Exception) -> UserError:
        return UserError(
            f"the checkpoint {self.folder / str(step)} cannot be read: {_first_line(failure)}; "
            f"remove that folder to go on from the one before"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if "No space left on device" in text:
        return "no space left on the device"
    return text.split("\n")[0][:300] or type(error).__name__
