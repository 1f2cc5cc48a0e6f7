import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.checkpoint import Checkpoints
from diffusion_jax.errors import UserError


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


def test_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {})
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_what_a_kill_leaves_behind_is_ignored(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1


def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.save(2, state(2), {})
    for path in (tmp_path / "2" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    like = jax.eval_shape(lambda: state(0))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=f"the checkpoint {tmp_path / '2'} cannot be read"):
            checkpoints.restore(2, like)
        assert int(checkpoints.restore(1, like)["step"]) == 1


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
from diffusion_jax.checkpoint import Checkpoints
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
