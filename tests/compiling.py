"""Compiling for a few calls: code that is slow to run, in half the time or less."""

from functools import partial

import jax

from diffusion_jax.runtime.backend import RUN_ONCE

quick_jit = partial(jax.jit, compiler_options=RUN_ONCE)
