"""The device of an item that computes in its own process."""

import jax

from diffusion_jax.runtime import backend
from experiments.tools.check.sizes import Sizes
from experiments.tools.speed.turns import TakeTurns

GIB = 2**30


def start() -> jax.Device:
    """Makes JAX's settings, and gives the device."""
    backend.configure()
    backend.keep_freed_memory()
    return jax.devices()[0]


def peak_gib() -> float | None:
    """The most memory of the device that JAX has had in use, in GiB; None where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / GIB if "peak_bytes_in_use" in stats else None


def taking_turns(sizes: Sizes, together: int) -> TakeTurns:
    """How work is timed: so much in a row, then a wait."""
    return TakeTurns(sizes.repeats, warm_up=sizes.warm_up, together=together)
