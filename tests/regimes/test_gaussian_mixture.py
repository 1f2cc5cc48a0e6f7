import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from diffusion_jax.denoisers import GaussianMixtureDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_score
from diffusion_jax.regimes import posterior
from diffusion_jax.regimes.cloning import Cloning
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.mixture_cloning import FOUR_SIGMA, backward_step, clone
from diffusion_jax.schedule import linear_schedule
from experiments.paper import gaussian_mixture as experiment

TIMES = np.linspace(0, 20, 201)


def gaussian(x, mean=0.0, deviation=1.0):
    """Its density at one place, where scipy's takes twenty times as long."""
    return math.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))


@given(
    st.floats(2, 20),
    st.floats(0, 20),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_two_forms_of_phi_agree(log_dimension, t, log_mu, log_sigma):
    mixture = GaussianMixture(round(2**log_dimension), np.exp(log_mu), np.exp(log_sigma))
    assert abs(mixture.phi(t) - mixture.phi_overlap(t)) < 1e-12
    assert 0.5 <= mixture.phi(t) <= 1 + 1e-15


@pytest.mark.parametrize("d", 4 ** np.arange(1, 11))
def test_phi_against_adaptive_quadrature_of_its_tail(d):
    """1 - phi = 1/2 exp(-s/2) E sech(sqrt(s) z), a third form, by scipy's quadrature."""
    mixture = GaussianMixture(int(d))
    for t in np.linspace(0, 20, 21):
        s = d * np.exp(-2 * t)

        def integrand(y, s=s):  # in y/2 = sqrt(s) z, or z itself where s is small
            scale = max(1.0, math.sqrt(s))
            return gaussian(y / scale) / scale / math.cosh(math.sqrt(s) * y / scale)

        tail = quad(integrand, -40, 40, epsabs=1e-14, epsrel=1e-13, limit=400, points=[0])[0]
        assert abs(float(mixture.phi(t)) - (1 - 0.5 * np.exp(-s / 2) * tail)) < 1e-12


def ratio_of_gaussians(mixture, t):
    """phi as Biroli et al. (2024) write it: an integral over the projection of x_t."""
    gamma = 1 - np.exp(-2 * t) + mixture.sigma**2 * np.exp(-2 * t)
    centre, width = mixture.centre_norm * np.exp(-t), np.sqrt(gamma)

    def integrand(x):
        a, b = gaussian(x, centre, width), gaussian(x, -centre, width)
        return 0.5 * (a * a + b * b) / (a + b)

    reach = centre + 9 * width
    return quad(integrand, -reach, reach, epsabs=1e-13, epsrel=1e-12, limit=400)[0]


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_phi_is_the_published_ratio_of_gaussians(sigma):
    mixture = GaussianMixture(16, 0.7, sigma)
    for t in (0.3, 0.8, 1.5, 3.0):
        assert float(mixture.phi(t)) == pytest.approx(ratio_of_gaussians(mixture, t), abs=1e-11)


@pytest.mark.parametrize(("d", "mu", "sigma"), [(4, 1, 1), (256, 0.5, 2), (2**20, 1, 0.1)])
def test_speciation_is_where_phi_is_0_7752(d, mu, sigma):
    mixture = GaussianMixture(d, mu, sigma)
    assert float(mixture.separation(mixture.speciation_time)) == pytest.approx(1, rel=1e-12)
    assert float(mixture.phi(mixture.speciation_time)) == pytest.approx(0.775200, abs=5e-7)
    # The tail's form again, at s = 1, by another quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    tail = weights @ (1 / np.cosh(nodes)) / weights.sum()
    assert float(mixture.phi(mixture.speciation_time)) == pytest.approx(
        1 - 0.5 * np.exp(-0.5) * tail, abs=1e-10
    )


def test_speciation_that_never_comes():
    for sigma in (3.0, 2.1, 2.0):  # the argument of the logarithm is below 0, below 1, and 1
        assert np.isnan(GaussianMixture(4, 1.0, sigma).speciation_time)
    assert np.all(GaussianMixture(4, 1.0, 2.1).separation(TIMES) < 1)


def test_class_information_against_a_direct_integral():
    mixture = GaussianMixture(16, 0.7, 1.3)
    for t in (0.01, 0.5, 1.0, 2.5):
        width, centre = np.sqrt(mixture.gamma(t)), mixture.centre_norm * np.exp(-t)

        def integrand(x, centre=centre, width=width):
            a, b = gaussian(x, centre, width), gaussian(x, -centre, width)
            return a * math.log(2 * a / (a + b))

        reach = 9 * width
        exact = quad(integrand, centre - reach, centre + reach, epsabs=1e-13, limit=400)[0]
        assert float(mixture.class_information(t)) == pytest.approx(exact, abs=1e-10)


def test_entropy_falls_at_the_rate_of_the_score():
    """I-MMSE: d I(a; x_t)/d(e^-2t/Delta) = 1/2 E|a - E[a|x_t]|^2, with the exact posterior mean.

    The population's information is alpha - f; along each of the d - 1 axes across m the error is
    1/(1/sigma^2 + r^2), along m it follows from quadrature over x.
    """
    mixture, n, t = GaussianMixture(9, 0.8, 1.4), 1000, 0.9
    snr = 1 / np.expm1(2 * t)
    step = 1e-4
    times = 0.5 * np.log1p(1 / (snr + step * np.array([1, -1])))
    up, down = -9 * mixture.excess_entropy(times, n)
    across = 1 / (1 / mixture.sigma**2 + snr)
    a, signal, gamma = mixture.centre_norm, np.exp(-t), float(mixture.gamma(t))

    def second_moment_of_mean(x):
        weights = np.array([norm.pdf(x, c, np.sqrt(gamma)) for c in (signal * a, -signal * a)])
        means = np.array(
            [c + mixture.sigma**2 * signal * (x - signal * c) / gamma for c in (a, -a)]
        )
        return (weights @ means) ** 2 / weights.sum() / 2

    explained = quad(second_moment_of_mean, -15, 15, epsabs=1e-12, limit=400)[0]
    error = 8 * across + a * a + mixture.sigma**2 - explained
    assert (up - down) / (2 * step) == pytest.approx(error / 2, rel=1e-6)


def test_collapse_times():
    n = 20_000
    for d, sigma in ((256, 1.0), (1024, 0.5), (4096, 1.0)):
        mixture = GaussianMixture(d, 1.0, sigma)
        assert float(
            mixture.excess_entropy_one_class(mixture.collapse_time(n), n)
        ) == pytest.approx(0, abs=1e-12)
        # There the class is known: what is left out is log 2 of it, half the points.
        root = brentq(lambda t, m=mixture: float(m.excess_entropy(t, n)), 0.1, 5)
        assert root == pytest.approx(mixture.collapse_time(n / 2), rel=1e-3)


@pytest.mark.parametrize("d", [256, 4096, 2**20])
def test_finite_size_law_against_quadrature(d):
    mixture, n = GaussianMixture(d), 20_000
    for t in mixture.collapse_time(n) * np.array([0.8, 1.0, 1.3]):
        mean = d * float(mixture.excess_entropy(t, n))
        deviation = np.sqrt(d * np.exp(-2 * t))
        grid = mean + deviation * np.linspace(-9, 9, 400_001)
        weight = norm.pdf(grid, mean, deviation) * (grid[1] - grid[0])
        f, phi_c = mixture.finite_size(t, n)
        assert float(d * f) == pytest.approx(weight @ np.logaddexp(0, grid), rel=1e-9, abs=1e-10)
        assert float(phi_c) == pytest.approx(weight @ (0.5 - 0.5 * np.tanh(grid / 2)), abs=1e-9)


def test_finite_size_law_ends_where_it_must():
    """Late, the law counts n others beside the source: log(1 + n) and 1/(1 + n)."""
    mixture, n = GaussianMixture(256), 20_000
    f, phi_c = mixture.finite_size(np.array([0.0, 1e-3, 17.0]), n)
    np.testing.assert_allclose(256 * f / np.log(n + 1), [0, 0, 1], atol=1e-10)
    np.testing.assert_allclose(phi_c, [1, 1, 1 / (n + 1)], atol=1e-12)


def test_measured_excess_entropy_keeps_to_the_finite_size_law():
    """The bounds that the law is stated with, at sizes that take a second; 4 standard errors."""
    mixture, n, num_draws = GaussianMixture(128), 4000, 256
    times = np.array([0.9, 1.1, 1.3, 1.5, 1.8, 2.2, 3.0])
    points, labels = mixture.sample(np.random.default_rng(0), n)
    draws = posterior.draw(points, labels, times, jax.random.key(0), num_draws)
    f = draws.entropy / np.log(n)
    law, phi_c = mixture.finite_size(times, n)
    error = np.abs(f.mean(0) - 128 * law / np.log(n))
    stderr = f.std(0) / np.sqrt(num_draws)
    early = phi_c < 0.1
    assert early.sum() >= 2
    assert np.all(error < np.where(early, 0.01, 0.04) + 4 * stderr)
    # The form without the class information is not just a little worse.
    one_class = 128 * mixture.excess_entropy_one_class(times, n) / np.log(n)
    assert np.max(np.abs(f.mean(0) - one_class)[early]) > 0.04


def test_sample_has_the_mixtures_moments():
    mixture = GaussianMixture(8, 0.5, 2.0)
    points, labels = mixture.sample(np.random.default_rng(1), 20_001)
    assert points.dtype == np.float32
    assert np.bincount(labels).tolist() == [10_001, 10_000]
    for label, centre in ((0, -0.5), (1, 0.5)):
        mine = points[labels == label]
        assert np.all(np.abs(mine.mean(0) - centre) < 4.5 * 2 / 100)
        assert np.allclose(np.cov(mine.T), 4 * np.eye(8), atol=4.5 * 4 * np.sqrt(2) / 100)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_potential_gives_the_drift_of_q(sigma):
    """-V'(q) by differences, against q's drift x + 2 score, the score from the density itself."""
    mixture, t, h = GaussianMixture(5, 0.8, sigma), 0.7, 1e-5
    rng = np.random.default_rng(2)
    m = rng.standard_normal(5)
    m *= mixture.centre_norm / np.linalg.norm(m)
    gamma = 1 - np.exp(-2 * t) + sigma**2 * np.exp(-2 * t)

    def log_density(x):
        return np.logaddexp(
            -((x - np.exp(-t) * m) ** 2).sum() / (2 * gamma),
            -((x + np.exp(-t) * m) ** 2).sum() / (2 * gamma),
        )

    for x in 2 * rng.standard_normal((6, 5)):
        score = np.array(
            [(log_density(x + h * e) - log_density(x - h * e)) / (2 * h) for e in np.eye(5)]
        )
        drift = m @ (x + 2 * score) / np.sqrt(5)
        q = m @ x / np.sqrt(5)
        slope = (mixture.potential(q + h, t) - mixture.potential(q - h, t)) / (2 * h)
        assert drift == pytest.approx(-float(slope), abs=1e-7)


@pytest.mark.parametrize(("d", "mu", "sigma"), [(4, 1, 1), (256, 1, 1), (64, 0.5, 3), (16, 1, 0.2)])
def test_double_well_opens_at_its_closed_form(d, mu, sigma):
    mixture = GaussianMixture(d, mu, sigma)

    def wells(t):
        q = np.linspace(-3, 3, 2001) * mu * np.sqrt(d) * np.exp(-t)
        slope = np.diff(mixture.potential(q, t))
        return np.sum((slope[:-1] < 0) & (slope[1:] >= 0))

    opening = mixture.double_well_time
    assert wells(opening + 0.02) == 1
    assert wells(opening - 0.02) == 2
    if sigma == 1:
        assert opening == pytest.approx(0.5 * np.log(2 * d * mu**2), rel=1e-12)
        assert opening - mixture.speciation_time == pytest.approx(0.5 * np.log(2), rel=1e-9)


def test_mixture_denoiser_has_the_gradient_of_the_log_density():
    schedule = linear_schedule(1000)
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        m = jnp.asarray(rng.standard_normal((2, 3)))
        sigma = 0.6
        exact = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), schedule)
        denoiser = GaussianMixtureDenoiser(exact, m, jnp.asarray(sigma))

        def log_density(x, step):
            signal = jnp.sqrt(exact.alpha_bar[step])
            gamma = exact.noise_variance[step] + sigma**2 * exact.alpha_bar[step]
            distances = jnp.stack([jnp.sum((x - c * signal * m) ** 2) for c in (1.0, -1.0)])
            return jax.nn.logsumexp(-distances / (2 * gamma))

        x, step = jnp.asarray(rng.standard_normal((4, 2, 3))), jnp.array([0, 100, 500, 999])
        score = quick_jit(lambda x, s: noise_to_score(exact, denoiser(x, s), s))(x, step)
        expected = quick_jit(jax.vmap(jax.grad(log_density)))(x, step)
        assert score.dtype == jnp.float64
        np.testing.assert_allclose(score, expected, rtol=1e-10, atol=1e-12)

        # The step of the cloning experiments holds the same score.
        for i in range(4):
            signal, variance = exact.alpha_bar[step[i]] ** 0.5, exact.noise_variance[step[i]]
            gamma = variance + sigma**2 * exact.alpha_bar[step[i]]
            flat, still = x[i].reshape(1, 6), jnp.zeros((1, 6))
            moved = backward_step(flat, still, signal, gamma, jnp.asarray(0.125), m.reshape(6))
            np.testing.assert_allclose(
                (moved / 0.125 - flat / 0.125 - flat) / 2, expected[i].reshape(1, 6), rtol=1e-9
            )


def test_projection_of_a_trajectory_is_the_one_dimensional_trajectory():
    """The same step in one dimension, with centre |m|, driven by the projected noise."""
    d, eta, sigma = 6, 0.05, 0.7
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        m = rng.standard_normal(d)
        norm_m = np.linalg.norm(m)
        step = jax.jit(backward_step)
        x = jnp.asarray(rng.standard_normal((3, d)))
        y = x @ (m / norm_m)[:, None]
        for t in 3 - eta * np.arange(60):
            gamma = 1 - np.exp(-2 * t) + sigma**2 * np.exp(-2 * t)
            z = jnp.asarray(rng.standard_normal((3, d)))
            numbers = [jnp.asarray(a) for a in (np.exp(-t), gamma, eta)]
            x = step(x, z, *numbers, jnp.asarray(m))
            y = step(y, z @ (m / norm_m)[:, None], *numbers, jnp.asarray([norm_m]))
        np.testing.assert_allclose(x @ (m / norm_m)[:, None], y, rtol=1e-9)
        assert np.abs(np.asarray(y)).max() > 0.5


def test_clones_in_one_dimension_in_d_and_in_theory():
    """phi by three routes, each two within 4 standard errors; one at a time 0.05 off is not."""
    mixture, times, pairs = GaussianMixture(8), np.array([0.4, 0.8, 1.2, 1.6, 2.4]), (10_000, 2000)
    m = np.random.default_rng(5).standard_normal(8)
    m *= mixture.centre_norm / np.linalg.norm(m)
    one = clone(jax.random.key(0), np.array([mixture.centre_norm]), 1.0, times, pairs[0], 5.0, 500)
    many = clone(jax.random.key(1), m, 1.0, times, pairs[1], 5.0, 500)
    assert np.allclose(one.times, times)
    assert np.all(np.diff(one.phi) < 0)
    mean = (one.phi + many.phi) / 2
    error = np.sqrt(mean * (1 - mean) * sum(1 / n for n in pairs))
    assert np.all(np.abs(one.phi - many.phi) < 4 * error)
    for counted in (one, many):
        assert np.all(counted.p_values(mixture.phi(times)) > FOUR_SIGMA)
    assert np.min(one.p_values(mixture.phi(times + 0.05))) < FOUR_SIGMA
    assert np.min(one.p_values(mixture.phi(times - 0.05))) < FOUR_SIGMA


def test_clones_at_the_ends_of_time():
    """Forked at the start they share the first state alone; forked at the end they are one."""
    counted = clone(jax.random.key(2), np.array([16.0]), 1.0, [10.0, 0.0], 4000, num_steps=100)
    assert counted.same[1] == 4000
    assert abs(counted.phi[0] - 0.5) < 4 * np.sqrt(0.25 / 4000)
    assert counted.stderr[1] == 0
    low, high = counted.interval()[1]
    assert low < 1 <= high + 1e-12


def test_published_clones_agree_with_theory():
    """57 counts of Biroli et al. (2024); their t is the time of the state at the fork."""
    published = json.loads(experiment.PUBLISHED.read_text())
    assert "2402.18491" in published["source"]
    curves = published["gaussian_mixture_speciation"]["by_dimension"]
    assert sorted(map(int, curves)) == [256, 1024, 4096]
    smallest = dict.fromkeys((-0.1, 0.0, 0.1), 1.0)
    for d, curve in curves.items():
        times, clones = np.array(curve["t"]), curve["clones"]
        counted = Cloning(times, np.rint(np.array(curve["phi"]) * clones).astype(int), clones)
        for shift in smallest:
            p_values = counted.p_values(GaussianMixture(int(d)).phi(times + shift))
            smallest[shift] = min(smallest[shift], p_values.min())
    assert smallest[0.0] > FOUR_SIGMA
    assert smallest[0.1] < FOUR_SIGMA
    assert smallest[-0.1] < FOUR_SIGMA


@pytest.mark.parametrize(
    "arguments", [{"dimension": 0}, {"dimension": 4, "mu": 0.0}, {"dimension": 4, "sigma": np.nan}]
)
def test_a_mixture_that_is_none(arguments):
    with pytest.raises(UserError, match="Gaussian mixture needs"):
        GaussianMixture(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"times": [1.0, 11.0]}, r"branch times must lie in \[0, 10\]"),
        ({"times": [np.nan]}, "branch times"),
        ({"pairs": 0}, "at least one pair"),
        ({"sigma": 0.0}, "positive sigma"),
        ({"num_steps": 0}, "one step"),
    ],
)
def test_cloning_that_cannot_be_done(changed, message):
    arguments = {"centre": np.ones(1), "sigma": 1.0, "times": [1.0]} | changed
    with pytest.raises(UserError, match=message):
        clone(jax.random.key(0), **arguments)


@pytest.mark.usefixtures("rendered")
def test_command_writes_its_results_and_reports_what_leaves_its_bounds(
    tmp_path, monkeypatch, capsys
):
    """At a small size, with one published count of 57 falsified."""
    published = json.loads(experiment.PUBLISHED.read_text())
    phi = published["gaussian_mixture_speciation"]["by_dimension"]["256"]["phi"]
    phi[4] += 0.04
    published["gaussian_mixture_collapse"].update(n=300, excess_entropy_over_alpha={})
    changed = tmp_path / "published.json"
    changed.write_text(json.dumps(published))
    monkeypatch.setattr(experiment, "PUBLISHED", changed)
    monkeypatch.setattr(experiment, "SPECIATION_DIMENSIONS", (256,))
    monkeypatch.setattr(experiment, "COLLAPSE_DIMENSIONS", (64,))
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    words = ["--out", str(out), "--pairs", "500", "--draws", "64"]
    monkeypatch.setattr(sys, "argv", ["gaussian_mixture", *words])
    with pytest.raises(SystemExit) as stopped:
        experiment.main()
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "phi, d = 256, published: 18 of 19 within 4 standard errors" in printed.err
    assert "ours: " not in printed.err

    result = json.loads((out / "result.json").read_text())
    speciation, collapse = result["speciation"]["256"], result["collapse"]["64"]
    assert speciation["ours"]["within"] == 19
    assert speciation["published"]["p_value"][4] < FOUR_SIGMA
    f, stderr = np.array(collapse["f"]), np.array(collapse["stderr"])
    assert len(f) == len(stderr) == len(collapse["t"])
    assert f[-1] == pytest.approx(1, abs=1e-3)
    early = np.array(collapse["phi_C_finite_size"]) < 0.1
    distance = np.abs(f - collapse["finite_size"])[early]
    assert collapse["errors"]["finite_size_early"]["error"] == pytest.approx(distance.max())
    for name in ("speciation.png", "collapse.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
