"""Compiling for a few calls: code that is slow to run, in half the time or less."""

from functools import partial

import jax

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}
quick_jit = partial(jax.jit, compiler_options=QUICK)
