"""Compiling for a few calls: code that is slow to run, in half the time or less."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.runtime.backend import RUN_ONCE

quick_jit = partial(jax.jit, compiler_options=RUN_ONCE)


# Called as they are, denoisers in closed form compile each operation by itself.
@quick_jit
def noise_of(denoiser, x, step):
    """The noise that a denoiser predicts."""
    return denoiser(x, step)


@quick_jit
def data_of(denoiser, x, step):
    """D, of a denoiser that knows it."""
    return denoiser.predict_x_0(x, step)


def maps_of(group, x):
    """All g x of a group, in compiled code (order, batch, height, width, channels)."""
    return jax.lax.map(lambda index: group(index, x), jnp.arange(group.order))


def images_of(group, x):
    """The same, on the host."""
    return np.asarray(_images_of(group, x))


_images_of = quick_jit(maps_of, static_argnums=0)
