"""How arrays lie on the devices: whole on each, or split along the batch."""

import jax
import numpy as np
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
