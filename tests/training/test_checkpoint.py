import errno
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import processes
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.runtime import patience
from diffusion_jax.runtime.devices import replicate
from diffusion_jax.training.checkpoint import Checkpoints, DamagedCheckpoint

# The reading of one damaged array ends Orbax' event loop, and the readings of the others complain.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True, scope="module")
def collected():
    yield
    gc.collect()


def state(value):
    return {
        "w": jnp.arange(1000.0) + value,
        "key": jax.random.key(value),
        "step": jnp.int32(value),
    }


def test_round_trip_is_exact(tmp_path):
    metadata = {"mean": [0.1, 0.2], "name": "x"}
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(5, state(5), metadata)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest == 5
        assert checkpoints.metadata(5) == metadata
        got = checkpoints.restore(5, jax.eval_shape(lambda: state(0)))
    assert got["w"].tolist() == state(5)["w"].tolist()
    assert int(got["step"]) == 5
    assert got["key"].dtype == state(5)["key"].dtype
    np.testing.assert_array_equal(jax.random.bits(got["key"]), jax.random.bits(state(5)["key"]))
    assert len(got["w"].sharding.device_set) == 8


def test_saving_from_eight_devices_compiles_nothing(tmp_path):
    """Of shapes that no other test has: a program for each would take long."""
    state = replicate({"a": np.arange(8 * 61.0).reshape(8, 61), "b": np.arange(24.0)})
    compiled = []

    def listen(name, seconds, **_):
        if name.endswith("backend_compile_duration"):
            compiled.append(seconds)

    with Checkpoints(tmp_path) as checkpoints:
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            checkpoints.save(1, state, {})
            assert compiled == []
            jax.jit(lambda a: a[0, 3])(state["a"])
            assert len(compiled) == 1  # it would have been heard
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)


def test_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {})
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_what_a_kill_leaves_behind_is_ignored_and_then_removed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {})
    left = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", left)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest == 1
    assert left.is_dir()  # perhaps a training writes it just now
    saved_steps(tmp_path, 3)
    assert not left.exists()


LIKE = jax.eval_shape(lambda: state(0))


def saved_steps(folder, *steps, keep=None):
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), {"step": step})


def newest(folder, **kwargs):
    """The step that is read, after a check that step, arrays and dictionary are all its own."""
    with Checkpoints(folder, **kwargs) as checkpoints:
        step, got, metadata = checkpoints.restore_newest(lambda metadata: LIKE)
    assert metadata == {"step": step}
    assert got["w"].tolist() == state(step)["w"].tolist()
    assert int(got["step"]) == step
    np.testing.assert_array_equal(jax.random.bits(got["key"]), jax.random.bits(state(step)["key"]))
    return step


def data_file(folder):
    """Where the arrays' bytes are."""
    return max((folder / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


FAULTS = {
    "data cut short": lambda folder: os.truncate(data_file(folder), 100),
    "data empty": lambda folder: os.truncate(data_file(folder), 0),
    "data never written to the disk": lambda folder: fill_with_zeros(data_file(folder)),
    "data missing": lambda folder: data_file(folder).unlink(),
    "one bit of the data": lambda folder: flip(data_file(folder), 300),
    "index missing": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "one bit of the index": lambda folder: flip(folder / "state" / "manifest.ocdbt", 50),
    "tree damaged": lambda folder: os.truncate(folder / "state" / "_METADATA", 50),
    "arrays missing": lambda folder: shutil.rmtree(folder / "state"),
    "dictionary missing": lambda folder: shutil.rmtree(folder / "metadata"),
    "dictionary cut short": lambda folder: os.truncate(folder / "metadata" / "metadata", 9),
    "one bit of the dictionary": lambda folder: flip(folder / "metadata" / "metadata", 9),
    "folder empty": empty,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_newest_whole_checkpoint_is_used(tmp_path, capfd, fault):
    saved_steps(tmp_path, 1, 2)
    FAULTS[fault](tmp_path / "2")
    left = sorted(path.relative_to(tmp_path / "2") for path in (tmp_path / "2").rglob("*"))

    assert newest(tmp_path, read_only=True) == 1
    assert (tmp_path / "2").is_dir()  # sampling changes nothing
    named = f"warning: the checkpoint {tmp_path / '2'} cannot be read ("
    lines = capfd.readouterr().err.splitlines()
    assert [line.startswith(named) for line in lines if line.startswith("warning")] == [True]

    assert newest(tmp_path) == 1
    assert "; the one of step 1 is used instead, and this one is now 2.damaged" in (
        capfd.readouterr().err
    )
    saved_steps(tmp_path, 2)  # training goes on and comes to the same step again
    assert newest(tmp_path) == 2
    assert capfd.readouterr().err == ""
    aside = tmp_path / "2.damaged"
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == left


def test_any_bit_of_a_checkpoint_may_turn_over(tmp_path):
    """Either the checkpoint is read as it was saved, or it is named: never anything else."""
    saved_steps(tmp_path, 1)
    rng = np.random.default_rng(0)
    files = sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file())
    outcomes = {"whole": 0, "damaged": 0}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for path in files:
            content = path.read_bytes()
            for byte in rng.integers(len(content), size=6):
                flip(path, byte)
                try:
                    assert checkpoints.metadata(1)["step"] == 1
                    got = checkpoints.restore(1, LIKE)
                    assert got["w"].tolist() == state(1)["w"].tolist()
                    assert jax.random.key_data(got["key"]).tolist() == [0, 1]
                    assert int(got["step"]) == 1
                    outcomes["whole"] += 1
                except DamagedCheckpoint:
                    outcomes["damaged"] += 1
                path.write_bytes(content)
    assert min(outcomes.values()) > 10


def test_a_changed_array_is_named(tmp_path):
    """What Orbax reads without complaint but is not what was saved."""
    saved_steps(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(DamagedCheckpoint, match="wrong checksum of key and 2 more"),
    ):
        checkpoints.restore(2, LIKE)


def test_damaged_checkpoints_are_kept_and_do_not_count(tmp_path):
    saved_steps(tmp_path, 1, 2, 3, keep=3)
    for _ in range(2):
        empty(tmp_path / "3")
        assert newest(tmp_path, keep=2) == 2
        saved_steps(tmp_path, 3, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3", "3.damaged", "3.damaged2"}


def test_no_whole_checkpoint_is_an_error_that_names_all(tmp_path):
    saved_steps(tmp_path, 1, 2)
    os.truncate(data_file(tmp_path / "1"), 10)
    empty(tmp_path / "2")
    with pytest.raises(UserError, match="no checkpoint is whole") as caught:
        newest(tmp_path)
    message = str(caught.value)
    assert message.index(str(tmp_path / "2")) < message.index(str(tmp_path / "1"))
    assert "\n" not in message
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_no_checkpoint_is_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(lambda metadata: LIKE) is None


READ_TEXT, RESTORE = Path.read_text, ocp.StandardCheckpointHandler.restore
INPUT_OUTPUT = OSError(errno.EIO, "Input/output error")
# As TensorStore says it.
STALE = ValueError(
    'ABORTED: Error opening "zarr" driver: Failed to read 114 bytes from file at offset 0: Stale '
    "file handle [os_error_code='116']"
)
SHORT = ValueError(
    'OUT_OF_RANGE: Error opening "zarr" driver: Requested byte range [0, 306) is not'
)


def fail(monkeypatch, where, *failures):
    """Makes the readings of checkpoint 2, of its dictionary or arrays, fail so one by one."""
    left = list(failures)

    def restore(self, directory, **kwargs):
        if where == "arrays" and directory.parent.name == "2" and left:
            raise left.pop(0)
        return RESTORE(self, directory, **kwargs)

    def read_text(self, *args, **kwargs):
        if where == "dictionary" and self.parents[1].name == "2" and left:
            raise left.pop(0)
        return READ_TEXT(self, *args, **kwargs)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", restore)
    monkeypatch.setattr(Path, "read_text", read_text)
    return left


@pytest.fixture
def pauses(monkeypatch):
    seconds = []
    monkeypatch.setattr(patience.time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize("where", ["dictionary", "arrays"])
@pytest.mark.parametrize(
    "failures",
    [
        (INPUT_OUTPUT,),
        (STALE, INPUT_OUTPUT, OSError(errno.ETIMEDOUT, "Connection timed out")),
        (ValueError("UNAVAILABLE: the server is away"),),
        (SHORT,),  # a cache of before it was complete
        (STALE, SHORT),
    ],
)
def test_a_fault_that_passes_costs_no_checkpoint(
    tmp_path, monkeypatch, capfd, pauses, where, failures
):
    saved_steps(tmp_path, 1, 2)
    left = fail(monkeypatch, where, *failures)
    assert newest(tmp_path) == 2
    assert left == []
    assert pauses == [1, 2, 4][: len([each for each in failures if each is not SHORT])]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("where", ["dictionary", "arrays"])
@pytest.mark.parametrize(
    ("failure", "said", "waited"),
    [
        (INPUT_OUTPUT, "Input/output error", [1, 2, 4]),
        (STALE, "Stale file handle", [1, 2, 4]),
        (PermissionError(errno.EACCES, "x"), "Permission denied", []),
    ],
)
def test_what_the_system_refuses_is_no_damage(
    tmp_path, monkeypatch, pauses, where, failure, said, waited
):
    """Nothing is renamed, and the one before is not used; all goes on once it is read again."""
    saved_steps(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        fail(patch, where, *[failure] * 20)
        with pytest.raises(UserError, match=f"{tmp_path / '2'} may be whole, .*: {said}") as caught:
            newest(tmp_path)
    assert not isinstance(caught.value, DamagedCheckpoint)
    assert "\n" not in str(caught.value)
    assert pauses == waited
    assert newest(tmp_path) == 2


def test_a_disks_own_error_is_no_damage(tmp_path, pauses):
    """Of the system itself: whoever reads the memory of address 0 is told EIO."""
    saved_steps(tmp_path, 1, 2)
    content = tmp_path / "2" / "metadata" / "metadata"
    content.unlink()
    content.symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"may be whole, .* Input/output error"):
        newest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


@pytest.mark.parametrize(
    "failure", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")]
)
def test_no_memory_to_read_it_into_is_no_damage(tmp_path, monkeypatch, failure):
    saved_steps(tmp_path, 1, 2)
    fail(monkeypatch, "arrays", failure)
    with pytest.raises(type(failure)):
        newest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_what_is_wrong_twice_is_damage(tmp_path, monkeypatch, pauses):
    saved_steps(tmp_path, 1, 2)
    left = fail(monkeypatch, "arrays", SHORT, SHORT, SHORT)
    assert newest(tmp_path) == 1
    assert left == [SHORT]
    assert pauses == []
    assert (tmp_path / "2.damaged").is_dir()


def test_what_refuses_a_dictionary_is_not_taken_for_damage(tmp_path):
    saved_steps(tmp_path, 1, 2)

    def refuse(metadata):
        raise UserError(f"not {metadata['step']}")

    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="not 2"):
        checkpoints.restore_newest(refuse)
    assert (tmp_path / "2").is_dir()


def test_a_checkpoint_from_before_there_were_checksums_is_read(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        items = {
            "state": ocp.args.StandardSave(state(4)),
            "metadata": ocp.args.JsonSave({"step": 4}),
        }
        manager.save(4, args=ocp.args.Composite(**items))
    assert newest(tmp_path) == 4


def test_an_older_step_is_not_dropped_in_silence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state(2), {})
        with pytest.raises(UserError, match="step 1 is there, or comes before 2"):
            checkpoints.save(1, state(1), {})


TWO_PROCESSES = """
import sys
from pathlib import Path
from diffusion_jax.runtime import distributed
distributed.join()
import jax, jax.numpy as jnp
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.runtime import patience
from diffusion_jax.runtime.devices import replicate
def state(value):
    return {"w": jnp.arange(1000.0) + value, "key": jax.random.key(value), "step": jnp.int32(value)}
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    step, got, metadata = checkpoints.restore_newest(lambda metadata: jax.eval_shape(state, 0))
    assert int(got["step"].addressable_data(0)) == step == metadata["step"]
    checkpoints.save(2, replicate(state(2)), {"step": 2})
    checkpoints.wait()
print(step, file=sys.stderr)
distributed.finish()
"""


def test_two_processes_use_the_same_one(tmp_path):
    """And what one process of eight devices saved, and the other way round."""
    saved_steps(tmp_path, 1, 2)
    os.truncate(data_file(tmp_path / "2"), 100)
    ends = processes.finish(processes.start(["-c", TWO_PROCESSES, tmp_path], 2))
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert [err.splitlines()[-1] for _, _, err in ends] == ["1", "1"]
    assert [err.count("the one of step 1 is used instead") for _, _, err in ends] == [1, 0]
    assert (tmp_path / "2.damaged").is_dir()
    assert newest(tmp_path) == 2


def test_another_structure_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {})
        other = {"w": jax.ShapeDtypeStruct((7,), jnp.float32)}
        with pytest.raises(UserError, match="cannot be read"):
            checkpoints.restore(1, other)


FULL_DISK = """
import resource, signal, sys
import jax.numpy as jnp
from pathlib import Path
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        checkpoints.save(1, {"w": jnp.arange(1000.0)}, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        import numpy as np
        noise = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
        checkpoints.save(2, {"w": jnp.asarray(noise)}, {})
        checkpoints.wait()
except UserError as error:
    print(error)
    sys.exit(1)
"""


def test_a_disk_that_refuses_the_bytes_loses_nothing(tmp_path):
    """Files may not grow past 100 kB: to the program that is a disk which is full."""
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert f"cannot save a checkpoint to {tmp_path}" in result.stdout
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
        got = checkpoints.restore(1, {"w": jax.ShapeDtypeStruct((1000,), jnp.float32)})
    np.testing.assert_array_equal(got["w"], np.arange(1000.0))


def test_a_disk_without_room_is_noticed_before_writing(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.wait()
        usage = shutil.disk_usage(tmp_path)
        full = usage._replace(free=2**20 + 1000)  # room for the rest, but not for 4 000 bytes of w
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(UserError, match=r"cannot save a checkpoint .* needs 1\.0 MiB"):
            checkpoints.save(2, state(2), {})
        assert checkpoints.latest == 1
