"""Jacobians by products alone, of networks and local denoisers, against whole matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from flax import struct
from weights import random_params

from diffusion_jax.denoisers import (
    ClippedDenoiser,
    GaussianDenoiser,
    LocalDenoiser,
    SymmetricDenoiser,
    TrainedDenoiser,
)
from diffusion_jax.errors import UserError
from diffusion_jax.nn.kernels import CPU
from diffusion_jax.nn.plain import PLAIN
from diffusion_jax.nn.unet import UNet
from diffusion_jax.process import diffuse
from diffusion_jax.regimes.jacobian import forwards, spectra
from diffusion_jax.regimes.open_modes import losses
from diffusion_jax.sampling.respacing import with_calls
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.symmetry import group_named

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SCHEDULE = linear_schedule(200)
KEY = jax.random.key(4)
SIDE, D = 16, 256
SHAPE = (SIDE, SIDE, 1)


@pytest.fixture(scope="module")
def network():
    """With parameters at random, and the CPU's kernels, as a run has it."""
    model = UNet(
        1, base_channels=8, multiples=(1, 2), attention_levels=(2,), num_res_blocks=1, kernels=CPU
    )
    return TrainedDenoiser(random_params(model, SHAPE), model)


@struct.dataclass
class Mended:
    """A Wiener filter with some of a network: modes that are open, and others of all signs."""

    filter: Any
    network: Any

    def __call__(self, x, step):
        return self.filter(x, step) + self.network(x, step) / 10


def images(count, side=SIDE, seed=0):
    """Smooth images of waves with random phases."""
    rng = np.random.default_rng(seed)
    place = np.arange(side) / side
    up, along, phase = rng.uniform(0, 2 * np.pi, (3, count, 1, 1))
    wave = np.sin(2 * up * place[:, None] + 2 * along * place[None] + phase)
    return wave[..., None].astype(np.float32)


def noised(step, count, side=SIDE, seed=0):
    a = images(count, side, seed)
    z = np.random.default_rng(seed + 1).standard_normal(a.shape).astype(np.float32)
    return np.asarray(diffuse(SCHEDULE, jnp.asarray(a), jnp.full(count, step), z)), z


@quick_jit
def _columns(denoiser, deviation, x, step, v):
    def signal(y):
        return y - deviation * denoiser(y, jnp.full(len(y), step))

    return jax.jvp(signal, (x,), (v,))[1]


@quick_jit
def _noise(denoiser, x, step):
    return denoiser(x, step)


def whole(denoiser, x, step):
    """M at each x, a column from each axis in a batch of all."""
    deviation = jnp.sqrt(SCHEDULE.noise_variance[step])
    axes = jnp.eye(x[0].size).reshape(-1, *x.shape[1:])
    found = []
    for one in x:
        copies = jnp.broadcast_to(one, axes.shape)
        columns = _columns(denoiser, deviation, copies, jnp.int32(step), axes)
        found.append(np.asarray(columns, np.float64).reshape(len(axes), -1).T)
    return np.stack(found)


def check(denoiser, x, step, leading):
    """All that is found against M, to the tolerance asked for and the probes' own errors."""
    matrix = whole(denoiser, x, step)
    even = (matrix + np.swapaxes(matrix, 1, 2)) / 2
    values = np.linalg.eigvalsh(even)[:, ::-1]
    found = spectra(
        denoiser, SCHEDULE, x, step, KEY, leading, 30, True, tolerance=1e-4, most_steps=200
    )
    assert found.residual.max() <= 1e-3
    assert found.eigenvalues == pytest.approx(values[:, :leading], abs=1e-3)
    far = np.abs(values - 0.5).min(axis=1) > 1e-3
    counts = np.minimum(np.sum(values > 0.5, axis=1), leading)
    assert far.any()
    assert np.array_equal(found.open_modes[far], counts[far])
    rows = found.vectors.reshape(*found.eigenvalues.shape, -1)
    left = np.linalg.norm(rows @ even - found.eigenvalues[..., None] * rows, axis=2)
    assert left == pytest.approx(found.residual, abs=2e-5)
    trace = np.trace(matrix, axis1=1, axis2=2)
    assert (np.abs(found.trace - trace) < 5 * found.trace_error).all()
    odd = np.linalg.norm(matrix - even, axis=(1, 2)) / np.linalg.norm(even, axis=(1, 2))
    assert found.asymmetry == pytest.approx(odd, rel=0.2)
    assert (odd > 1e-3).all()


@pytest.mark.slow
def test_a_network(network):
    denoiser = forwards(Mended(GaussianDenoiser.fit(SCHEDULE, images(30)), network))
    x, _ = noised(60, 1)
    check(denoiser, x, 60, 4)


def test_a_local_denoiser():
    """Three times as many modes open as its patches allow in the exact score."""
    denoiser = LocalDenoiser(SCHEDULE, images(12, side=7), 3)
    x, _ = noised(40, 2, side=7, seed=5)
    check(denoiser, x, 40, 9)


def test_steins_identity_of_a_network(network):
    """The mean of loss and what stands for it, over images, noise and probes."""
    x, z = noised(60, 40)
    denoiser = forwards(Mended(GaussianDenoiser.fit(SCHEDULE, images(30)), network))
    found = spectra(denoiser, SCHEDULE, x, 60, KEY, 1, 2, most_steps=4, batch_size=8)
    eps = np.asarray(_noise(denoiser, jnp.asarray(x), jnp.full(len(x), 60)))
    loss, stein = losses(found, eps, z)
    error = np.std(loss - stein, ddof=1) / np.sqrt(len(x))
    assert abs(np.mean(loss - stein)) < 4 * error
    # Without the trace it would not hold.
    assert 2 * found.trace.mean() > 8 * error


def test_kernels_without_a_forward_derivative_are_named(network):
    x, _ = noised(60, 2)
    with pytest.raises(UserError, match=r"model\.plain\(\), whose kernels, .*PLAIN, have it"):
        spectra(network, SCHEDULE, x, 60, KEY, 2)


def test_networks_are_found_within_other_denoisers(network):
    low, high = jnp.asarray(-1.0), jnp.asarray(1.0)
    clipped = ClippedDenoiser(network, SCHEDULE, low, high)
    symmetric = SymmetricDenoiser(clipped, group_named("flip", SHAPE))
    _, respaced = with_calls(SCHEDULE, symmetric, 20, "time")
    plain = forwards(respaced)
    inner = plain.denoiser.denoiser.denoiser
    assert inner.model == network.model.clone(kernels=PLAIN)
    assert plain.denoiser.group is symmetric.group
    before, after = jax.tree.leaves(respaced), jax.tree.leaves(plain)
    assert all(one is other for one, other in zip(before, after, strict=True))
    exact = LocalDenoiser(SCHEDULE, images(3), 3)
    assert jax.tree.structure(forwards(exact)) == jax.tree.structure(exact)
