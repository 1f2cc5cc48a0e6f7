import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from flax import struct
from jax import Array
from scipy.stats import norm
from weights import random_params

from diffusion_jax.denoisers import GaussianMixtureDenoiser, TrainedDenoiser
from diffusion_jax.nn.unet import UNet
from diffusion_jax.sampling.likelihood import (
    basis_probes,
    bits_per_dimension,
    dequantize,
    log_likelihood,
    rademacher_probes,
)
from diffusion_jax.schedule import NoiseSchedule, from_time, linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


@struct.dataclass
class GaussianDenoiser:
    """Exact noise of data N(0, covariance), sqrt(Delta) (e^-2t C + Delta)^-1 x."""

    schedule: NoiseSchedule
    covariance: Array

    def __call__(self, x, step):
        variance = self.schedule.noise_variance[step][0].astype(x.dtype)
        law = self.schedule.alpha_bar[step][0].astype(x.dtype) * self.covariance
        law = law + variance * jnp.eye(x.shape[1], dtype=x.dtype)
        return jnp.sqrt(variance) * jnp.linalg.solve(law, x.T).T


def rotated(values):
    vectors, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((len(values),) * 2))
    return vectors @ np.diag(values) @ vectors.T


def blurred(schedule):
    """rho_0^2 = e^2t - 1, what the first level adds to the variance of the data."""
    return math.expm1(2 * float(schedule.time[0]))


def gaussian_log_density(x, covariance):
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (np.einsum("bi,ij,bj->b", x, np.linalg.inv(covariance), x) + log_det)


def test_gaussian_closed_form_and_second_order():
    """The exact flow ends on N(0, I) at T = 9 but for e^-18, so only the method's error is left."""
    covariance = rotated([0.2, 1.0, 3.0])
    x = np.random.default_rng(0).standard_normal((5, 3))
    errors, counts = [], np.array([129, 257])
    with jax.enable_x64(True):
        for count in counts:
            ratio = np.geomspace(np.expm1(2 * 0.01), np.expm1(2 * 9.0), count)
            schedule = from_time(0.5 * np.log1p(ratio))
            denoiser = GaussianDenoiser(schedule, jnp.asarray(covariance))
            got, end = log_likelihood(denoiser, schedule, jnp.asarray(x), basis_probes(5, (3,)))
            exact = gaussian_log_density(x, covariance + blurred(schedule) * np.eye(3))
            errors.append(np.max(np.abs(np.asarray(got) - exact)))
    order = -np.diff(np.log(errors)) / np.diff(np.log(counts - 1))
    assert np.all(np.abs(order - 2) < 0.2), (order, errors)
    assert errors[-1] < 2e-3
    # The flow whitens: x_T = C^-1/2 x.
    values, vectors = np.linalg.eigh(covariance + blurred(schedule) * np.eye(3))
    white = x @ vectors / np.sqrt(values) @ vectors.T
    np.testing.assert_allclose(end, white, atol=5e-3)


def test_the_mixture_on_the_linear_schedule():
    """In float32. The start is N(0, 1) at t = 5.06, which is wrong by |m|^2 e^-2t/2 = 3e-4 nats."""
    schedule, sigma = linear_schedule(), 0.3
    centre = jnp.array([2.0, 1.0])
    denoiser = GaussianMixtureDenoiser(schedule, centre, jnp.asarray(sigma))
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], (40, 1))
    points = signs * np.asarray(centre) + 1.5 * sigma * rng.standard_normal((40, 2))
    got, _ = log_likelihood(
        denoiser, schedule, jnp.asarray(points, jnp.float32), basis_probes(40, (2,))
    )
    law = norm(scale=math.sqrt(sigma**2 + blurred(schedule)))
    sides = [law.logpdf(points - sign * np.asarray(centre)).sum(1) for sign in (1, -1)]
    exact = np.logaddexp(*sides) - math.log(2)
    assert np.max(np.abs(np.asarray(got) - exact)) < 0.01


def test_densities_integrate_to_one():
    schedule = linear_schedule(200)
    denoiser = GaussianMixtureDenoiser(schedule, jnp.array([1.0]), jnp.asarray(0.4))
    x = np.linspace(-4, 4, 801)
    points = jnp.asarray(x, jnp.float32)[:, None]
    got, _ = log_likelihood(denoiser, schedule, points, basis_probes(801, (1,)))
    assert abs(np.trapezoid(np.exp(np.asarray(got, np.float64)), x) - 1) < 5e-3


def test_hutchinson_is_unbiased_and_exact_on_the_diagonal():
    schedule = linear_schedule(60)
    x = jnp.tile(jnp.array([[0.3, -0.8, 1.1]]), (800, 1))
    keys = jax.random.split(jax.random.key(0), 800)
    probes = rademacher_probes(keys, 2, (3,))
    assert set(np.unique(np.asarray(probes))) == {-1.0, 1.0}
    for covariance in (rotated([0.1, 1.0, 4.0]), np.diag([0.1, 1.0, 4.0])):
        denoiser = GaussianDenoiser(schedule, jnp.asarray(covariance, jnp.float32))
        exact = float(log_likelihood(denoiser, schedule, x[:1], basis_probes(1, (3,)))[0][0])
        got = np.asarray(log_likelihood(denoiser, schedule, x, probes)[0], np.float64)
        if np.count_nonzero(covariance) == 3:
            np.testing.assert_allclose(got, exact, atol=1e-4)
        else:
            assert got.std() > 0.1
            assert abs(got.mean() - exact) < 4 * got.std() / math.sqrt(800)


def test_through_the_unet():
    """Its trace, by probes pulled back, against the Jacobian; one Heun step by hand; float64."""
    with jax.enable_x64(True):
        check_one_step_through_the_unet()


def check_one_step_through_the_unet():
    model = UNet(
        channels=1,
        base_channels=8,
        multiples=(1,),
        attention_levels=(1,),
        num_res_blocks=1,
        dtype=jnp.float64,
    )
    schedule = from_time(np.array([0.1, 0.2]))
    x = 0.5 * jax.random.normal(jax.random.key(1), (2, 2, 2, 1))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), random_params(model, (2, 2, 1)))
    denoiser = TrainedDenoiser(params, model)
    got, end = log_likelihood(denoiser, schedule, x, basis_probes(2, (2, 2, 1)))

    time = np.asarray(schedule.time, np.float64)
    rho = np.sqrt(np.expm1(2 * time))

    def predict(y, s):
        return denoiser(y, jnp.full(2, s))

    forward, jacobian = quick_jit(predict), quick_jit(jax.jacrev(predict))

    def slope(x_hat, s):
        y = jnp.asarray(math.exp(-time[s]) * x_hat)
        blocks = np.asarray(jacobian(y, s)).reshape(2, 4, 2, 4)
        trace = np.array([np.trace(blocks[b, :, b]) for b in range(2)])
        return np.asarray(forward(y, s), np.float64), math.exp(-time[s]) * trace

    x = np.asarray(x, np.float64)
    first, growth = slope(x, 0)
    second, end_growth = slope(x + (rho[1] - rho[0]) * first, 1)
    x_t = math.exp(-time[1]) * (x + (rho[1] - rho[0]) / 2 * (first + second))
    unit = 4 * rho / (1 + rho**2)
    integral = (rho[1] - rho[0]) / 2 * (growth + end_growth - unit.sum())
    assert np.all(np.abs(integral) > 1e-3)
    expected = norm.logpdf(x_t).reshape(2, -1).sum(1) - 4 * time[0] + integral
    np.testing.assert_allclose(end, x_t, rtol=1e-9)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_bits_per_dimension():
    """A density uniform over [-1/510, 1 + 1/510] has 256 grey levels to choose from: 8 bits."""
    assert float(bits_per_dimension(jnp.array([-7 * math.log(256 / 255)]), 7)[0]) == pytest.approx(
        8
    )
    keys = jax.random.split(jax.random.key(0), 50)
    images = jnp.tile(jnp.arange(256.0)[None] / 255, (50, 1))
    got = np.asarray(dequantize(keys, images)) * 255
    away = got - np.arange(256.0)
    assert np.max(np.abs(away)) < 0.5001
    assert abs(away.mean()) < 4 / math.sqrt(12 * away.size)
    assert abs(away.var() - 1 / 12) < 4 / 12 / math.sqrt(away.size)
