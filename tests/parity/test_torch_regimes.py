import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import binom, chi2, multivariate_normal

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_ref import regimes  # noqa: E402  (after torch is known to be there)


def draws(n=30, d=5, count=400, seed=0):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.standard_normal((n, d)))
    index = torch.from_numpy(rng.integers(0, n, count))
    return points, index, torch.from_numpy(rng.standard_normal((count, d)))


@pytest.mark.parametrize("time", [0.01, 0.4, 3.0])
@pytest.mark.parametrize(
    "log_density",
    [
        regimes.log_density_one_by_one,
        lambda points, x, time: regimes.log_density_batched(points, x, time, chunk=7),
    ],
    ids=["loop", "batched"],
)
def test_log_density_is_that_of_the_gaussians(log_density, time):
    points, _, x = draws(n=6, d=3, count=20)
    covariance = (1 - np.exp(-2 * time)) * np.eye(3)
    each = [multivariate_normal(np.exp(-time) * a, covariance).logpdf(x) for a in points.numpy()]
    expected = logsumexp(each, axis=0) - np.log(6)
    np.testing.assert_allclose(log_density(points, x, time), expected, rtol=1e-9)


@pytest.mark.parametrize("time", [0.2, 1.0])
def test_excess_entropy_is_the_mean_entropy_of_the_posterior(time):
    points, index, noise = draws(count=4000)
    signal, variance = np.exp(-time), 1 - np.exp(-2 * time)
    a = points.numpy()
    x = signal * a[index] + np.sqrt(variance) * noise.numpy()
    logits = -((x[:, None] - signal * a) ** 2).sum(2) / (2 * variance)
    posterior = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    entropy = -np.sum(posterior * np.log(posterior + 1e-300), axis=1) / a.shape[1]
    mean, error = regimes.excess_entropy(points, time, index, noise, regimes.log_density_batched)
    # Both means are over the same draws; 4 standard errors of the larger of the two.
    assert abs(mean - entropy.mean()) < 4 * error
    assert entropy.std() < 0.7 * error * math.sqrt(len(index))


def test_excess_entropy_of_one_point_is_the_fluctuation_of_the_noise():
    _, _, noise = draws(d=8)
    mean, error = regimes.excess_entropy(
        torch.ones(1, 8, dtype=torch.float64), 0.7, torch.zeros(400, dtype=torch.int64), noise
    )
    squared = noise.square().sum(1).numpy()
    assert mean == pytest.approx((1 - squared.mean() / 8) / 2, abs=1e-12)
    assert error == pytest.approx(squared.std(ddof=1) / 16 / 20, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_backward_steps_have_the_variance_of_their_recursion(sigma):
    torch.manual_seed(1)
    eta, steps, count = 0.05, 40, 50_000
    start = torch.randn(count, 1, dtype=torch.float64)
    centre = torch.zeros(1, dtype=torch.float64)
    x = regimes.mixture_backward(start, centre, sigma, steps, 0, eta)
    variance = 1.0
    for k in range(steps, 0, -1):
        gamma = 1 + (sigma**2 - 1) * np.exp(-2 * k * eta)
        variance = (1 + eta * (1 - 2 / gamma)) ** 2 * variance + 2 * eta
    low, high = chi2.ppf([0.0005, 0.9995], count) / count
    assert low < float(x.square().mean()) / variance < high


@pytest.mark.parametrize("fork_time", [0.5, 1.5, 3.0])
def test_clones_follow_the_closed_form(fork_time):
    torch.manual_seed(2)
    d, pairs = 16, 4000
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    s = d * np.exp(-2 * fork_time)
    tanh = np.tanh(s + np.sqrt(s) * z)
    phi = 0.5 * (1 + weights @ tanh / weights.sum())
    centre = torch.ones(d)
    same = round(pairs * regimes.mixture_clones(centre, 1.0, fork_time, pairs, 6.0, 300))
    # The step's own bias is under 0.002 here; the level is 0.1 %.
    low, high = binom.ppf(0.0005, pairs, phi - 0.002), binom.ppf(0.9995, pairs, phi + 0.002)
    assert low <= same <= high


def test_largest_eigenvalue_is_that_of_the_full_covariance():
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    common = rng.integers(0, 128, (60, 1, 1))
    images = (common + rng.integers(0, 128, (60, 6, 5))).astype(np.uint8)
    exact = np.linalg.eigvalsh(np.cov(images.reshape(60, -1) / 255, rowvar=False))[-1]
    got = regimes.largest_eigenvalue(torch.from_numpy(images))
    assert got == pytest.approx(exact, rel=1e-4)
