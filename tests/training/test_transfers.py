"""Updates are handed to the devices without waiting for them: in one process and in two."""

import json

import pytest
from processes import finish, start

# Counts what is read from the devices in eight updates, by `ArrayImpl._value`, through which
# np.asarray, float and the like go: the guard for transfers does not see them on a CPU.
PROGRAM = """
import json
import sys
import numpy as np
import pytest
from diffusion_jax.runtime import distributed
distributed.join()
import jax
import jax.numpy as jnp
from jax._src.array import ArrayImpl
sys.path.insert(0, sys.argv[1])
from two_convolutions import TwoConvolutions
from diffusion_jax.config import TrainingConfig
from diffusion_jax.data.batches import device_batches
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import fresh_state, make_optimizer, make_parallel_train_step

reads = 0
value = ArrayImpl._value
def counted(array):
    global reads
    reads += 1
    return value.fget(array)
ArrayImpl._value = property(counted)

config = TrainingConfig(batch_size=16)
optimizer, model = make_optimizer(config), TwoConvolutions(3, dropout=0.1)
images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
found = {}
for implementation in ("shard_map", "pmap"):
    state = fresh_state(model, optimizer, jax.random.key(0), (8, 8, 3))
    step = make_parallel_train_step(
        model, linear_schedule(100), optimizer, jnp.full(3, 0.5), config, implementation
    )
    batches = device_batches(images, 0, 0, 16)
    state, metrics = step(state, next(batches))
    reads = 0
    # Disallowed is what is put there unasked, as pmap does with the key that it has read.
    with jax.transfer_guard("disallow" if implementation == "shard_map" else "allow"):
        for _ in range(8):
            state, metrics = step(state, next(batches))
    found[implementation] = reads
    np.asarray(metrics["loss"])
    assert reads == found[implementation] + 1  # it would have been counted
with open(f"{sys.argv[2]}/{jax.process_index()}.json", "w") as file:
    json.dump(found, file)
distributed.finish()
"""


@pytest.mark.parametrize("count", [1, 2])
def test_an_update_reads_nothing_from_the_devices(tmp_path, request, count):
    """pmap in several processes reads the key at each: the reason why shard_map is what trains."""
    ends = finish(start(["-c", PROGRAM, request.path.parents[1], tmp_path], count, 4 // count))
    assert [code for code, _, _ in ends] == [0] * count, ends
    for index in range(count):
        found = json.loads((tmp_path / f"{index}.json").read_text())
        assert found["shard_map"] == 0
        assert found["pmap"] == (0 if count == 1 else 8)
