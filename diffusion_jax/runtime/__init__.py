"""Devices, processes, signals, files: what the mathematics runs on."""
