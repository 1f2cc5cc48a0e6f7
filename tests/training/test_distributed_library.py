"""Sampling, regimes and cloning in two processes against the same in one with eight devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import finish, start

from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.regimes import cloning, lipschitz, posterior
from diffusion_jax.sampling import AncestralSampler, sample
from diffusion_jax.sampling.likelihood import image_bits
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.evaluation import denoising_losses, time_bands

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def measure():
    """One of everything that spreads over devices, of ten points in eight dimensions."""
    points = np.random.default_rng(0).standard_normal((10, 2, 2, 2)).astype(np.float32)
    schedule = linear_schedule(25)
    denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points))
    sampler, key = AncestralSampler(schedule), jax.random.key(1)
    forks = cloning.fork(sampler, denoiser, key, [20, 8], (2, 2, 2), 3, 10, watch=[12])
    draws = posterior.draw(points, np.arange(10) % 2, np.array([0.1, 1.0]), key, 30)
    one_sided, local = lipschitz.local_constants(points, points[:3] * 0.8, 0.5)
    grey = np.random.default_rng(1).integers(0, 256, (5, 2, 2, 2)).astype(np.uint8)
    return {
        "samples": sample(sampler, denoiser, key, 7, (2, 2, 2), batch_size=4),
        "losses": denoising_losses(denoiser, schedule, points, key, time_bands(schedule)),
        "trunks": forks.trunk,
        "clones": forks.clones,
        "path": forks.path,
        "entropy": draws.entropy,
        "class_probability": draws.class_probability,
        "one_sided": one_sided,
        "local": local,
        "bits": image_bits(denoiser, schedule, grey, np.zeros(2), key),
        "turns": cloning.u_turns(sampler, denoiser, key, [10], points[:3]),
    }


PROGRAM = """
import json, sys
import numpy as np
import pytest
from diffusion_jax.runtime import distributed
distributed.join()
sys.path[:0] = sys.argv[1:3]
from test_distributed_library import measure
from test_transfers import reads_of_eight_updates
import jax
name = f"{sys.argv[3]}/{jax.process_index()}"
np.savez(f"{name}.npz", **measure())
with open(f"{name}.json", "w") as file:
    json.dump(reads_of_eight_updates(), file)
distributed.finish()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory, request):
    """The folder of what two processes found."""
    folder = tmp_path_factory.mktemp("two")
    ends = finish(start(["-c", PROGRAM, *request.path.parents[:2], folder], 2, devices=2))
    assert [code for code, _, _ in ends] == [0, 0], ends
    return folder


@pytest.mark.slow
def test_two_processes_measure_what_one_does(two):
    expected = measure()
    for index in range(2):
        with np.load(two / f"{index}.npz") as found:
            assert set(found) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_an_update_of_two_processes_reads_nothing_from_the_devices(two):
    """pmap in several processes reads the key at each: the reason why shard_map is what trains."""
    for index in range(2):
        found = json.loads((two / f"{index}.json").read_text())
        assert found == {"shard_map": 0, "pmap": 8}
