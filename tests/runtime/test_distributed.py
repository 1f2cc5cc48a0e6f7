"""Processes that stay together: they agree, speak with one voice, and end with one another."""

import os
import signal
import socket
import time

import pytest
from processes import finish, start

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import distributed

# What process 0 and process 1 do is two lines of Python.
PROGRAM = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from diffusion_jax.runtime import distributed
from diffusion_jax.runtime.devices import fetch, replicate, shard
from diffusion_jax.errors import UserError
from experiments.command import reports_errors

def add_up():
    total = jax.jit(jnp.sum)(shard(np.arange(2.0, dtype=np.float32)))
    return float(fetch(total))

def add_up_for_ever():
    while True:
        add_up()
        time.sleep(0.01)

@reports_errors
def main():
    distributed.SILENCE = 6.0
    distributed.join()
    index = jax.process_index()
    print("ready", flush=True)
    print("ready", file=sys.stderr, flush=True)
    exec(sys.argv[1 + index], globals() | {"index": index})

main()
"""


def run_two(first, second):
    return start(["-c", PROGRAM, first, second], 2)


def wait_until_ready(processes):
    for process in processes:
        line = b""
        # Byte by byte: what a buffered reader took too much of, `communicate` would not see.
        while not line.endswith(b"ready\n"):
            byte = os.read(process.stderr.fileno(), 1)
            assert byte, line
            line += byte


def host(index):
    return f"process {index} of 2 ({socket.gethostname()})"


def test_they_agree_and_one_speaks_and_another_value_is_refused_by_name():
    lines = """
print(add_up(), distributed.gather('abc'[index]), distributed.gather(str(index)),
      distributed.from_first(lambda: f'made by {index}'))
try:
    distributed.require_same('colour', ['red', 'blue'][index])
except UserError as error:
    print(f"refused: {error}", file=sys.stderr)
"""
    ends = finish(run_two(lines, lines))
    (code, out, _), (other_code, other_out, _) = ends
    assert (code, other_code) == (0, 0)
    assert "1.0 ['a', 'b'] ['0', '1'] made by 0" in out
    assert other_out == "" or "ready" not in other_out
    for _, _, err in ends:
        assert f"refused: {host(1)} has another colour than process 0" in err


WAITING = ("add_up_for_ever()", "distributed.gather('')")
ERRORS = list(enumerate(WAITING))  # each process's, and each way to wait for it


@pytest.fixture(scope="module")
def ends_by_error():
    """Of all pairs of ERRORS, which mostly wait and so do it together, and the seconds it took."""
    pairs = {}
    for index, waiting in ERRORS:
        lines = [waiting, waiting]
        lines[index] = "time.sleep(1); raise UserError('the disk is full: free some space')"
        pairs[index, waiting] = run_two(*lines)
    for processes in pairs.values():
        wait_until_ready(processes)
    began = time.monotonic()
    return {case: (finish(pair), time.monotonic() - began) for case, pair in pairs.items()}


@pytest.mark.parametrize(("index", "waiting"), ERRORS)
def test_an_error_of_one_ends_the_other_and_is_told(ends_by_error, index, waiting):
    ends, seconds = ends_by_error[index, waiting]
    assert seconds < 18
    assert [code for code, _, _ in ends] == [1, 1]
    assert ends[index][2].count("error: the disk is full: free some space\n") == 1
    other = 1 - index
    told = f"error: {host(index)} ended: the disk is full: free some space; so {host(other)} ends"
    assert told in ends[other][2]


@pytest.fixture(scope="module")
def ends_by_kill():
    """Of process 0 where 1 was killed, and of 1 where 0 was; they, too, wait together."""
    pairs = {0: run_two("distributed.gather('')", "time.sleep(1000)")}
    for waiting in WAITING:
        pairs[waiting] = run_two(waiting, waiting if "for_ever" in waiting else "time.sleep(1000)")
    for processes in pairs.values():
        wait_until_ready(processes)
    time.sleep(2)
    for case, processes in pairs.items():
        processes[0 if case == 0 else 1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    return {
        case: (finish(pair)[1 if case == 0 else 0], time.monotonic() - began)
        for case, pair in pairs.items()
    }


@pytest.mark.parametrize("waiting", WAITING)
def test_a_killed_process_is_named_by_the_other(ends_by_kill, waiting):
    (code, _, err), seconds = ends_by_kill[waiting]
    assert seconds < 16
    assert code == 1, err
    assert f"error: {host(1)} has given no sign of life for 6 s" in err, err


def test_the_death_of_the_first_process_ends_the_other(ends_by_kill):
    (code, _, err), seconds = ends_by_kill[0]
    assert seconds < 10
    assert code != 0
    assert "leader task" in err or f"{host(0)} cannot be reached" in err


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        (
            {"JAX_PROCESS_ID": "0"},
            "JAX_PROCESS_ID is set, but JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES are not:",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"},
            "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES are set, but JAX_PROCESS_ID is not:",
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            "one's own from 0 on",
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "host",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "0",
            },
            "JAX_COORDINATOR_ADDRESS=host",
        ),
    ],
)
def test_wrong_variables_are_named(monkeypatch, variables, part):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=part):
        distributed.join()


def test_alone_everything_is_trivial():
    distributed.join()
    assert distributed.gather("x") == ["x"]
    assert distributed.from_first(lambda: "y") == "y"
    distributed.require_same("colour", "red")
    distributed.leave(ValueError("stays"), 1)
    distributed.finish()


def test_a_folder_that_is_not_shared_is_named(tmp_path):
    line = (
        "from diffusion_jax.training import run; from diffusion_jax.config import *; "
        "from pathlib import Path; distributed.VISIBLE = 1; import os; "
        f"os.chdir(Path('{tmp_path}') / str(index)); "
        "run.claim(Config(output=OutputConfig(run_dir=Path('run'))))"
    )
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    _, (code, _, err) = finish(run_two(line + "; distributed.gather('')", line))
    assert code == 1
    assert "error: this process does not see what process 0 wrote to run/config.json" in err
