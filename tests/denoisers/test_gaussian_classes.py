"""The score of a mixture of Gaussians, against densities of d x d matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import noise_of, quick_jit
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from diffusion_jax.denoisers import (
    DENOISERS,
    GaussianClassesDenoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
)
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_score
from diffusion_jax.regimes.cloning import fork, u_turns
from diffusion_jax.sampling import AncestralSampler, sample
from diffusion_jax.sampling.likelihood import basis_probes, log_likelihood
from diffusion_jax.schedule import linear_schedule

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SHAPE = (3, 2, 2)
SCHEDULE = linear_schedule(200)
SIZES = (9, 1, 25)  # ranks 8, 0 and 11: below, without, and as many as the pixels that vary


def classes_of(sizes=SIZES, seed=0, distance=1.5):
    """Points of classes with means, covariances and weights of their own; one pixel is fixed."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    shapes = rng.standard_normal((len(sizes), 12, 12)) * np.geomspace(1, 0.1, 12)[:, None]
    means = distance * rng.standard_normal((len(sizes), 12))
    points = np.einsum("nd,nde->ne", rng.standard_normal((len(labels), 12)), shapes[labels])
    points[:, -1], means[:, -1] = 0, 0.3
    return (points + means[labels]).reshape(-1, *SHAPE).astype(np.float32), labels


def dense(points, labels, rank, floor):
    """Each class's weight, mean and whole covariance, in float64."""
    found = []
    for c in range(labels.max() + 1):
        flat = points[labels == c].reshape(-1, 12).astype(np.float64)
        m = flat.mean(0)
        C = (flat - m).T @ (flat - m) / len(flat)
        values, vectors = np.linalg.eigh(C)
        kept = values > 1e-12 * max(values[-1], 1e-12)
        if rank is not None:
            kept[: 12 - rank] = False
        V, values = vectors[:, kept].T, values[kept]
        left = (np.trace(C) - values.sum()) / (12 - len(V)) if floor == "rest" else floor
        C = V.T @ np.diag(values) @ V + left * (np.eye(12) - V.T @ V)
        found.append((len(flat) / len(points), m, C))
    return found


def dense_answer(laws, x, t):
    """Log p(c | x) and D at one x, from the densities."""
    logs, means = [], []
    for weight, m, C in laws:
        law = np.exp(-2 * t) * C - np.expm1(-2 * t) * np.eye(12)
        y = x - np.exp(-t) * m
        logs.append(
            np.log(weight) - 0.5 * (y @ np.linalg.solve(law, y) + np.linalg.slogdet(law)[1])
        )
        means.append(m + np.exp(-t) * C @ np.linalg.solve(law, y))
    logs = np.array(logs) - logsumexp(logs)
    return logs, np.exp(logs) @ np.array(means)


def noised(points, steps, seed=1):
    rng = np.random.default_rng(seed)
    t = np.asarray(SCHEDULE.time, np.float64)[steps][:, None, None, None]
    a = points[rng.integers(len(points), size=len(steps))]
    z = rng.standard_normal((len(steps), *SHAPE))
    return (np.exp(-t) * a + np.sqrt(-np.expm1(-2 * t)) * z).astype(np.float32)


@quick_jit
def answers(denoiser, x, step):
    log_probability = denoiser.class_log_probability(x, step)
    return denoiser.predict_x_0(x, step), log_probability, denoiser(x, step)


@pytest.mark.parametrize(
    ("rank", "floor"), [(None, 0), (None, 0.2), (3, 0), (3, 0.2), (3, "rest"), (0, "rest")]
)
def test_against_whole_covariances(rank, floor):
    """At the smallest t, where densities differ by thousands of nats, as at all others."""
    points, labels = classes_of()
    denoiser = GaussianClassesDenoiser.fit(SCHEDULE, points, labels, rank, floor)
    laws = dense(points, labels, rank, floor)
    steps = np.concatenate([np.zeros(8, int), np.arange(0, 200, 7)])
    x = noised(points, steps)
    times = np.asarray(SCHEDULE.time, np.float64)[steps]
    pairs = zip(x.reshape(-1, 12), times, strict=True)
    logs, exact = zip(*(dense_answer(laws, *each) for each in pairs), strict=True)
    exact = np.stack(exact).reshape(x.shape)
    got, found, noise = answers(denoiser, x, steps)
    np.testing.assert_allclose(got, exact, atol=1e-5 * np.abs(exact).max(), rtol=0)
    assert found.shape == (len(x), 3)
    np.testing.assert_allclose(np.exp(found), np.exp(logs), atol=1e-5)
    np.testing.assert_allclose(found, logs, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-6)
    sure = np.exp(logs).max(1)
    assert np.any(sure > 0.9999)
    assert np.any(sure < 0.9)
    scale, signal = (
        each.reshape(-1, 1, 1, 1) for each in (np.sqrt(-np.expm1(-2 * times)), np.exp(-times))
    )
    error = np.abs(noise - (x - signal * exact) / scale) * scale
    assert error.max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("floor", [0, 0.3])
def test_one_class_is_one_gaussian(floor):
    points, _ = classes_of((11,))
    steps = np.arange(0, 200, 9)
    x = noised(points, steps)
    one = GaussianDenoiser.fit(SCHEDULE, points, 5, floor)
    mixture = GaussianClassesDenoiser.fit(SCHEDULE, points, np.zeros(11, int), 5, floor)
    _, log_probability, noise = answers(mixture, x, steps)
    np.testing.assert_allclose(noise, noise_of(one, x, steps), atol=1e-5)
    np.testing.assert_array_equal(log_probability, 0)


def test_two_round_classes_are_the_mixture():
    """N(+-m, sigma^2 I): no modes, a floor, and the closed form with the hyperbolic tangent."""
    m, sigma = np.random.default_rng(0).standard_normal((3, 2, 1)).astype(np.float32), 0.6
    exact = GaussianMixtureDenoiser(SCHEDULE, jnp.asarray(m), jnp.float32(sigma))
    fitted = GaussianClassesDenoiser.fit(SCHEDULE, np.stack([m, -m]), np.arange(2), 0, sigma**2)
    x = np.random.default_rng(1).standard_normal((20, 3, 2, 1)).astype(np.float32)
    steps = np.arange(0, 200, 10)
    np.testing.assert_allclose(noise_of(fitted, x, steps), noise_of(exact, x, steps), atol=2e-5)


@pytest.mark.parametrize("floor", [0, 0.4])
def test_the_score_is_the_gradient_of_the_log_density(floor):
    with jax.enable_x64(True):
        schedule = linear_schedule(100)
        points, labels = classes_of()
        denoiser = GaussianClassesDenoiser.fit(schedule, points.astype(float), labels, 4, floor)
        laws = dense(points, labels, 4, floor)
        x = np.random.default_rng(1).standard_normal((3, *SHAPE))

        def log_density(y, signal, delta):
            logs = []
            for weight, m, C in laws:
                law = signal**2 * C + delta * jnp.eye(12)
                centred = y.reshape(-1) - signal * m
                squared = centred @ jnp.linalg.solve(law, centred)
                logs.append(jnp.log(weight) - 0.5 * (squared + jnp.linalg.slogdet(law)[1]))
            return jax.nn.logsumexp(jnp.stack(logs))

        gradient = quick_jit(jax.vmap(jax.grad(log_density), (0, None, None)))
        score = quick_jit(lambda x, s: noise_to_score(schedule, denoiser(x, s), s))
        signals, deltas = np.sqrt(schedule.alpha_bar), np.asarray(schedule.noise_variance)
        for s in (0, 30, 70):
            exact = gradient(x, signals[s], deltas[s])
            np.testing.assert_allclose(score(x, np.full(3, s)), exact, rtol=1e-7, atol=1e-9)


def check_classes(got, points, labels, chance):
    """Samples are told by their nearest mean; each class has its share, mean and covariance."""
    got, flat = (each.reshape(len(each), -1) for each in (got, points))
    means = np.stack([flat[labels == c].mean(0) for c in range(labels.max() + 1)])
    nearest = ((got[:, None] - means) ** 2).sum(2).argmin(1)
    assert np.all(((flat[:, None] - means) ** 2).sum(2).argmin(1) == labels)
    for c, m in enumerate(means):
        mine, share = got[nearest == c], np.mean(labels == c)
        # The steps begin at pure noise, where x_t still knows its class a little.
        assert abs(len(mine) / len(got) - share) < 0.01 + 4.5 * np.sqrt(
            share * (1 - share) / len(got)
        )
        C = np.cov(flat[labels == c], rowvar=False, bias=True)
        deviation = np.sqrt(np.diag(C))
        slack = chance * deviation.max()
        assert np.all(np.abs(mine.mean(0) - m) < 4.5 * deviation / np.sqrt(len(mine)) + slack)
        spread = np.sqrt((np.outer(deviation, deviation) ** 2 + C**2) / len(mine))
        found = np.cov(mine, rowvar=False, bias=True)
        assert np.all(np.abs(found - C) < 4.5 * spread + slack)


def test_samples_forks_and_turns_have_the_classes_and_their_moments():
    """On eight devices; classes far apart, so that each sample's is known."""
    points, labels = classes_of((12, 24), distance=6)
    denoiser = DENOISERS["classes"](SCHEDULE, points, labels)
    sampler = AncestralSampler(SCHEDULE)
    ends = sample(sampler, denoiser, jax.random.key(0), 2000, SHAPE, 2000)
    check_classes(ends, points, labels, 0.05)
    forks = fork(sampler, denoiser, jax.random.key(1), [199, 40], SHAPE, 0, 800)
    check_classes(forks.trunk, points, labels, 0.05)
    check_classes(forks.clones[:, 0, 0], points, labels, 0.05)
    sides = [
        np.asarray(answers(denoiser, each[:, 1], np.zeros(800, int))[1]) for each in forks.pairs()
    ]
    np.testing.assert_array_equal(sides[0].argmax(1), sides[1].argmax(1))  # long decided
    repeated, kinds = np.tile(points, (10, 1, 1, 1)), np.tile(labels, 10)
    turned = u_turns(sampler, denoiser, jax.random.key(2), [60], repeated)[:, 0]
    last = answers(denoiser, turned, np.zeros(360, int))[1]
    np.testing.assert_array_equal(np.asarray(last).argmax(1), kinds)
    check_classes(turned, points, labels, 0.05)


def test_likelihood_is_the_mixtures():
    schedule = linear_schedule(300)
    points, labels = classes_of((9, 20), distance=0.7)
    denoiser = GaussianClassesDenoiser.fit(schedule, points, labels, 5, 0.3)
    blur = np.expm1(2 * float(schedule.time[0]))
    x = points[:6]
    got, _ = log_likelihood(denoiser, schedule, jnp.asarray(x), basis_probes(6, SHAPE))
    logs = [
        np.log(weight) + multivariate_normal(m, C + blur * np.eye(12)).logpdf(x.reshape(6, -1))
        for weight, m, C in dense(points, labels, 5, 0.3)
    ]
    # It starts from N(0, I): off by what x_t still knows of a, about |a|^2 e^-2T = 5e-4.
    np.testing.assert_allclose(got, logsumexp(logs, axis=0), atol=0.01)


@pytest.mark.parametrize("name", ["gaussian", "classes"])
def test_more_steps_than_the_schedule_has_are_refused(name):
    denoiser = DENOISERS[name](SCHEDULE, *classes_of())
    with pytest.raises(UserError, match=r"has 201 steps, but the denoiser knows .* 0\.\.199"):
        sample(AncestralSampler(linear_schedule(201)), denoiser, jax.random.key(0), 1, SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "need labels, and these images have none"),
        ({"labels": np.zeros(4, int)}, r"labels of shape \(4,\) for 35 training points"),
        ({"labels": np.full(35, 1)}, "class 0 has no training points"),
        ({"labels": np.full(35, -1)}, "integers from 0 on, not -1"),
        ({"points": np.full((35, 2), np.nan)}, "point 0 holds values that are not finite"),
        ({"rank": 13}, "rank = 13 must be a whole number from 0 to 12"),
        ({"floor": -1}, "floor = -1 must be a variance"),
    ],
    ids=["none", "length", "empty", "negative", "finite", "rank", "floor"],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    points, labels = classes_of()
    with pytest.raises(UserError, match=message):
        GaussianClassesDenoiser.fit(
            **({"schedule": SCHEDULE, "points": points, "labels": labels} | change)
        )
