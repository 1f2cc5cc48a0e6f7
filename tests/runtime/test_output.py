"""What is printed to nobody costs a program nothing."""

import os
import pty
import sys

import pytest

from diffusion_jax.runtime.output import outliving_its_reader


def pipe_without_a_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def terminal_that_is_gone():
    master, terminal = pty.openpty()
    os.close(master)
    return terminal


@pytest.mark.parametrize("lost", [pipe_without_a_reader, terminal_that_is_gone])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_program_goes_on_that_nobody_hears(monkeypatch, lost, name):
    """What waited in the buffer is gone too, or the interpreter would fail on it at its end."""
    with os.fdopen(lost(), "w") as stream:
        monkeypatch.setattr(sys, name, stream)
        with outliving_its_reader():
            print("into the buffer", file=getattr(sys, name))
            print("to the system", file=getattr(sys, name), flush=True)
            getattr(sys, name).write("again\n")
        assert getattr(sys, name) is stream
        stream.flush()
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev


def test_the_end_of_the_program_finds_an_empty_buffer(monkeypatch):
    with os.fdopen(pipe_without_a_reader(), "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with outliving_its_reader():
            print("never handed on within")
        stream.flush()


def test_what_is_heard_arrives_and_a_full_disk_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)  # it was closed when the program began
    with outliving_its_reader():
        print("heard")
        assert sys.stderr is None
    assert capsys.readouterr().out == "heard\n"
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with outliving_its_reader(), pytest.raises(OSError, match="No space left"):
            print("lost", flush=True)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
