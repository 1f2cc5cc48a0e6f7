"""The network, its layers, and the CPU's kernels."""
