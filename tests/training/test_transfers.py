"""Updates are handed to the devices without waiting for them: here in one process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from two_convolutions import TwoConvolutions

from diffusion_jax.config import TrainingConfig
from diffusion_jax.data.batches import device_batches
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import fresh_state, make_optimizer, make_parallel_train_step

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def reads_of_eight_updates():
    """What is read from the devices, by `ArrayImpl._value`, through which np.asarray, float and the
    like go: the guard for transfers does not see them on a CPU."""
    reads, value, found = [], ArrayImpl._value, {}

    def counted(array):
        reads.append(array)
        return value.fget(array)

    config = TrainingConfig(batch_size=16)
    optimizer, model = make_optimizer(config), TwoConvolutions(3, dropout=0.1)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayImpl, "_value", property(counted))
        for implementation in ("shard_map", "pmap"):
            state = fresh_state(model, optimizer, jax.random.key(0), (8, 8, 3))
            step = make_parallel_train_step(
                model, linear_schedule(100), optimizer, jnp.full(3, 0.5), config, implementation
            )
            batches = device_batches(images, 0, 0, 16)
            state, metrics = step(state, next(batches))
            reads.clear()
            # Disallowed is what is put there unasked, as pmap does with the key that it has read.
            with jax.transfer_guard("disallow" if implementation == "shard_map" else "allow"):
                for _ in range(8):
                    state, metrics = step(state, next(batches))
            found[implementation] = len(reads)
            np.asarray(metrics["loss"])
            assert len(reads) == found[implementation] + 1  # it would have been counted
    return found


def test_an_update_reads_nothing_from_the_devices():
    assert reads_of_eight_updates() == {"shard_map": 0, "pmap": 0}
