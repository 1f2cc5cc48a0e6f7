"""Checkpoints of a run: Orbax, and only here."""

import json
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.devices import replicated

T = TypeVar("T")

# Where the checksums lie in the saved dictionary.
_CRC32 = "crc32"


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or holds other bytes than were saved."""


class Checkpoints:
    """The latest checkpoints below one folder, each a pytree of arrays and a JSON dictionary.

    Saving goes on in the background; a checkpoint appears under its step once it is complete. With
    it goes a CRC-32 of every array and of the dictionary, which is compared at every reading:
    whatever one bit, or up to 32 in a row, became another on the disk is found. To be used as a
    context manager, which waits for the last one. In several processes all call the same methods.
    """

    def __init__(self, folder: Path, keep: int | None = None, read_only: bool = False) -> None:
        """Opens the folder, making it if it is missing.

        Args:
          folder: where the checkpoints lie, one folder a step.
          keep: how many of the latest are kept; all, by default.
          read_only: nothing is written below the folder, which must exist.
        """
        self.folder = folder.absolute()
        self._read_only = read_only
        # Process 0 lists the folder for all, so that all mean the same checkpoint by the newest.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not read_only,
            cleanup_tmp_directories=not read_only,  # what a kill left of an unfinished one
            single_host_load_and_broadcast=True,
        )
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
        """Step of the newest complete checkpoint, damaged or not, or None."""
        latest = self._manager.latest_step()
        return None if latest is None else int(latest)  # a NumPy integer in several processes

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before it returns, so they may be donated then.

        Args:
          step: number of updates done; saving the latest step again does nothing.
          state: a pytree of arrays, whole on every device.
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
            raise self._failed(ValueError(message))
        checksums = {"state": _checksums(state), "metadata": _checksum_of_json(metadata)}
        try:
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.map(_on_one_device, state)),
                metadata=ocp.args.JsonSave(metadata | {_CRC32: checksums}),
            )
            saved = self._manager.save(step, args=items)
        except Exception as failure:
            raise self._failed(failure) from failure
        if not saved:  # Orbax says no more than this
            raise self._failed(ValueError(f"step {step} is there, or comes before {self.latest}"))

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
          DamagedCheckpoint: it cannot be read, or is not what was saved.
        """
        return self._read_metadata(step)[0]

    def restore(self, step: int, like: T) -> T:
        """Reads the arrays saved with a step, onto all devices.

        Args:
          step: one of the steps saved.
          like: a pytree of the same structure, of arrays or of their shapes and types.

        Returns:
          The pytree saved, whole on every device.

        Raises:
          DamagedCheckpoint: it is damaged, or of another structure.
        """
        _, expected = self._read_metadata(step)
        sharding = replicated()
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
        )
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            state = self._manager.restore(step, args=items).state
        except Exception as failure:
            raise self._damaged(step, failure) from failure
        if expected is not None:  # there were none at first
            paths = [path for path, _ in jax.tree.leaves_with_path(state)]
            pairs = zip(paths, _checksums(state), expected, strict=True)
            wrong = [path for path, found, saved in pairs if found != saved]
            if wrong:
                name = jax.tree_util.keystr(wrong[0], simple=True, separator="/")
                more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
                raise self._damaged(step, ValueError(f"wrong checksum of {name}{more}"))
        return state

    def restore_newest(
        self, like: Callable[[dict[str, Any]], T]
    ) -> tuple[int, T, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole, and names on stderr those that are not.

        Unless `read_only`, the folders of newer, damaged ones are renamed to STEP.damaged: their
        steps can be saved again, they do not count among those kept, and nothing removes them.

        Args:
          like: gives, for the dictionary of a checkpoint, the structure to read its arrays into.
            What it raises ends the search.

        Returns:
          The step, its arrays, whole on every device, and its dictionary; None without any.

        Raises:
          UserError: none is whole; it names them all.
        """
        damaged: dict[int, DamagedCheckpoint] = {}
        for step in sorted(map(int, self._manager.all_steps()), reverse=True):
            failure: DamagedCheckpoint | None = None
            try:
                metadata = self.metadata(step)
                state = self.restore(step, like(metadata))
            except DamagedCheckpoint as error:
                failure = error
            # Processes that read different checkpoints would train different models.
            if np.all(multihost_utils.process_allgather(np.array(failure is None))):
                for bad, why in damaged.items():
                    self._pass_over(bad, f"{why}; the one of step {step} is used instead")
                if damaged and not self._read_only:
                    multihost_utils.sync_global_devices("damaged checkpoints are renamed")
                    self._manager.reload()
                return step, state, metadata
            damaged[step] = failure or self._damaged(step, OSError("another process cannot"))
        if damaged:
            raise UserError(
                f"no checkpoint is whole: {'; '.join(map(str, damaged.values()))}; bring one back "
                f"from a copy, or begin again in another --run-dir"
            )
        return None

    def _pass_over(self, step: int, message: str) -> None:
        if jax.process_index() > 0:
            return
        if not self._read_only:
            source, count = self.folder / str(step), 1
            aside = source.with_suffix(".damaged")
            while aside.exists():
                count += 1
                aside = source.with_suffix(f".damaged{count}")
            source.rename(aside)
            message += f", and this one is now {aside.name}"
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def _read_metadata(self, step: int) -> tuple[dict[str, Any], list[int] | None]:
        """The dictionary of a step and the checksums of its arrays, if it has any."""
        try:
            items = ocp.args.Composite(metadata=ocp.args.JsonRestore())
            metadata = dict(self._manager.restore(step, args=items).metadata)
            checksums = metadata.pop(_CRC32, None)
            if checksums is None:
                return metadata, None
            if checksums["metadata"] != _checksum_of_json(metadata):
                raise ValueError("wrong checksum of its metadata")
            return metadata, checksums["state"]
        except Exception as failure:
            raise self._damaged(step, failure) from failure

    def _failed(self, failure: Exception) -> UserError:
        return UserError(
            f"cannot save a checkpoint to {self.folder}: {_first_line(failure)}; free some space "
            f"or mend the folder and run the same command again, which goes on from the last "
            f"complete checkpoint"
        )

    def _damaged(self, step: int, failure: Exception) -> DamagedCheckpoint:
        path, kind = self.folder / str(step), type(failure).__name__
        reason = _first_line(failure)[:120]
        return DamagedCheckpoint(f"the checkpoint {path} cannot be read ({kind}: {reason})")


def _on_one_device(leaf: Any) -> Any:
    """The copy on the first device of a process that has all.

    Orbax would cut an array on several into one part for each, a program for every shape.
    """
    alone = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return leaf.addressable_data(0) if alone else leaf


def _checksums(state: Any) -> list[int]:
    """CRC-32 of the bytes of every array, the same on any number of devices and processes."""
    return [zlib.crc32(_bytes(leaf).data) for leaf in jax.tree.leaves(state)]


def _bytes(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = leaf.addressable_data(0)
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)


def _checksum_of_json(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if "No space left on device" in text:
        return "no space left on the device"
    return text.split("\n")[0][:300] or type(error).__name__
