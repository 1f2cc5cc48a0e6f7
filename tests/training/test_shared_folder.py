"""Two processes, of which the second sees nothing of the folder: the first one decides for both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import finish, start

from diffusion_jax import forking
from diffusion_jax.regimes.commitment import Outcomes
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.reading import checksums


def state():
    """Bytes that a sum of floats would not keep, and types of all sizes."""
    return {
        "odd": jnp.array([-0.0, np.nan, np.inf, -1e-45], jnp.float32),
        "half": jnp.arange(7, dtype=jnp.bfloat16),
        "key": jax.random.key(3),
        "step": jnp.int32(2**31 - 1),
    }


def outcomes_of(first, last):
    number = np.arange(first, last)
    one = number[:, None]
    return Outcomes(one, one > 3, one > 5, number, number, 1.0 * number, 2.0 * number, one)


PROGRAM = """
import os, sys
from pathlib import Path
import numpy as np
from rich.console import Console
from diffusion_jax import forking
from diffusion_jax.runtime import distributed
from diffusion_jax.runtime.devices import fetch, shard
distributed.join()
import jax, jax.numpy as jnp
sys.path[:0] = sys.argv[1:3]
from test_shared_folder import Checkpoints, checksums, outcomes_of, state
index = jax.process_index()
os.chdir(Path(sys.argv[3]) / str(index))
like = jax.eval_shape(state)
with Checkpoints(Path("checkpoints"), read_only=True) as checkpoints:
    step, found, metadata = checkpoints.restore_newest(lambda metadata: like)

def measure(first, last, progress):
    numbers = fetch(jax.jit(lambda x: 1 * x)(shard(np.arange(first, last))))  # in step, or never
    print("ran", *numbers, file=sys.stderr)
    return outcomes_of(first, last), np.zeros((last - first, 1))

joined = forking.run_batches(Path("batches"), 8, 4, 1, measure, Console())
trunks = None if joined is None else joined[0].label.tolist()
print("found", step, metadata, checksums(found), trunks, file=sys.stderr)
distributed.finish()
"""


@pytest.mark.slow
def test_what_the_first_process_sees_is_what_all_go_by(tmp_path, request):
    """A checkpoint, and batches of forks of which one is there."""
    first, second = (tmp_path / str(index) for index in range(2))
    (first / "batches").mkdir(parents=True)
    second.mkdir()
    with Checkpoints(first / "checkpoints") as checkpoints:
        checkpoints.save(2, state(), {"step": 2})
    outcomes_of(0, 4).save(forking._path(first / "batches", 0, 4))
    np.save(first / "batches" / "shown.npy", np.zeros((4, 1)))
    here = request.path.parent
    ends = finish(start(["-c", PROGRAM, here, here.parent, tmp_path], 2), timeout=100)
    assert [code for code, _, _ in ends] == [0, 0], ends
    found = f"found 2 {{'step': 2}} {checksums(state())}"
    assert f"{found} {list(range(8))}\n" in ends[0][2]
    assert f"{found} None\n" in ends[1][2]
    assert [err.count("ran 4 5 6 7\n") for _, _, err in ends] == [1, 1]
    assert [err.count("ran") for _, _, err in ends] == [1, 1]
    assert list(second.iterdir()) == []
