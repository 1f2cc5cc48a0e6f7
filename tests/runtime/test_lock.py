import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import lock
from diffusion_jax.training import run
from experiments.train_lsun import parse

HOLD = """
import sys, time
from pathlib import Path
from diffusion_jax.runtime.lock import lock
lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, holder):
    with pytest.raises(UserError) as refused:
        lock.lock(tmp_path)
    named = f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}, which"
    assert str(refused.value).startswith(named)
    assert "\n" not in str(refused.value)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock.lock(tmp_path)  # nothing stale is left
    assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


def test_a_second_run_changes_nothing_in_the_folder(tmp_path, holder):
    config = parse(["--data", "mnist", "--run-dir", str(tmp_path)])
    with pytest.raises(UserError, match=f"{tmp_path} is in use by process {holder.pid}"):
        run.claim(config)
    assert not (tmp_path / "config.json").exists()


def test_the_same_process_may_take_it_again(tmp_path):
    lock.lock(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    lock.lock(tmp_path / "link")


def test_another_path_to_the_same_folder_is_the_same_folder(tmp_path, holder):
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"{link} is in use"):
        lock.lock(link)


def unsupported(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("missing", [False, True])
def test_where_there_is_no_flock_the_run_goes_on(tmp_path, monkeypatch, missing):
    if missing:  # as on Windows
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    lock.lock(tmp_path)
    with lock.alone(tmp_path / "prepared") as held:
        assert not held


def is_free(path):
    """Whether nobody holds a file."""
    with path.open() as file:
        try:
            return lock.flock(file.fileno(), wait=False)
        except BlockingIOError:
            return False


def test_one_process_at_a_time_prepares(tmp_path):
    for _ in range(2):  # what the first leaves behind is no lock
        with lock.alone(tmp_path / "new" / "prepared") as held:
            assert held
            assert not is_free(tmp_path / "new" / "prepared" / ".lock")
        assert is_free(tmp_path / "new" / "prepared" / ".lock")


def test_another_users_lock_is_waited_for_if_it_may_be_read(tmp_path, monkeypatch):
    (tmp_path / ".lock").touch()
    opened, readable = os.open, [True]

    def of_another(path, flags, *mode):
        if path == tmp_path / ".lock" and (flags & os.O_RDWR or not readable[0]):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", of_another)
    with lock.alone(tmp_path) as held:
        assert held
        assert not is_free(tmp_path / ".lock")
    readable[0] = False
    with lock.alone(tmp_path) as held:
        assert not held
