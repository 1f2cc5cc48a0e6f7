"""The network and its layers in plain JAX, and the kernels that a device has in their place."""
