"""Starts several processes of one program on loopback, as a user does by hand."""

import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments, count, devices=1, **variables):
    """Processes of `python ARGUMENTS`, each with so many devices, and what else they find set."""
    port, pipe = free_port(), subprocess.PIPE
    together = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | together | variables | {"JAX_PROCESS_ID": str(index)},
            text=True,
            stdout=pipe,
            stderr=pipe,
        )
        for index in range(count)
    ]


def finish(processes, timeout=300):
    """Their exit statuses, outputs and errors; whoever has not ended by then is killed."""
    try:
        ends = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]
