"""How arrays lie on the devices of all processes: whole on each, or split along the first axis.

Every process runs the same program on the same values; with one process these functions are
jax.device_put and np.asarray.
"""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (AXIS,))


def replicated() -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(_mesh(), PartitionSpec())


def sharded() -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(_mesh(), PartitionSpec(AXIS))


def is_first_process() -> bool:
    """Whether this process is the one that writes files and speaks; alone, it is."""
    return jax.process_index() == 0


def replicate(tree: Any) -> Any:
    """Puts arrays whole on every device of every process.

    Args:
      tree: a pytree of arrays, equal on all processes.
    """
    return jax.tree.map(lambda leaf: _put(leaf, replicated()), tree)


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
        if everywhere and sharding.is_fully_replicated:  # as pmap returns it: no copies
            parts = [part.data for part in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
    # Not jax.device_put, which would compare the processes' values first.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
