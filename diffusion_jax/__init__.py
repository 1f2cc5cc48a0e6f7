"""Diffusion models in JAX, and the dynamical regimes of their backward process.

The names of `__init__.pyi` are imported when they are first used: see there, or `dir`.
"""

import lazy_loader

from diffusion_jax.runtime import moved

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

moved.install(
    {
        "diffusion_jax.ode_samplers": "diffusion_jax.sampling.ode",
        "diffusion_jax.respacing": "diffusion_jax.sampling.respacing",
        "diffusion_jax.run": "diffusion_jax.training.run",
    }
)
