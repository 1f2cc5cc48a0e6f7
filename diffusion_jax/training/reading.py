"""One checkpoint read and checked against its checksums, by one process."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusion_jax.errors import UserError
from diffusion_jax.runtime.patience import patiently, refusal

T = TypeVar("T")

# Where the checksums lie in the saved dictionary.
CRC32 = "crc32"
# What says nothing about the files.
_NO_ROOM = (MemoryError, jax.errors.JaxRuntimeError)


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or holds other bytes than were saved."""


def read_metadata(folder: Path) -> tuple[dict[str, Any], list[int] | None]:
    """The dictionary in a checkpoint's folder, and the checksums of its arrays, if it has any.

    Raises:
      DamagedCheckpoint: it cannot be read, or is not what was saved.
      UserError: the system does not let it be read.
    """

    def read() -> tuple[dict[str, Any], list[int] | None]:
        metadata = dict(json.loads((folder / "metadata" / "metadata").read_text()))
        checksums = metadata.pop(CRC32, None)
        if checksums is None:
            return metadata, None
        if checksums["metadata"] != checksum_of_json(metadata):
            raise ValueError("wrong checksum of its metadata")
        return metadata, checksums["state"]

    return _whole(folder, read)


def read_arrays(folder: Path, like: T) -> T:
    """The arrays in a checkpoint's folder, on one device of this process.

    Args:
      folder: the checkpoint's.
      like: a pytree of the same structure, of arrays or of their shapes and types.

    Raises:
      DamagedCheckpoint: it is damaged, or of another structure.
      UserError: the system does not let it be read.
    """
    _, expected = read_metadata(folder)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like
    )

    def read() -> T:
        handler = ocp.StandardCheckpointHandler()  # a new one keeps nothing of an earlier trial
        try:
            state: T = handler.restore(folder / "state", args=ocp.args.StandardRestore(target))
        finally:
            handler.close()
        if expected is not None:  # there were none at first
            _compare(state, expected)
        return state

    return _whole(folder, read)


def _compare(state: Any, expected: list[int]) -> None:
    paths = [path for path, _ in jax.tree.leaves_with_path(state)]
    pairs = zip(paths, checksums(state), expected, strict=True)
    wrong = [path for path, found, saved in pairs if found != saved]
    if wrong:
        name = jax.tree_util.keystr(wrong[0], simple=True, separator="/")
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise ValueError(f"wrong checksum of {name}{more}")


def _whole(folder: Path, read: Callable[[], T]) -> T:
    """What `read` gives: what fails once may be a fault that passes, and is tried again."""

    def twice() -> T:
        try:
            return read()
        except Exception as error:
            if isinstance(error, _NO_ROOM) or refusal(error) is not None:
                raise
        return read()  # opened anew: another host's cache may have shown half of it

    try:
        return patiently(folder, twice)
    except _NO_ROOM:
        raise
    except Exception as failure:
        kind, number = type(failure).__name__, refusal(failure)
        if number is not None:
            raise UserError(
                f"the checkpoint {folder} may be whole, but the system does not let it be read: "
                f"{os.strerror(number)}; nothing is changed: mend the disk, the network or the "
                f"permissions and run the same command again, or move that folder away to go on "
                f"from the checkpoint before"
            ) from failure
        raise DamagedCheckpoint(
            f"the checkpoint {folder} cannot be read ({kind}: {first_line(failure)[:120]})"
        ) from failure


def checksums(state: Any) -> list[int]:
    """CRC-32 of the bytes of every array, the same on any number of devices and processes."""
    return [zlib.crc32(_bytes(leaf).data) for leaf in jax.tree.leaves(state)]


def _bytes(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = leaf.addressable_data(0)
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)


def checksum_of_json(values: dict[str, Any]) -> int:
    """CRC-32 of a dictionary, whatever the order of its names."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def first_line(error: Exception) -> str:
    """What an error says, at most 300 characters."""
    text = str(error).strip()
    if "No space left on device" in text:
        return "no space left on the device"
    return text.split("\n")[0][:300] or type(error).__name__
