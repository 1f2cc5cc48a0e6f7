"""Checkpoints of a run: Orbax, and only here and in `reading`."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.devices import is_first_process, replicate_from_first
from diffusion_jax.runtime.distributed import from_first, wait_until_seen
from diffusion_jax.runtime.patience import names_in
from diffusion_jax.training.reading import (
    CRC32,
    checksum_of_json,
    checksums,
    first_line,
    read_arrays,
    read_metadata,
)
from diffusion_jax.training.reading import DamagedCheckpoint as DamagedCheckpoint

T = TypeVar("T")


class Checkpoints:
    """The latest checkpoints below one folder, each a pytree of arrays and a JSON dictionary.

    Saving goes on in the background; a checkpoint appears under its step once it is complete. With
    it goes a CRC-32 of every array and of the dictionary, which is compared at every reading: a
    change on the disk of one bit, or of up to 32 in a row, is always found. To be used as a context
    manager, which waits for the last one.

    In several processes all call the same methods. The first one alone reads, so that all go on
    from the same checkpoint, whatever a shared file system shows the others.
    """

    def __init__(self, folder: Path, keep: int | None = None, read_only: bool = False) -> None:
        """Opens the folder, making it if it is missing.

        Args:
          folder: where the checkpoints lie, one folder per step.
          keep: how many of the latest are kept; all, by default.
          read_only: nothing is written below the folder, which must exist.
        """
        self.folder = folder.absolute()
        self._manager: ocp.CheckpointManager | None = None
        if read_only:
            return
        from_first(self._make)
        wait_until_seen(self.folder, self.folder.is_dir)
        self._policy = _LatestAndOne(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            cleanup_tmp_directories=True,  # what a kill left of an unfinished one
            single_host_load_and_broadcast=True,  # of the list of steps
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def _make(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        return ""

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._manager is not None:
                self._manager.close()
        except Exception as failure:
            if error is None:
                raise self._failed(failure) from failure

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, damaged or not, or None."""
        return max(self.steps(), default=None)

    def preserve(self, step: int | None) -> None:
        """Keeps the checkpoint of a step, saved or to be saved, whatever comes after it.

        So one is kept besides the latest: one that was before may go with the next to be saved.
        """
        self._policy.step = step

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, damaged or not, increasing.

        Without a manager (`read_only`), as this process sees them.
        """
        if self._manager is not None:  # its numbers are NumPy's in several processes
            return sorted(map(int, self._manager.all_steps()))
        return sorted(int(name) for name in names_in(self.folder) if name.isdigit())

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Starts to save; the arrays are copied before it returns, so they may be donated then.

        Args:
          step: number of updates done; saving the latest step again does nothing.
          state: a pytree of arrays, whole on every device.
          metadata: what JSON can hold.

        Raises:
          UserError: this checkpoint, or the one before, could not be written.
        """
        assert self._manager is not None, "opened to be read only"
        if step == self.latest:
            return
        # A write that runs into the end of the disk fails too, but with pages of tracebacks.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**20
        free = shutil.disk_usage(self.folder).free
        if is_first_process() and free < needed:
            message = f"it needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free"
            raise self._failed(ValueError(message))
        sums = {"state": checksums(state), "metadata": checksum_of_json(metadata)}
        try:
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.map(_on_one_device, state)),
                metadata=ocp.args.JsonSave(metadata | {CRC32: sums}),
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
        assert self._manager is not None, "opened to be read only"
        try:
            self._manager.wait_until_finished()
        except Exception as failure:
            raise self._failed(failure) from failure

    def metadata(self, step: int) -> dict[str, Any]:
        """The dictionary saved with a step.

        Raises:
          UserError: see `reading.read_metadata`.
        """
        return read_metadata(self.folder / str(step))[0]

    def restore(self, step: int, like: T) -> T:
        """Reads the arrays saved with a step, onto all devices.

        Args:
          step: one of the steps saved.
          like: a pytree of the same structure, of arrays or of their shapes and types.

        Returns:
          The pytree saved, whole on every device.

        Raises:
          UserError: see `reading.read_arrays`.
        """
        mine = read_arrays(self.folder / str(step), like) if is_first_process() else like
        return replicate_from_first(mine)

    def restore_step(
        self, step: int, like: Callable[[dict[str, Any]], T]
    ) -> tuple[int, T, dict[str, Any]]:
        """Reads the checkpoint of one step, as `restore_newest` reads the newest.

        Raises:
          DamagedCheckpoint: it is not whole; in all processes.
          UserError: there is none of that step, or the system does not let it be read.
        """
        read: list[T] = []

        def find() -> str:
            if step not in (known := self.steps()):
                raise UserError(
                    f"{self.folder} holds no checkpoint of step {step}; its steps are "
                    f"{', '.join(map(str, known)) or 'none'}"
                )
            try:
                metadata = self.metadata(step)
                read.append(read_arrays(self.folder / str(step), like(metadata)))
            except DamagedCheckpoint as error:
                return json.dumps([str(error), None])
            return json.dumps(["", metadata])

        why, metadata = json.loads(from_first(find))
        if why:
            raise DamagedCheckpoint(why)
        return step, replicate_from_first(read[0] if read else like(metadata)), metadata

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
          UserError: none is whole, and it names them all; or the system does not let one be read,
            and nothing is renamed.
        """
        read: list[T] = []

        def find() -> str:
            damaged: dict[int, DamagedCheckpoint] = {}
            for step in reversed(self.steps()):
                try:
                    metadata = self.metadata(step)
                    read.append(read_arrays(self.folder / str(step), like(metadata)))
                except DamagedCheckpoint as error:
                    damaged[step] = error
                    continue
                for bad, why in damaged.items():
                    self._pass_over(bad, f"{why}; the one of step {step} is used instead")
                return json.dumps([step, metadata, bool(damaged)])
            if damaged:
                raise UserError(
                    f"no checkpoint is whole: {'; '.join(map(str, damaged.values()))}; bring one "
                    f"back from a copy, or begin again in another --run-dir"
                )
            return json.dumps(None)

        found = json.loads(from_first(find))
        if found is None:
            return None
        step, metadata, renamed = found
        if renamed and self._manager is not None:
            self._manager.reload()
        return step, replicate_from_first(read[0] if read else like(metadata)), metadata

    def _pass_over(self, step: int, message: str) -> None:
        if self._manager is not None:
            source, count = self.folder / str(step), 1
            aside = source.with_suffix(".damaged")
            while aside.exists():
                count += 1
                aside = source.with_suffix(f".damaged{count}")
            source.rename(aside)
            message += f", and this one is now {aside.name}"
        print(f"warning: {message}", file=sys.stderr, flush=True)

    def _failed(self, failure: Exception) -> UserError:
        return UserError(
            f"cannot save a checkpoint to {self.folder}: {first_line(failure)}; free some space "
            f"or mend the folder and run the same command again, which goes on from the last "
            f"complete checkpoint"
        )


@dataclass
class _LatestAndOne:
    """Which checkpoints Orbax keeps: a number of the latest, or all, and one that was named."""

    count: int | None
    step: int | None = None

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext,
    ) -> Sequence[bool]:
        first = 0 if self.count is None else len(checkpoints) - self.count
        return [i >= first or info.step == self.step for i, info in enumerate(checkpoints)]


def _on_one_device(leaf: Any) -> Any:
    """The copy on the first device of a process that has all.

    Orbax would cut an array on several into one part for each, a program for every shape.
    """
    alone = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
    return leaf.addressable_data(0) if alone else leaf
