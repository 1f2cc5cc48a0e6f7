"""Jacobians of denoisers, against JAX's own derivatives in float64 and known answers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from diffusion_jax.denoisers import (
    EmpiricalDenoiser,
    GaussianClassesDenoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
)
from diffusion_jax.errors import UserError
from diffusion_jax.process import diffuse
from diffusion_jax.regimes import closed_jacobians, jacobian
from diffusion_jax.regimes.jacobian import spectra
from diffusion_jax.schedule import from_time, linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SHAPE = (3, 2, 2)
D = 12
STEPS = (5, 60, 120, 199)
KEY = jax.random.key(3)


def points_and_labels(dtype=np.float64):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [9, 1, 10]))
    points = rng.standard_normal((20, *SHAPE)) * np.geomspace(1.5, 0.3, D).reshape(SHAPE)
    return (points + 0.5 * labels[:, None, None, None]).astype(dtype), labels


def made(name, schedule, points, labels):
    """A denoiser with a closed form."""
    kind, _, rest = name.partition(" ")
    if kind == "exact":
        return EmpiricalDenoiser(schedule, jnp.asarray(points[:4] if rest else points))
    if kind == "gaussian":
        rank, floor = {"": (None, 0.0), "rest": (5, "rest"), "high": (5, 2.0)}[rest]
        return GaussianDenoiser.fit(schedule, points, rank, floor)
    if kind == "classes":
        rank, floor = {"": (None, 0.0), "rest": (3, "rest"), "high": (2, 1.0)}[rest]
        return GaussianClassesDenoiser.fit(schedule, points, labels, rank, floor)
    return GaussianMixtureDenoiser(schedule, jnp.asarray(points[0]), jnp.asarray(0.7))


NAMES = (
    *("exact", "exact few", "gaussian", "gaussian rest", "gaussian high", "classes"),
    *("classes rest", "classes high", "mixture"),
)


def noised(schedule, points, step, count=3, seed=1):
    z = np.random.default_rng(seed).standard_normal((count, *points.shape[1:]))
    a, steps = points[:count], jnp.full(count, step)
    return np.asarray(diffuse(schedule, jnp.asarray(a), steps, jnp.asarray(z, a.dtype)))


@jax.jit
def _whole(denoiser, deviation, x, step):
    def signal(y):
        return (y - deviation * denoiser(y[None], step[None])[0]).reshape(-1)

    matrix = jax.vmap(jax.jacfwd(signal))(x)
    return matrix.reshape(len(x), x[0].size, x[0].size)


def whole(denoiser, schedule, x, step):
    """M at each x, (N, d, d), by JAX's forward derivative of the noise."""
    deviation = jnp.sqrt(schedule.noise_variance[step])
    return np.asarray(_whole(denoiser, deviation, jnp.asarray(x), jnp.int32(step)))


@pytest.mark.parametrize("name", NAMES)
def test_closed_forms_are_the_derivative(name, monkeypatch):
    with jax.enable_x64(True):
        schedule = linear_schedule(200)
        points, labels = points_and_labels()
        denoiser = made(name, schedule, points, labels)
        for step in STEPS:
            x = noised(schedule, points, step)
            matrix = whole(denoiser, schedule, x, step)
            values = np.linalg.eigvalsh(matrix)[:, ::-1]
            for leading in (2, D):
                found = spectra(denoiser, schedule, x, step, KEY, leading, vectors=True)
                assert found.eigenvalues == pytest.approx(values[:, :leading], abs=1e-10)
                assert found.trace == pytest.approx(np.trace(matrix, axis1=1, axis2=2), abs=1e-10)
                for exact in ("residual", "trace_error", "asymmetry"):
                    assert not getattr(found, exact).any()
                rows = found.vectors.reshape(3, leading, D)
                assert rows @ np.swapaxes(rows, 1, 2) == pytest.approx(
                    np.broadcast_to(np.eye(leading), (3, leading, leading)), abs=1e-10
                )
                left = rows @ matrix - found.eigenvalues[..., None] * rows
                assert np.abs(left).max() < 1e-10
            if name.startswith(("exact", "classes")):  # in many blocks, and by iteration
                with monkeypatch.context() as patch:
                    patch.setattr(closed_jacobians, "_BLOCK", 3 * D)
                    patch.setattr(closed_jacobians, "_DENSE", 0)
                    patch.setattr(closed_jacobians, "_FEW", 1)
                    found = spectra(denoiser, schedule, x, step, KEY, 2)
                assert found.eigenvalues == pytest.approx(values[:, :2], abs=1e-8)
                assert found.residual.max() < 1e-8


def test_the_exact_score_is_right_at_small_times_in_float32_too():
    """Points nearer to each other than sqrt(Delta), where float32 logits are wrong by 1e-2."""
    rng = np.random.default_rng(2)
    centre = 20 * rng.standard_normal(50)
    points = (centre + 0.003 * rng.standard_normal((30, 50))).astype(np.float32)
    schedule = linear_schedule(1000)
    x = noised(schedule, points, 0)
    s = np.sqrt(float(schedule.alpha_bar[0]))
    variance = float(schedule.noise_variance[0])
    found = spectra(EmpiricalDenoiser(schedule, jnp.asarray(points)), schedule, x, 0, KEY, 29)
    for i, one in enumerate(x.astype(np.float64)):
        a = points.astype(np.float64)
        logs = -np.sum((one - s * a) ** 2, axis=1) / (2 * variance)
        w = np.exp(logs - logs.max())
        w /= w.sum()
        away = a - w @ a
        matrix = s * s / variance * (away.T * w) @ away
        assert found.trace[i] == pytest.approx(np.trace(matrix), rel=1e-10)
        values = np.linalg.eigvalsh(matrix)[::-1][:29]
        assert found.eigenvalues[i] == pytest.approx(values, abs=1e-10)


def test_a_gaussian_of_known_modes():
    """Two of four modes are open at t = 1, and the trace is the loss, 2.061706."""
    values = np.array([0.5, 5, 10, 100])
    schedule = from_time(np.array([0.5, 1.0]))
    denoiser = GaussianDenoiser(
        schedule, jnp.zeros(6), jnp.eye(6)[:4], jnp.asarray(values), jnp.asarray(0.0)
    )
    found = spectra(denoiser, schedule, np.ones((2, 6), np.float32), 1, KEY, 5)
    wanted = [0.939946, 0.610163, 0.439018, 0.072579, 0]
    assert found.eigenvalues == pytest.approx(np.tile(wanted, (2, 1)), abs=1e-6)
    assert found.trace == pytest.approx(np.full(2, 2.061706), abs=1e-6)
    assert found.open_modes.tolist() == [2, 2]
    assert not found.at_least.any()
    assert spectra(denoiser, schedule, np.ones((1, 6)), 1, KEY, 2).at_least.all()


@struct.dataclass
class Opaque:
    """A denoiser as nobody knows it, a few per cent off."""

    denoiser: Any
    factor: float = 1.0

    def __call__(self, x, step):
        return self.denoiser(x, step) * jnp.asarray(self.factor, x.dtype)


@struct.dataclass
class Linear:
    """eps(x) = A x."""

    matrix: Any

    def __call__(self, x, step):
        flat = jnp.matmul(x.reshape(len(x), -1), self.matrix.T, precision="highest")
        return flat.reshape(x.shape)


@pytest.mark.parametrize("leading", [1, 5, D])
def test_a_score_that_is_off_has_the_jacobian_that_it_must(leading):
    """Of eps scaled by 1.02, M is 1 - 1.02 (1 - M_exact), by products."""
    schedule = linear_schedule(200)
    points, labels = points_and_labels(np.float32)
    denoiser = made("exact", schedule, points, labels)
    for step in (60, 120):
        x = noised(schedule, points, step)
        exact = spectra(denoiser, schedule, x, step, KEY, D)
        off = Opaque(denoiser, 1.02)
        found = spectra(off, schedule, x, step, KEY, leading, tolerance=1e-4)
        wanted = 1 - 1.02 * (1 - exact.eigenvalues)
        # Rounding of products of float32: 1e-6; that of logits, |a|^2/Delta 1e-7.
        assert found.eigenvalues == pytest.approx(wanted[:, :leading], abs=2e-5)
        trace = D - 1.02 * (D - exact.trace)
        if leading == D:
            assert found.trace == pytest.approx(trace, abs=1e-4)
            assert not found.trace_error.any()
        else:
            assert (np.abs(found.trace - trace) < 5 * found.trace_error + 1e-4).all()
        assert (found.asymmetry < 2e-5).all()


def test_asymmetry_and_trace_of_a_linear_denoiser_with_a_known_antisymmetric_part():
    d, count = 256, 6
    rng = np.random.default_rng(5)
    even, odd = rng.standard_normal((2, d, d)) / d**0.5
    even, odd = even + even.T, 0.2 * (odd - odd.T)
    schedule = linear_schedule(200)
    deviation = np.sqrt(float(schedule.noise_variance[80]))
    x = rng.standard_normal((count, 16, 16, 1)).astype(np.float32)
    denoiser = Linear(jnp.asarray(even + odd, jnp.float32))
    matrix = np.eye(d) - deviation * even
    wanted = deviation * np.linalg.norm(odd) / np.linalg.norm(matrix)
    found = spectra(denoiser, schedule, x, 80, KEY, 4, probes=40, tolerance=1e-4)
    # A probe's square is off by sqrt(2/d) of itself or so: 6 % of a ratio over 40 of them.
    assert found.asymmetry == pytest.approx(np.full(count, wanted), rel=0.06)
    values = np.linalg.eigvalsh(matrix)[::-1]
    assert found.eigenvalues == pytest.approx(np.tile(values[:4], (count, 1)), abs=1e-5)
    assert (np.abs(found.trace - np.trace(matrix)) < 5 * found.trace_error).all()
    # Hutchinson's own error, sqrt(2/40) |M|, is larger than that over what Lanczos left.
    assert (found.trace_error < 1.2 * np.sqrt(2 / 40) * np.linalg.norm(matrix)).all()
    symmetric = Linear(jnp.asarray(even, jnp.float32))
    assert (spectra(symmetric, schedule, x, 80, KEY, 4).asymmetry < 1e-6).all()


def test_standard_errors_of_the_trace_are_those_of_many_points():
    """The same M at 64 points, so that traces differ by their probes alone."""
    rng = np.random.default_rng(6)
    matrix = rng.standard_normal((20, 20)) / 4
    schedule = linear_schedule(200)
    x = rng.standard_normal((64, 20)).astype(np.float32)
    denoiser = Linear(jnp.asarray(matrix, jnp.float32))
    found = spectra(denoiser, schedule, x, 100, KEY, 2, probes=6, most_steps=6, batch_size=64)
    deviation = np.sqrt(float(schedule.noise_variance[100]))
    z = (found.trace - np.trace(np.eye(20) - deviation * matrix)) / found.trace_error
    # Student's t of 5 degrees of freedom: its median modulus is 0.727, and the mean of 64 is off by
    # 0.16; three times that.
    assert (
        abs(np.mean(found.trace) - 20 + deviation * np.trace(matrix)) < 3 * np.std(found.trace) / 8
    )
    assert 0.45 < np.median(np.abs(z)) < 1.1
    one = spectra(denoiser, schedule, x[:2], 100, KEY, 2, probes=1)
    assert np.isnan(one.trace_error).all()
    assert np.isfinite(one.trace).all()


def test_neither_batches_nor_devices_nor_other_examples_matter(monkeypatch):
    schedule = linear_schedule(200)
    points, labels = points_and_labels(np.float32)
    denoiser = Opaque(made("exact", schedule, points, labels))
    x = noised(schedule, points, 100, count=11)
    asked = partial(
        *(spectra, denoiser, schedule), step=100, key=KEY, leading=3, vectors=True, most_steps=5
    )
    found = asked(x)

    def same(other, rows):
        for name in ("eigenvalues", "trace", "trace_error", "residual"):
            there = getattr(rows, name)
            assert getattr(other, name) == pytest.approx(there, abs=1e-5)
        inner = np.sum(other.vectors * rows.vectors, axis=(2, 3, 4))
        assert np.abs(inner) == pytest.approx(np.ones_like(inner), abs=1e-3)

    same(asked(x, batch_size=8), found)
    part = asked(x[4:9], first=4)
    same(part, found.rows(4, 9))
    other = asked(x[4:9], first=5)
    assert np.abs(other.trace - part.trace).max() > 1e-3
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("devices",))
    monkeypatch.setattr("diffusion_jax.runtime.devices.all_devices", lambda: mesh)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    same(asked(x, batch_size=3), found)


def test_spectra_are_kept_cut_and_joined(tmp_path):
    schedule = linear_schedule(200)
    points, labels = points_and_labels(np.float32)
    denoiser = made("classes", schedule, points, labels)
    x = noised(schedule, points, 100, count=5)
    for vectors in (False, True):
        found = spectra(denoiser, schedule, x, 100, KEY, 3, vectors=vectors)
        assert len(found) == 5
        found.save(tmp_path / "modes.npz")
        again = jacobian.join([found.rows(0, 2), jacobian.load(tmp_path / "modes.npz").rows(2, 5)])
        assert again.dimension == D
        assert (again.vectors is not None) == vectors
        for name in ("eigenvalues", "trace", "trace_error", "asymmetry", "residual"):
            assert np.array_equal(getattr(again, name), getattr(found, name))
        if vectors:
            assert np.array_equal(again.vectors, found.vectors)
    (tmp_path / "modes.npz").write_bytes(b"PK torn")
    with pytest.raises(UserError, match=r"modes\.npz is damaged .* computed again"):
        jacobian.load(tmp_path / "modes.npz")


@struct.dataclass
class Backwards:
    """A denoiser whose author gave its reverse derivative alone."""

    size: int = struct.field(pytree_node=False, default=0)

    def __call__(self, x, step):
        @jax.custom_vjp
        def twice(y):
            return 2 * y

        twice.defvjp(lambda y: (2 * y, None), lambda _, g: (2 * g,))
        return twice(x)


def bad(**changes):
    schedule = linear_schedule(200)
    points, labels = points_and_labels(np.float32)
    arguments = {
        "denoiser": made("gaussian", schedule, points, labels),
        "schedule": schedule,
        "x": noised(schedule, points, 3),
        "step": 3,
        "key": KEY,
        "leading": 2,
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leading": 13}, "leading = 13 must be a whole number from 1 to 12"),
        ({"leading": 0}, "leading = 0 must be"),
        ({"leading": 2.0}, "leading = 2.0 must be"),
        ({"probes": 0}, "probes = 0 must be"),
        ({"step": 200}, "step = 200 must be a whole number from 0 to 199"),
        ({"step": -1}, "step = -1 must be"),
        ({"x": np.ones(5, np.float32)}, r"x of shape \(5,\)"),
        ({"x": np.ones((0, *SHAPE), np.float32)}, r"x of shape \(0, 3, 2, 2\)"),
        ({"x": np.ones((2, *SHAPE), int)}, "int64: give noisy examples"),
        ({"x": np.ones((2, 4), np.float32)}, r"\(2, 4\) for a denoiser of .* \(3, 2, 2\)"),
        ({"x": np.full((2, *SHAPE), np.nan)}, r"x\[0\] holds values that are not finite"),
        ({"schedule": linear_schedule(300)}, "the schedule has 300 steps"),
        ({"denoiser": Linear(jnp.full((12, 12), jnp.nan))}, "not finite: it is broken"),
        ({"denoiser": Backwards()}, r"no forward derivative.*model\.plain\(\).*PLAIN"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        spectra(**bad(**changes))
    assert ". " not in str(caught.value)
