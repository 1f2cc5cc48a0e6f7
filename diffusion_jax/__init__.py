"""Diffusion models in JAX, and the dynamical regimes of their backward process."""
