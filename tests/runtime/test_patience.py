"""Faults that pass are waited for; what is wrong with a file is not."""

import errno
import os
from pathlib import Path

import jax
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import patience
from diffusion_jax.runtime.patience import names_in, patiently, refusal

# What TensorStore says, shortened in the middle.
OF_TENSORSTORE = (
    'Error opening "zarr" driver: Error reading "w/.zarray" in OCDBT database at local file "/c/1/'
    'state/": Error reading local file "/c/1/state/manifest.ocdbt": '
)


def chained(error, cause, explicit=True):
    try:
        try:
            raise cause
        except type(cause) as caught:
            if explicit:
                raise error from caught
            raise error  # noqa: B904
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EIO, "Input/output error"), errno.EIO),
        (OSError(errno.ESTALE, "Stale file handle", "x"), errno.ESTALE),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), errno.ETIMEDOUT),
        (PermissionError(errno.EACCES, "Permission denied"), errno.EACCES),
        (
            ValueError(
                f"UNKNOWN: {OF_TENSORSTORE}Failed to read 114 bytes from file at offset 0: "
                f"Input/output error [os_error_code='5'] [tensorstore_spec='...']"
            ),
            errno.EIO,
        ),
        (
            ValueError(f"ABORTED: {OF_TENSORSTORE}Stale file handle [os_error_code='116']"),
            116,
        ),
        (ValueError(f"PERMISSION_DENIED: {OF_TENSORSTORE}[os_error_code='13']"), errno.EACCES),
        (ValueError("DEADLINE_EXCEEDED: too late"), errno.EIO),
        (ValueError("UNAVAILABLE: try again"), errno.EIO),
        (chained(UserError("x"), OSError(errno.EIO, "e")), errno.EIO),
        (chained(UserError("x"), OSError(errno.EIO, "e"), explicit=False), errno.EIO),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), None),
        (ValueError(f"NOT_FOUND: {OF_TENSORSTORE}no file [os_error_code='2']"), None),
        (ValueError(f"DATA_LOSS: {OF_TENSORSTORE}Expected to start with hex bytes"), None),
        (ValueError("OUT_OF_RANGE: Requested byte range [0, 306) is not valid"), None),
        (ValueError("it says UNKNOWN: somewhere else"), None),
        (OSError("without a number"), None),
        (EOFError(), None),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: the device is gone"), None),
    ],
)
def test_what_the_system_refuses_is_told_from_what_is_in_the_files(error, number):
    assert refusal(error) == number


class Failing:
    """Raises what it is given, one after the other, and then succeeds."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return "read"


@pytest.fixture
def pauses(monkeypatch):
    seconds = []
    monkeypatch.setattr(patience.time, "sleep", seconds.append)
    return seconds


def test_a_fault_that_passes_is_waited_for_with_growing_pauses(pauses):
    stale, slow = OSError(errno.ESTALE, "stale"), OSError(errno.ETIMEDOUT, "slow")
    assert patiently(Path("x"), Failing(stale, slow, stale)) == "read"
    assert pauses == [1, 2, 4]


def test_one_that_stays_is_one_sentence(pauses):
    stays = Failing(*(OSError(errno.EIO, "a long story") for _ in range(9)))
    with pytest.raises(UserError, match=r"cannot read a/b: Input/output error; .* try again"):
        patiently(Path("a/b"), stays)
    assert pauses == [1, 2, 4]
    assert len(stays.errors) == 5


def test_what_cannot_pass_is_not_waited_for(pauses):
    with pytest.raises(UserError, match="cannot read a/b: Permission denied"):
        patiently(Path("a/b"), Failing(PermissionError(errno.EACCES, "no")))
    for error in (FileNotFoundError(errno.ENOENT, "no"), ValueError(), UserError("damaged")):
        with pytest.raises(type(error)) as caught:
            patiently(Path("a/b"), Failing(error))
        assert caught.value is error
    assert pauses == []


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch, pauses):
    (tmp_path / "b").touch()
    (tmp_path / "a").mkdir()
    assert names_in(tmp_path) == ["a", "b"]
    assert names_in(tmp_path / "c") == names_in(tmp_path / "b" / "c") == []

    def refuse(*args):
        raise OSError(errno.EIO, "Input/output error")

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match=r"cannot read .*: Input/output error"):
        names_in(tmp_path)
    assert pauses == [1, 2, 4]


def test_an_error_that_is_being_handled_is_no_reason(pauses, tmp_path):
    """Such as that of data which a read-only disk refuses, while the run's folder is looked at."""
    try:
        raise OSError(errno.EROFS, "of something else")
    except OSError:
        assert names_in(tmp_path / "missing") == []
        with pytest.raises(ValueError, match="its own"):
            patiently(Path("x"), Failing(ValueError("its own")))
        with pytest.raises(UserError, match="cannot read x: Input/output error"):
            patiently(Path("x"), Failing(*[OSError(errno.EIO, "its own")] * 4))
    assert pauses == [1, 2, 4]
