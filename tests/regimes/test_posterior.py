import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import binomtest

from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import posterior
from diffusion_jax.regimes.posterior import draw, stratified, training_set
from diffusion_jax.sampling import AncestralSampler, keys_of_step, normal, sampling_loop
from diffusion_jax.schedule import linear_schedule

TIMES = np.array([1e-3, 1e-2, 0.05, 0.2, 0.7, 2.0, 10.0])


def noise_of(key, num_draws, d):
    """The engine's own noise, from its key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key)[1], jnp.arange(num_draws))
    return np.asarray(jax.vmap(lambda k: jax.random.normal(k, (d,)))(keys), np.float64)


def reference(points, labels, index, z, times):
    """The posterior by its definition, in float64: from x_t and the distances to e^-t a_nu."""
    a = np.asarray(points, np.float64)
    out = []
    for t in times:
        delta = -np.expm1(-2 * t)
        x = np.exp(-t) * a[index] + np.sqrt(delta) * z
        distance = ((x[:, None] - np.exp(-t) * a[None]) ** 2).sum(2)
        own = distance[np.arange(len(index)), index]
        logit = -(distance - own[:, None]) / (2 * delta)
        log_p = logit - logsumexp(logit, axis=1, keepdims=True)
        p = np.exp(log_p)
        masked = logit.copy()
        masked[np.arange(len(index)), index] = -np.inf
        evidence = np.stack(
            [logsumexp(masked[:, labels == c], axis=1) for c in range(labels.max() + 1)], 1
        )
        entropy = -np.sum(np.where(p > 0, p * log_p, 0), 1)
        own = log_p[np.arange(len(index)), index]
        apart = ((a[index][:, None] - a[None]) ** 2).sum(2)
        squared = []
        for c in range(labels.max() + 1):
            of = np.exp(logit[:, labels == c] - logit[:, labels == c].max(1, keepdims=True))
            squared.append((of * apart[:, labels == c]).sum(1) / of.sum(1))
        squared = np.stack(squared, 1)
        out.append((entropy, np.sum(p * p, 1), own, p.max(1), evidence, squared))
    return [np.stack(each, 1) for each in zip(*out, strict=True)]


@pytest.fixture(scope="module")
def digits_like():
    """Points with near and exact duplicates, far from the origin, in three unequal classes."""
    rng = np.random.default_rng(0)
    points = rng.normal(0.5, 0.3, (60, 200))
    points[1] = points[0] + 1e-3 * rng.standard_normal(200) / np.sqrt(200)
    points[2] = points[0] + 2e-2 * rng.standard_normal(200) / np.sqrt(200)
    points[4] = points[3]
    labels = rng.permutation(np.repeat([0, 1, 2], [9, 20, 31]))
    return points.astype(np.float32), labels


@pytest.mark.parametrize(("draws", "logits"), [(4096, 2**30), (2, 4 * 2 * 60 * 5)])
def test_times_at_once_change_nothing(digits_like, monkeypatch, draws, logits):
    """As on a GPU: all of 16 padded times in one, and so many as fit, 4 of 5 asked for."""
    expected = draw(*digits_like, TIMES, jax.random.key(1), 30)
    most = posterior._Chunk(bytes=2**29, draws=draws, logits=logits)
    monkeypatch.setattr(posterior, "_ON_CPU", most)
    found = draw(*digits_like, TIMES, jax.random.key(1), 30)
    for name in ("entropy", "collision", "log_own", "largest", "log_evidence", "squared"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_agrees_with_float64_at_every_time(digits_like):
    points, labels = digits_like
    key = jax.random.key(1)
    got = draw(points, labels, TIMES, key, 120)
    assert (got.labels == labels[got.index]).all()
    entropy, collision, log_own, largest, evidence, squared = reference(
        points, labels, got.index, noise_of(key, 120, 200), TIMES
    )
    np.testing.assert_allclose(got.entropy, entropy, atol=2e-4)
    np.testing.assert_allclose(got.collision, collision, atol=2e-4)
    np.testing.assert_allclose(got.log_own, log_own, atol=2e-4)
    np.testing.assert_allclose(got.largest, largest, atol=2e-4)
    np.testing.assert_allclose(got.log_evidence, evidence, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(got.squared, squared, rtol=1e-4, atol=2e-3)
    # The duplicates are among the draws, and matter: without them every entropy would vanish.
    assert entropy[np.isin(got.index, (0, 1, 3, 4)), 0].min() > 0.5


def test_class_probabilities_count_the_source(digits_like):
    points, labels = digits_like
    key = jax.random.key(2)
    got = draw(points, labels, TIMES, key, 60)
    noise = noise_of(key, 60, 200)
    _, _, log_own, _, evidence, _ = reference(points, labels, got.index, noise, TIMES)
    own = np.exp(log_own)
    others = own[..., None] * np.exp(evidence)
    others[np.arange(60), :, got.labels] += own
    np.testing.assert_allclose(got.class_probability, others, atol=2e-4)
    np.testing.assert_allclose(got.log_others, logsumexp(evidence, axis=2), rtol=1e-4, atol=2e-3)


def test_bytes_are_scaled(digits_like):
    _, labels = digits_like
    pixels = np.random.default_rng(3).integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    a = draw(pixels, labels, TIMES, jax.random.key(0), 16)
    b = draw(pixels.reshape(60, 16) / 255, labels, TIMES, jax.random.key(0), 16)
    np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-5)


def test_a_draw_depends_on_its_number_alone(digits_like):
    points, labels = digits_like
    few = draw(points, labels, TIMES, jax.random.key(4), 10)
    many = draw(points, labels, TIMES, jax.random.key(4), 77)
    np.testing.assert_array_equal(few.index, many.index[:10])
    np.testing.assert_allclose(few.log_own, many.log_own[:10], atol=1e-4)


def test_every_point_is_drawn_equally_often():
    index = stratified(jax.random.key(0), 30, 0, 90)
    assert (np.bincount(index) == 3).all()
    np.testing.assert_array_equal(stratified(jax.random.key(0), 30, 25, 70), index[25:70])


def test_two_points_are_a_mixture_without_width():
    # Projected on their difference: two peaks of variance Delta, s = r^2 |a - b|^2/4.
    points = np.array([[1.0, 0.0], [-1.0, 0.5]])
    times = np.array([0.1, 0.5, 1.0, 2.0])
    got = draw(points, np.array([0, 1]), times, jax.random.key(0), 10_000)
    s = np.sum((points[0] - points[1]) ** 2) / np.expm1(2 * times) / 4
    z, w = np.polynomial.hermite_e.hermegauss(200)
    w = w / w.sum()
    phi = 0.5 + 0.5 * np.tanh(s[:, None] + np.sqrt(s)[:, None] * z) @ w
    entropy = np.log1p(np.exp(-2 * (s[:, None] + np.sqrt(s)[:, None] * z))) @ w
    for values, exact in (
        (got.collision, phi),
        (np.exp(got.log_own), phi),
        (np.sum(got.class_probability**2, 2), phi),
        (got.entropy, entropy),
    ):
        error = values.std(0) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(0) - exact) < 4 * error + 1e-6)


@pytest.fixture(scope="module")
def small_cloud():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 10)
    return rng.normal(0, 0.6, (20, 8)).astype(np.float32) + 0.5 * (2 * labels[:, None] - 1), labels


def test_both_routes_to_the_excess_entropy(small_cloud):
    points, labels = small_cloud
    times = np.array([0.2, 0.5, 1.0])
    key = jax.random.key(6)
    got = draw(points, labels, times, key, 4000)
    n, d = points.shape
    z = noise_of(key, 4000, d)
    delta = -np.expm1(-2 * times)
    # -log P_t^e(x_t) of each draw, and the entropy of n separate Gaussians.
    minus_log = (
        np.log(n)
        + 0.5 * d * np.log(2 * np.pi * delta)
        + 0.5 * np.sum(z * z, 1)[:, None]
        + got.log_own
    )
    separate = np.log(n) + 0.5 * d * (1 + np.log(2 * np.pi * delta))
    theirs = (separate - minus_log) / d
    ours = got.entropy / d
    difference = theirs - ours
    assert np.all(np.abs(difference.mean(0)) < 4 * difference.std(0) / np.sqrt(4000))
    assert np.all(theirs.var(0) > 5 * ours.var(0))


def test_entropy_grows_at_the_rate_of_the_mean_squared_error(small_cloud):
    # d E[H] / d(r^2) = -1/2 E|a - E[a|x]|^2.
    points, labels = small_cloud
    h, num = 0.02, 20_000
    r2 = 1.5 + h * np.array([-1.0, 0.0, 1.0])
    times = 0.5 * np.log1p(1 / r2)
    key = jax.random.key(7)
    got = draw(points, labels, times, key, num)
    slope = (got.entropy[:, 2] - got.entropy[:, 0]) / (2 * h)
    t, z = times[1], noise_of(key, num, 8)
    delta = -np.expm1(-2 * t)
    x = np.exp(-t) * points[got.index] + np.sqrt(delta) * z
    squared = ((x[:, None] - np.exp(-t) * points[None]) ** 2).sum(2)
    p = np.exp(-squared / (2 * delta))
    p /= p.sum(1, keepdims=True)
    error = np.sum((points[got.index] - p @ points) ** 2, 1)
    difference = slope + error / 2
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(num)
    assert error.mean() > 20 * difference.std() / np.sqrt(num)  # so it could have failed


def test_clones_under_the_exact_score(small_cloud):
    points, labels = small_cloud
    schedule = linear_schedule(500)
    denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points))
    sampler = AncestralSampler(schedule)
    pairs, branches = 2000, (300, 175, 100, 40)

    @jax.jit
    def run(x, key, start, stop):
        keys = jax.random.split(key, pairs)
        return sampling_loop(sampler, denoiser, x, keys, start, stop)

    def nearest(x):
        return np.argmin(((np.asarray(x)[:, None] - points[None]) ** 2).sum(2), 1)

    keys = jax.random.split(jax.random.key(8), 3 * len(branches))
    state = normal(keys_of_step(jax.random.split(keys[0], pairs), 500), (8,))
    start = 500
    times = np.asarray(schedule.time_of_step(np.array(branches) - 1))
    engine = draw(points, labels, times, jax.random.key(9), 20_000)
    phi = np.sum(engine.class_probability**2, 2).mean(0)
    phi_C = engine.collision.mean(0)
    assert phi_C[0] < 0.3 < 0.7 < phi_C[-1]  # the branches span the collapse
    for i, branch in enumerate(branches):
        state = run(state, keys[3 * i], start, branch)
        start = branch
        first, second = (nearest(run(state, key, branch, 0)) for key in keys[3 * i + 1 : 3 * i + 3])
        same_point = int(np.sum(first == second))
        same_class = int(np.sum(labels[first] == labels[second]))
        assert binomtest(same_point, pairs, phi_C[i]).pvalue > 1e-3
        assert binomtest(same_class, pairs, phi[i]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (np.zeros((1, 3)), None, "at least two training points, not 1"),
        (np.array([[0.0], [np.nan]]), None, "training point 1 holds values that are not finite"),
        (np.zeros((3, 2)), np.array([0, 2, 2]), "class 1 has no training points"),
        (np.zeros((3, 2)), np.array([0, -1, 1]), "integers from 0 on, not -1"),
        (np.zeros((3, 2)), np.array([0.0, 1.0, 1.0]), "integers from 0 on, not 0.0"),
        (np.zeros((3, 2)), np.array([0, 1]), r"labels of shape \(2,\) for 3 training points"),
    ],
)
def test_what_a_training_set_must_be(points, labels, message):
    with pytest.raises(UserError, match=message):
        training_set(points, labels)


@pytest.mark.parametrize(("times", "draws"), [([0.0, 1.0], 5), ([1.0, 40.0], 5), ([1.0], 0)])
def test_what_a_draw_needs(times, draws):
    with pytest.raises(UserError, match="at least one draw, and times from 1e-06 to 30"):
        draw(np.eye(3), None, np.array(times), jax.random.key(0), draws)


def test_a_class_of_one_point_has_no_evidence_without_it():
    got = draw(np.eye(3), np.array([0, 1, 1]), np.array([0.5]), jax.random.key(0), 30)
    alone = got.labels == 0
    assert np.isneginf(got.log_evidence[alone, 0, 0]).all()
    assert np.isfinite(got.log_evidence[~alone]).all()
    assert np.isfinite(got.entropy).all()
    assert (got.squared[alone, 0, 0] == 0).all()
    assert (got.squared[~alone, 0, 0] == 2).all()
    np.testing.assert_allclose(got.class_probability.sum(2), 1, rtol=1e-5)
