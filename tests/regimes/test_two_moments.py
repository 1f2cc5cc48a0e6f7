"""phi and H(c | x_t) of a mixture of Gaussians, against closed forms, brute force and forks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from diffusion_jax.denoisers import GaussianClassesDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import two_moments as module
from diffusion_jax.regimes.cloning import fork
from diffusion_jax.regimes.gaussian_classes import (
    Gaussian,
    gaussian_speciation_time,
    same_class_crossing,
)
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.two_moments import two_moments
from diffusion_jax.sampling import AncestralSampler
from diffusion_jax.schedule import linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SCHEDULE = linear_schedule(100)
KEY = jax.random.key(0)


def opposite(d, mu, sigma):
    """N(+-m, sigma^2 I) without modes, each class a single point and a floor."""
    m = np.full((1, d), mu, np.float32)
    points = np.concatenate([-m, m])
    return GaussianClassesDenoiser.fit(SCHEDULE, points, np.arange(2), 0, sigma**2)


def on_axes(variances, means=None, weights=None):
    """Classes of diagonal covariances (C, d), with the axes as modes."""
    C, d = variances.shape
    modes = np.broadcast_to(np.eye(d, dtype=np.float32), (C, d, d))
    means = np.zeros((C, d)) if means is None else means
    weights = np.full(C, 1 / C) if weights is None else weights
    arrays = (means, modes, variances, np.zeros(C), weights)
    return GaussianClassesDenoiser(SCHEDULE, *map(jnp.asarray, arrays))


def agrees(curve, exact, low, high, num_draws):
    """Within 4.5 standard errors at each time, of which few are independent.

    Values between `low` and `high` have a variance of (high - mean)(mean - low) at most; that of
    the draws would not do, where one in ten thousand differs from the others.
    """
    error = np.sqrt(np.maximum((high - exact) * (exact - low), 0) / num_draws)
    return np.all(np.abs(curve.mean - exact) < 4.5 * error + 1e-6)


@pytest.mark.parametrize(("d", "mu", "sigma"), [(64, 0.5, 1.0), (15, 1.1, 0.4), (6, 2.0, 1.5)])
def test_two_round_classes_have_the_closed_forms(d, mu, sigma):
    mixture = GaussianMixture(d, np.float32(mu), sigma)
    found = two_moments(opposite(d, mu, sigma), KEY, num_draws=4000)
    phi, entropy = found.curves["phi"], found.curves["class_entropy"]
    assert agrees(phi, mixture.phi(phi.times), 0.5, 1, 4000)
    exact = math.log(2) - mixture.class_information(phi.times)
    assert agrees(entropy, exact, 0, math.log(2), 4000)
    errors = np.sqrt(np.maximum((1 - phi.mean) * (phi.mean - 0.5), 0) / 4000)
    assert np.all(phi.standard_error <= 1.001 * errors + 1e-7)
    assert phi.standard_error.max() > 1e-3
    t_S = found.times["t_S_phi"]
    assert t_S.low < mixture.speciation_time < t_S.high
    assert t_S.high - t_S.low < 0.1
    assert found.levels == {"t_S_phi": ("phi", pytest.approx(0.7752))}
    assert found.floor == 0.5
    assert np.all(found.num_draws == 4000)


def test_classes_that_differ_in_their_covariance_alone():
    """Where the Bayes criterion and exact samples of the log ratio put their times."""
    d = 64
    halves = np.where(np.arange(d) < d // 2, 3.0, 0.4)
    laws = [Gaussian(np.zeros(d), variances) for variances in (halves, halves[::-1])]
    found = two_moments(on_axes(np.stack([halves, halves[::-1]])), KEY)
    t_S = found.times["t_S_phi"]
    noise = np.random.default_rng(0).standard_normal((20_000, d))
    exact = same_class_crossing(*laws, noise)
    errors = [(each.high - each.low) / 3.92 for each in (t_S, exact)]
    assert abs(t_S.value - exact.value) < 4 * np.hypot(*errors)
    assert np.hypot(*errors) < 0.01
    # The criterion's time is that of phi = 0.7752 where u is Gaussian, as here nearly.
    assert t_S.value == pytest.approx(gaussian_speciation_time(*laws), abs=0.05)


def test_against_densities_of_whole_covariances():
    """Three classes of unequal weights and ranks with a floor; draws of their own in float64."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(3), (4, 20, 9))
    points = rng.standard_normal((33, 7)) @ rng.standard_normal((7, 7)) * 0.7
    points = (points + rng.standard_normal((3, 7))[labels]).astype(np.float32)
    denoiser = GaussianClassesDenoiser.fit(SCHEDULE, points, labels, 4, 0.1)
    laws, weights = denoiser.laws, np.array([4, 20, 9]) / 33
    times = np.array([1e-3, 0.05, 0.2, 0.5, 1.0, 2.0, 6.0])
    found = two_moments(denoiser, KEY, times, 8000)

    means = np.asarray(laws.mean, np.float64)
    modes = np.asarray(laws.modes, np.float64)
    across = np.eye(7) - np.einsum("cki,ckj->cij", modes, modes)
    C = np.einsum("cki,ck,ckj->cij", modes, laws.eigenvalues, modes) + 0.1 * across
    kinds = rng.choice(3, 8000, p=weights)
    factors = np.linalg.cholesky(C)
    a = means[kinds] + np.einsum("nij,nj->ni", factors[kinds], rng.standard_normal((8000, 7)))
    z = rng.standard_normal((8000, 7))
    for place, t in enumerate(times):
        x = np.exp(-t) * a + np.sqrt(-np.expm1(-2 * t)) * z
        noisy = np.exp(-2 * t) * C - np.expm1(-2 * t) * np.eye(7)
        logs = np.stack(
            [
                np.log(weights[c]) + multivariate_normal(np.exp(-t) * means[c], noisy[c]).logpdf(x)
                for c in range(3)
            ],
            axis=1,
        )
        logs -= logsumexp(logs, axis=1, keepdims=True)
        same, entropy = np.exp(2 * logs).sum(1), -(np.exp(logs) * logs).sum(1)
        for curve, values in (("phi", same), ("class_entropy", entropy)):
            got = found.curves[curve]
            error = np.hypot(got.standard_error[place], values.std() / math.sqrt(8000))
            assert abs(got.mean[place] - values.mean()) < 4.5 * error + 1e-5
    assert found.floor == pytest.approx(np.sum(weights**2), rel=1e-6)
    phi = found.curves["phi"].mean
    assert phi[0] > 0.98 > 0.8 > phi[-2] > phi[-1] > found.floor - 0.01


def test_forks_of_its_own_denoiser_end_in_one_class_as_often():
    """phi with and without trajectories."""
    rng = np.random.default_rng(5)
    means = np.zeros((2, 6))
    means[1, 0] = 6.0
    denoiser = on_axes(rng.uniform(0.2, 1.5, (2, 6)), means - means.mean(0), np.array([0.4, 0.6]))
    steps = [95, 75, 60, 40]
    times = np.asarray(SCHEDULE.time, np.float64)[np.array(steps) - 1]
    found = two_moments(denoiser, KEY, times[::-1])
    forks = fork(AncestralSampler(SCHEDULE), denoiser, jax.random.key(1), steps, (6,), 0, 3000)
    one, other = (side[:, :, 0] > 0 for side in forks.pairs())
    phi = np.mean(one == other, axis=0)
    exact = found.curves["phi"].mean[::-1]
    assert exact[0] < 0.65 < 0.85 < exact[-1]
    # Beside chance: a hundred steps, from pure noise at t = 5.
    assert np.all(np.abs(phi - exact) < 0.01 + 4 * np.sqrt(exact * (1 - exact) / 3000)), phi - exact


def test_draws_do_not_depend_on_the_batches(monkeypatch):
    rng = np.random.default_rng(2)
    denoiser = on_axes(rng.uniform(0.1, 2, (3, 5)), rng.standard_normal((3, 5)))
    times = np.array([0.1, 0.4, 1.0])
    whole = two_moments(denoiser, KEY, times, 400)
    monkeypatch.setattr(module, "_BATCH_BYTES", 2**14)
    parts = two_moments(denoiser, KEY, times, 400)
    for name, curve in whole.curves.items():
        np.testing.assert_allclose(parts.curves[name].mean, curve.mean, rtol=1e-5)
    other = two_moments(denoiser, jax.random.key(7), times, 400)
    assert np.abs(other.curves["phi"].mean - whole.curves["phi"].mean).max() > 1e-4


def test_what_cannot_be_drawn_is_refused():
    single = on_axes(np.ones((1, 4)))
    pair = on_axes(np.ones((2, 4)))
    for denoiser, changes, message in (
        (single, {}, "give two classes"),
        (pair, {"times": np.array([0.0, 1.0])}, "positive and finite, and increase"),
        (pair, {"times": np.array([1.0, np.inf])}, "positive and finite, and increase"),
        (pair, {"times": np.array([1.0, 0.5])}, "positive and finite, and increase"),
        (pair, {"times": np.zeros(0)}, "positive and finite, and increase"),
        (pair, {"num_draws": 99}, "num_draws = 99 must be at least 100"),
    ):
        with pytest.raises(UserError, match=message):
            two_moments(denoiser, KEY, **changes)
