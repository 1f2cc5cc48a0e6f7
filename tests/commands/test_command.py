"""How every command is read, and how it ends when something goes wrong."""

import asyncio
import dataclasses
import errno
import gc
import importlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from diffusion_jax.errors import UserError
from experiments import command
from experiments.__main__ import COMMANDS
from experiments.train_lsun import parse as parse_training


@dataclasses.dataclass(frozen=True)
class Inner:
    """Of the inside."""

    clip: bool = True
    """Clips."""
    folder: Path | None = None
    """A folder."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """A command."""

    place: Annotated[Path, tyro.conf.Positional] = Path("~/place")
    """A place."""
    no_noise: bool = False
    """Without noise."""
    names: tuple[str, ...] = ()
    """Names."""
    files: tuple[Path, ...] = ()
    """Files."""
    inner: Inner = Inner()


def read(*words):
    return command.parse(Outer, "outer", words=words)


def test_booleans_are_flags(capsys):
    assert read().inner.clip
    assert not read("--no-clip").inner.clip
    assert read("--no-clip", "--clip").inner.clip
    assert read("--no-noise").no_noise
    assert not read("--no-no-noise").no_noise
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "clip", "no_noise", "notes"),
    [
        (("--clip", "False"), False, False, ["--clip False is written --no-clip now"]),
        (("--clip=False",), False, False, ["--clip False is written --no-clip now"]),
        (("--clip", "True"), True, False, ["--clip True is written --clip now"]),
        (("--no-noise", "True"), True, True, ["--no-noise True is written --no-noise now"]),
        (("--no_noise", "True"), True, True, ["--no_noise True is written --no_noise now"]),
        (
            ("--no-noise", "False", "--clip", "False"),
            False,
            False,
            ["--no-noise False is written --no-no-noise now", "--clip False is written --no-clip"],
        ),
    ],
)
def test_what_was_shown_before_goes_on_working_with_a_note(capsys, words, clip, no_noise, notes):
    options = read(*words)
    assert (options.inner.clip, options.no_noise) == (clip, no_noise)
    err = capsys.readouterr().err
    assert err.count("\n") == err.count("note: ") == len(notes)
    for note in notes:
        assert note in err


def test_words_that_only_look_like_it_are_left_alone(capsys):
    assert read("--names", "True", "False").names == ("True", "False")
    assert read("--names", "clip", "True").names == ("clip", "True")
    assert read("True").place == Path("True")
    for words in (("--clip", "true"), ("--clip", "1"), ("--folder", "x", "True")):
        with pytest.raises(SystemExit):
            read("place", *words)
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["faithful", "remat"])
def test_the_flags_of_a_training(name, capsys):
    def value(*words):
        config = parse_training(list(words))
        return {"faithful": config.training.faithful, "remat": config.model.remat}[name]

    assert value(f"--{name}") is value(f"--{name}", "True") is value(f"--{name}=True") is True
    assert value() is value(f"--no-{name}") is value(f"--{name}", "False") is False
    assert capsys.readouterr().err.count("note: ") == 3  # once, for a line that is read twice


def test_home_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = read("--folder=~/a", "--files", "~/b", "c/~", "~")
    assert options.place == Path("/home/me/place")
    assert options.inner.folder == Path("/home/me/a")
    assert options.files == (Path("/home/me/b"), Path("c/~"), Path("/home/me"))
    with pytest.raises(UserError, match="~no_such_user/x is no path"):
        read("~no_such_user/x")
    config = parse_training(["--run-dir=~/r", "--data-dir=~/d", "--prepared-dir=~/p"])
    home = Path("/home/me")
    assert (config.output.run_dir, config.data.data_dir) == (home / "r", home / "d")
    assert config.data.prepared_dir == home / "p"


@pytest.mark.parametrize("name", sorted({*COMMANDS.values()}))
def test_every_command_is_read_alike(name, monkeypatch, capsys):
    """Its help begins with the module's own words, and a boolean is a flag."""
    module = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    first, *_ = module.__doc__.split(": python -m")[0].splitlines()
    assert first in " ".join(text.split())
    assert f"usage: python -m experiments.{name} " in " ".join(text.split())
    assert "True|False" not in text


def ended(monkeypatch, capsys, error, **environment):
    """Status and stderr of a command in which an error is raised."""
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)

    def main():
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            command.reports_errors(main)()
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        UserError("a sentence"),
        FileNotFoundError(errno.ENOENT, "No such file", "my/images"),
        PermissionError(errno.EACCES, "Permission denied", Path("/elsewhere/mine")),
        OSError(errno.ENOSPC, "No space left on device"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_what_a_user_can_put_right_is_a_sentence(monkeypatch, capsys, tmp_path, error):
    monkeypatch.chdir(tmp_path)
    status, err = ended(monkeypatch, capsys, error)
    assert (status, err) == (1, f"error: {error}\n")
    status, err = ended(monkeypatch, capsys, error, DIFFUSION_JAX_TRACEBACK="1")
    assert status == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith(f"error: {error}\n")


PACKAGE = Path(command.__file__).parents[1] / "diffusion_jax"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of the program"),
        OSError("without a file"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError(errno.EBADF, "Bad file descriptor", 7),
        FileNotFoundError(errno.ENOENT, "No such file", str(PACKAGE / "data.json")),
        FileNotFoundError(errno.ENOENT, "No such file", os.fsencode(PACKAGE / "data.json")),
        FileNotFoundError(errno.ENOENT, "No such file", f"{sysconfig.get_path('purelib')}/x.py"),
    ],
)
def test_a_fault_of_the_program_shows_its_traceback(monkeypatch, capsys, error):
    status, err = ended(monkeypatch, capsys, error)
    assert status == 1
    assert err.startswith("Traceback (most recent call last):")
    assert f"{type(error).__name__}: {error}" in err
    assert "\nerror: " not in err


class Complaining:
    def __del__(self):
        raise RuntimeError("as I am collected")


async def stubborn():
    try:
        await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)  # which a closed coroutine may not


def test_only_what_orbax_leaves_behind_is_silent(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", lambda left: shown.append(str(left.exc_value)))
    monkeypatch.setattr(sys, "unraisablehook", command._complain)
    left = stubborn()
    left.send(None)
    del left
    gc.collect()
    assert shown == []
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    left = stubborn()  # it does complain
    left.send(None)
    del left
    gc.collect()
    assert shown == ["coroutine ignored GeneratorExit"]
    monkeypatch.setattr(sys, "unraisablehook", command._complain)
    complaining = Complaining()
    del complaining
    gc.collect()
    assert shown[1:] == ["as I am collected"]


REFERENCE = Path(__file__).parents[1] / "reference" / "run" / "run"


TWICE = """
import sys
from experiments import sample
for folder in sys.argv[1:]:
    sys.argv = ["sample", folder]
    try:
        sample.main()
    except SystemExit as ended:
        print(ended.code)
"""


def test_a_checkpoint_that_orbax_cannot_read_is_one_line(tmp_path):
    for damage in ("zeros", "missing"):
        shutil.copytree(REFERENCE, tmp_path / damage)
        state = tmp_path / damage / "checkpoints" / "8" / "state"
        if damage == "missing":
            (state / "manifest.ocdbt").unlink()
        for path in (state / "d").iterdir():
            content = path.read_bytes()
            path.write_bytes(content[:2000] + bytes(3000) + content[5000:])
    words = [sys.executable, "-c", TWICE, str(tmp_path / "zeros"), str(tmp_path / "missing")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()[-2:]) == (0, ["1", "1"])
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: no checkpoint is whole: ") for line in lines)


def test_what_the_terminals_encoding_lacks_is_no_reason_to_end(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    command.reports_errors(lambda: print("½", os.fsdecode(b"\xe9")))()
    out.flush()
    assert out.buffer.getvalue() == b"\\xbd \\udce9\n"


def test_an_error_shows_names_legibly(capsys):
    def fail():
        raise UserError("no class caf\udce9\x1b[1m\nwas found")

    with pytest.raises(SystemExit):
        command.reports_errors(fail)()
    assert capsys.readouterr().err == "error: no class caf\\xe9\\x1b[1m\nwas found\n"
