"""The original model, process and training step in PyTorch: the specification."""
