"""How arrays lie on the devices of all processes: whole on each, or split along the first axis.

Every process runs the same program on the same values; with one process these functions are
jax.device_put and np.asarray.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.runtime.distributed import from_first

T = TypeVar("T")

AXIS = "devices"
# Bytes sent to the other processes at a time.
_PIECE = 2**26


def all_devices() -> Mesh:
    """The devices of all processes, along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicated(mesh: Mesh | None = None) -> NamedSharding:
    """Every device holds the whole array; by default, all devices there are."""
    return NamedSharding(mesh or all_devices(), PartitionSpec())


def sharded(mesh: Mesh | None = None) -> NamedSharding:
    """The first axis is split over the devices; by default, all there are."""
    return NamedSharding(mesh or all_devices(), PartitionSpec(AXIS))


def is_first_process() -> bool:
    """Whether this process is the one that writes files and speaks; alone, it is."""
    return jax.process_index() == 0


def replicate(tree: Any) -> Any:
    """Puts arrays whole on every device of every process.

    Args:
      tree: a pytree of arrays, equal on all processes.
    """
    return jax.tree.map(lambda leaf: _put(leaf, replicated()), tree)


def replicate_from_first(tree: T) -> T:
    """Puts the arrays of process 0 whole on every device of every process, bit for bit.

    Args:
      tree: a pytree of arrays; in other processes, of the same structure, arrays or their shapes
        and types, whose values do not matter.
    """
    if jax.process_count() == 1:
        return replicate(tree)
    leaves, structure = jax.tree.flatten(tree)
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]

    def plain(leaf: Any, is_key: bool) -> Any:
        if not is_first_process():
            return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    plains = list(map(plain, leaves, keys))
    content = bytes_from_first(lambda: b"".join(leaf.tobytes() for leaf in plains))
    arrays, at = [], 0
    for leaf, is_key in zip(plains, keys, strict=True):
        size = int(np.prod(leaf.shape, dtype=np.int64))
        array = np.frombuffer(content, leaf.dtype, size, at).reshape(leaf.shape)
        arrays.append(jax.random.wrap_key_data(jnp.asarray(array)) if is_key else array)
        at += array.nbytes
    return replicate(jax.tree.unflatten(structure, arrays))


def bytes_from_first(make: Callable[[], bytes]) -> bytes:
    """What process 0 makes, however much it is; the others wait for it."""
    if jax.process_count() == 1:
        return make()
    mine = make() if is_first_process() else b""
    size = json.loads(from_first(lambda: json.dumps(len(mine))))
    # Few lengths, each of which needs a program; bytes, since -0.0 + 0.0 is another zero.
    piece = min(_PIECE, 2 ** max(size - 1, 1).bit_length())
    content = np.zeros(-(-size // piece) * piece, np.uint8)
    content[: len(mine)] = np.frombuffer(mine, np.uint8)
    pieces = map(multihost_utils.broadcast_one_to_all, content.reshape(-1, piece))
    return b"".join(np.asarray(each).tobytes() for each in pieces)[:size]


def shard(tree: Any) -> Any:
    """Splits the first axis of arrays over the devices of all processes.

    Args:
      tree: a pytree of arrays, equal on all processes, whose first axis the number of devices
        divides.
    """
    return jax.tree.map(lambda leaf: _put(leaf, sharded()), tree)


def fetch(array: Array) -> np.ndarray:
    """The whole of an array on this host, wherever its parts lie.

    Every process must ask for it, since the others' parts are gathered.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def in_batches(compute: Callable[[np.ndarray], Any], count: int, batch_size: int) -> Any:
    """What a function gives for the numbers 0..count - 1, a batch at a time on all devices.

    Args:
      compute: see `batches`.
      count: how many numbers.
      batch_size: see `batches`, and `few_sizes` for a small count.

    Returns:
      The pytree of arrays (count, ...) on the host; every process must ask for it.
    """
    parts = batches(compute, range(count), batch_size)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)


def batches(compute: Callable[[np.ndarray], Any], numbers: range, batch_size: int) -> Iterator[Any]:
    """Yields what a function gives for numbers, a batch at a time on all devices.

    While a batch is fetched the next is already at work.

    Args:
      compute: of numbers (batch,), a pytree of arrays (batch, ...), of which each device may hold a
        part (`shard`). All batches have one size, so the last goes beyond the numbers.
      numbers: a stretch of them.
      batch_size: numbers at a time, rounded up by `whole`.

    Yields:
      The pytree of arrays on the host, of the next numbers; every process must ask for it.
    """
    batch = whole(batch_size)
    waiting: list[tuple[Any, int]] = []
    for first in range(numbers.start, numbers.stop, batch):
        computed = compute(np.arange(first, first + batch))
        waiting.append((computed, min(batch, numbers.stop - first)))
        if len(waiting) > 1:
            yield _fetched(*waiting.pop(0))
    if waiting:
        yield _fetched(*waiting.pop())


def _fetched(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: fetch(leaf)[:count], tree)


def whole(batch_size: int) -> int:
    """A batch size rounded up to a multiple of the number of devices."""
    devices = jax.device_count()
    return -(-batch_size // devices) * devices


def few_sizes(count: int, batch_size: int) -> int:
    """A batch size for a count: 8, 32, 128, ... up to `batch_size`, the first that takes all.

    A program is compiled for each size, so there are few sizes; what is padded is computed in vain.
    """
    size = 8
    while size < min(count, batch_size):
        size *= 4
    return min(size, batch_size)


def fold_in_each(key: Array, numbers: np.ndarray) -> Array:
    """A key for each number, (batch,): it depends on `key` and the number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(numbers))


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        everywhere = leaf.is_fully_replicated and leaf.sharding.device_set == set(
            jax.local_devices()
        )
        if everywhere and sharding.is_fully_replicated:  # its parts are there: no copies
            parts = [part.data for part in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
    # Not jax.device_put, which would compare the processes' values first.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
