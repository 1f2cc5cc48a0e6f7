"""Random-features scores: the spectrum in high dimension, the exact flow, and its times."""

import json
import math
import sys

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import erf

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.random_features import (
    FeatureCoefficients,
    FeatureSpectrum,
    feature_coefficients,
    hermite,
)
from diffusion_jax.regimes.random_features_flow import (
    FeatureFlow,
    RandomFeatures,
    random_features,
)
from experiments.paper import random_features as experiment

SIZES = [(4, 2), (16, 4), (2, 6), (0.5, 2), (2.5, 0.3), (32, 8)]


def law(psi_p, psi_n, t=0.1):
    return FeatureSpectrum(feature_coefficients(np.tanh, t), psi_p, psi_n)


def moment(spectrum, power):
    values, masses, _ = spectrum.quadrature()
    place, mass = spectrum.atom
    return masses @ values**power + mass * place**power


def equivalent(coefficients, d, p, n, rng):
    """Eigenvalues of the linear model that the features are equivalent to."""
    c = coefficients
    w, x = rng.standard_normal((p, d)), rng.standard_normal((d, n))
    g = c.signal * c.slope * w @ x / math.sqrt(d)
    g += math.sqrt(c.data_residual) * rng.standard_normal((p, n))
    noise = c.noise * c.slope**2 * w @ w.T / d
    return np.linalg.eigvalsh(g @ g.T / n + noise + c.noise_residual * np.eye(p))


@pytest.mark.parametrize("t", [0.01, 0.3, 2.0])
def test_coefficients_of_the_error_function(t):
    """E erf(h) erf(h') = (2/pi) arcsin(2 rho/3), E erf' = 2/sqrt(3 pi), for h of variance 1."""
    found, kept = feature_coefficients(erf, t), math.exp(-2 * t)
    slope = 2 / math.sqrt(3 * math.pi)
    both, alone = (2 / math.pi * math.asin(2 * rho / 3) for rho in (kept, 1.0))
    assert found.slope == pytest.approx(slope, rel=1e-12)
    assert found.data_residual == pytest.approx(both - kept * slope**2, abs=1e-12)
    rest = alone - both - (1 - kept) * slope**2
    assert found.noise_residual == pytest.approx(rest, abs=1e-12)
    assert found.mean == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("psi_p", "psi_n"), SIZES)
def test_first_two_moments_are_those_of_wishart_matrices(psi_p, psi_n):
    """tr U/p and tr U^2/p by Wick's rule: tr K/p = 1, tr K^2/p = 1 + psi_p."""
    spectrum = law(psi_p, psi_n)
    c = spectrum.coefficients
    signal, noise, v2 = (c.signal * c.slope) ** 2, c.noise * c.slope**2, c.data_residual
    square = 1 + psi_p
    first = signal + v2 + noise
    second = signal**2 * square + 2 * signal * v2 + v2**2 + psi_p / psi_n * (signal + v2) ** 2
    second += 2 * noise * (signal * square + v2) + noise**2 * square
    s2 = c.noise_residual
    assert moment(spectrum, 0) == pytest.approx(1, abs=2e-5)
    assert moment(spectrum, 1) == pytest.approx(first + s2, abs=1e-6)
    assert moment(spectrum, 2) == pytest.approx(second + 2 * s2 * first + s2**2, rel=1e-6)
    learned = spectrum.quadrature()[2].sum()
    assert learned == pytest.approx(noise * psi_p, rel=1e-6)  # tr V^T V/d


def test_a_hard_edge_loses_little_mass():
    """At p = n + d the density is infinite at s^2."""
    for size in ((3, 2), (7, 6)):
        assert moment(law(*size), 0) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("d", "p", "n"), [(60, 240, 120), (51, 102, 306), (64, 32, 128)])
def test_stieltjes_transform_and_moments_of_realisations(d, p, n):
    """Means over 16 realisations within 4 standard errors and the bias of order 1/d."""
    c = feature_coefficients(np.tanh, 0.1)
    spectrum = FeatureSpectrum(c, p / d, n / d)
    z = np.array([0.05 + 0.1j, 1 + 0.5j, -0.1 + 0.05j, 5 + 1j, 0.2 + 0.05j])
    rng = np.random.default_rng(0)
    values = np.array([equivalent(c, d, p, n, rng) for _ in range(16)])
    for found, expected in (
        (np.mean(1 / (values[..., None] - z), axis=1), spectrum.stieltjes(z)),
        (np.mean(values[..., None] ** [1, 2, 3], axis=1), [moment(spectrum, k) for k in (1, 2, 3)]),
    ):
        error = found.std(axis=0, ddof=1) / 4
        off = np.abs(found.mean(axis=0) - expected)
        assert np.all(off < 4 * error + np.abs(expected) / d)


def test_stieltjes_transform_is_that_of_the_density():
    spectrum, z = law(16, 4, 0.01), np.array([[0.05 + 0.1j, -1 + 1e-3j], [2 + 0.3j, 10 + 1j]])
    values, masses, _ = spectrum.quadrature()
    place, mass = spectrum.atom
    whole = np.sum(masses / (values - z[..., None]), axis=-1) + mass / (place - z)
    np.testing.assert_allclose(spectrum.stieltjes(z), whole, rtol=1e-5)


@pytest.mark.parametrize("psi_n", [2, 8])
def test_a_networks_bulks_hold_as_many_eigenvalues_as_in_theory(psi_n):
    """d and n - d above the gaps; and moments of the network itself, to the order 1/d."""
    d, psi_p = 32, 24
    flow = random_features(d, psi_p * d, psi_n * d, 0.01)
    spectrum = law(psi_p, psi_n, 0.01)
    (_, end), (low, high), (top, _) = spectrum.bulks
    values = flow.eigenvalues
    assert np.sum(values > math.sqrt(high * top)) == d
    assert np.sum(values > math.sqrt(end * low)) == psi_n * d
    for power in (1, 2, 3):
        # A Wishart matrix's tr K^k/p varies by about k/d, its mean by as much.
        assert np.mean(values**power) == pytest.approx(moment(spectrum, power), rel=4 * power / d)
    ends = np.array([0.0, math.inf])
    limit = spectrum.training_loss(ends)
    assert limit[0] == 1
    np.testing.assert_allclose(flow.losses(ends)[0], limit, atol=1 / d)


def test_times_are_proportional_to_the_training_points():
    """For 1 << psi_n << psi_p: exponents 0, 1 and 1, and the laws that the docstrings give."""
    psi_n, psi_p, times = np.geomspace(8, 64, 4), 1e5, []
    for each in psi_n:
        spectrum = law(psi_p, each, 0.01)
        times.append(
            [spectrum.generalisation_time, spectrum.memorisation_time, spectrum.overfitting_time]
        )
    powers = np.polyfit(np.log(psi_n), np.log(times), 1)[0]
    np.testing.assert_allclose(powers, [0, 1, 1], atol=0.02)
    c = spectrum.coefficients
    expected = psi_n / (c.noise * c.data_residual)
    np.testing.assert_allclose(np.array(times)[:, 1], expected, rtol=0.01)
    slow = c.noise_residual + c.noise * c.data_residual * psi_p / psi_n
    # The data's covariance is not quite the identity: 1/psi_n of the law.
    np.testing.assert_allclose(
        np.array(times)[:, 2] * c.noise * slow / psi_p, 1, atol=3 / psi_n.min()
    )
    # Where n > p there is no memory left: the rest's mean is s^2 + v^2, but for 1/psi_p.
    spectrum = law(100, 1000, 0.01)
    mean = 100 / c.noise / spectrum.memorisation_time
    assert mean == pytest.approx(c.data_residual + c.noise_residual, rel=0.03)


def test_a_networks_times_grow_with_its_training_points():
    """Of networks, at psi_p = 32 where s^2 bends the law: exponents 0, 1 and 0.7 to 1.1."""
    d, sizes, rows = 20, (2, 4, 8), []
    for psi_n in sizes:
        flow = random_features(d, 32 * d, psi_n * d, 0.01)
        rates, times = flow.rates[::-1], np.geomspace(1, 1e8, 161)
        train, test = flow.losses(times)
        gap = test - train
        half = experiment.crossing(times, gap, gap[-1] / 2)
        rows.append([1 / rates[:d].mean(), 1 / rates[d : psi_n * d].mean(), half])
    powers = np.polyfit(np.log(sizes), np.log(rows), 1)[0]
    assert abs(powers[0]) < 0.05
    assert 0.95 < powers[1] < 1.05
    assert 0.7 < powers[2] < 1.1


@pytest.fixture(scope="module")
def odd_sizes():
    """17 dimensions of unequal variances, 40 features, 9 training points."""
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.2, 2, 17)
    layer = RandomFeatures(rng.standard_normal((40, 17)), erf, 0.3, spread)
    return FeatureFlow(layer, rng.standard_normal((9, 17)) * np.sqrt(spread))


def test_averages_are_the_closed_forms_of_the_error_function(odd_sizes):
    layer, data = odd_sizes.features, odd_sizes.data
    w = layer.weights / math.sqrt(17)
    covariance = (w * (layer.signal**2 * layer.spread + layer.noise)) @ w.T
    scale = 1 + 2 * np.diag(covariance)
    u, v = layer.population
    closed = 2 / math.pi * np.arcsin(2 * covariance / np.sqrt(np.multiply.outer(scale, scale)))
    np.testing.assert_allclose(u, closed, atol=1e-9)
    slope = 2 / np.sqrt(math.pi * scale)
    np.testing.assert_allclose(v, math.sqrt(layer.noise) * slope[:, None] * w, atol=1e-12)
    u, v = layer.averages(data)
    centre, noise = layer.signal * data @ w.T, layer.noise * w @ w.T
    scale = 1 + 2 * np.diag(noise)
    slope = np.mean(2 / np.sqrt(math.pi * scale) * np.exp(-(centre**2) / scale), axis=0)
    np.testing.assert_allclose(v, math.sqrt(layer.noise) * slope[:, None] * w, atol=1e-12)
    z, weights, _ = hermite(1, 60)
    for i, j in ((0, 1), (3, 39), (5, 5), (20, 7)):
        one = math.sqrt(noise[i, i])
        shared = noise[i, j] / one
        own = math.sqrt(max(noise[j, j] - shared**2, 0))
        inner = erf(centre[:, j, None, None] + shared * z[:, None] + own * z) @ weights
        products = (erf(centre[:, i, None] + one * z) * inner) @ weights
        assert u[i, j] == pytest.approx(products.mean(), abs=1e-9)


@pytest.mark.parametrize("order", [0, 2])
def test_losses_are_the_mean_over_draws(odd_sizes, order):
    """Of the loss itself, by Monte Carlo, for a last layer in the middle of training."""
    layer, rng = odd_sizes.features, np.random.default_rng(5)
    last = odd_sizes.weights(10.0**order)
    num = 60_000
    whole = rng.standard_normal((num, 17)) * np.sqrt(layer.spread)
    own = np.repeat(odd_sizes.data, num // 9, axis=0)
    for exact, data in zip(odd_sizes.losses_of(last), (own, whole), strict=True):
        xi = rng.standard_normal(data.shape)
        x = layer.signal * data + math.sqrt(layer.noise) * xi
        score = layer.features(x) @ last.T / math.sqrt(40)
        losses = np.mean((math.sqrt(layer.noise) * score + xi) ** 2, axis=1)
        assert abs(losses.mean() - exact) < 4 * losses.std() / math.sqrt(len(losses))
        if data is whole:
            true = -x / (layer.signal**2 * layer.spread + layer.noise)
            off = np.mean((score - true) ** 2, axis=1)
            distance = odd_sizes.distance([10.0**order])[0]
            assert abs(off.mean() - distance) < 4 * off.std() / math.sqrt(num)


def test_flow_solves_its_equation(odd_sizes):
    """dA/dtau = -(d^2/2) dL/dA by an adaptive integrator, the slope by differences of the loss."""
    d, p, rng = 17, 40, np.random.default_rng(0)
    layer = odd_sizes.features
    u, v = layer.averages(odd_sizes.data)
    noise = layer.noise

    def slope(_, a):
        a = a.reshape(d, p)
        gradient = 2 * math.sqrt(noise / p) / d * v.T + 2 * noise / (p * d) * a @ u
        return -(d**2) / 2 * gradient.ravel()

    last, way = rng.standard_normal((2, d, p))
    ahead, behind = (odd_sizes.losses_of(last + h * way)[0] for h in (0.5, -0.5))
    assert -np.sum(slope(0, last) * way.ravel()) == pytest.approx(d**2 / 2 * (ahead - behind))
    times = np.array([0.0, 3.0, 30.0, 1000.0])
    found = solve_ivp(
        slope,
        (0, 1000),
        np.zeros(d * p),
        method="LSODA",
        t_eval=times,
        rtol=1e-9,
        atol=1e-10,
    )
    exact = np.array([odd_sizes.weights(tau).ravel() for tau in times])
    np.testing.assert_allclose(found.y.T, exact, atol=1e-6 * np.abs(exact).max())
    curves = np.transpose(odd_sizes.losses(times))
    direct = [odd_sizes.losses_of(each.reshape(d, p)) for each in exact]
    np.testing.assert_allclose(curves, direct, rtol=1e-9)
    np.testing.assert_allclose(curves[0], 1)


def test_early_stopping_is_better_where_points_are_few():
    flow = random_features(24, 240, 36, 0.1)
    times = np.append(np.geomspace(0.1, 1e7, 121), math.inf)
    train, test = flow.losses(times)
    best = int(np.argmin(test))
    assert np.all(np.diff(train) <= 1e-12)
    assert np.all(test > flow.features.best_loss)
    assert 0 < best < 120
    assert np.all(np.diff(test[: best + 1]) < 0)
    assert test[-1] > 1.5 > 1 > test[best]
    # It stops between the times of generalisation and of memorisation.
    rates = flow.rates[::-1]
    assert 0.3 / rates[:24].mean() < times[best] < 1 / rates[24:36].mean()
    assert train[-1] < flow.features.best_loss < test[best]


def test_a_linear_denoiser_is_what_is_learned_first():
    """Many points, features and little training: the distance from the true score nearly closes."""
    flow = random_features(16, 96, 800, 0.5)
    distance = flow.distance(np.geomspace(0.1, 1e3, 41))
    assert distance.min() < 0.1 * distance[0]


def test_what_is_refused():
    with pytest.raises(UserError, match="time must be positive"):
        feature_coefficients(np.tanh, 0.0)
    with pytest.raises(UserError, match="finite number"):
        feature_coefficients(lambda x: np.full_like(x, np.nan), 0.1)
    for activation in (lambda x: 2 * x, lambda x: x**2):
        with pytest.raises(UserError, match="linear part"):
            feature_coefficients(activation, 0.1)
    c = FeatureCoefficients(0.9, 0.6, 0.02, 0.01, 0.0)
    for sizes in ((0, 1), (1, -1), (math.inf, 1), (2, math.nan)):
        with pytest.raises(UserError, match="psi_p = p/d"):
            FeatureSpectrum(c, *sizes)
    with pytest.raises(UserError, match="Im z > 0"):
        FeatureSpectrum(c, 2, 2).stieltjes(np.array([1.0 + 0j]))
    with pytest.raises(UserError, match="more features"):
        _ = FeatureSpectrum(c, 1, 2).overfitting_time
    with pytest.raises(UserError, match="more training points"):
        _ = FeatureSpectrum(c, 4, 1).memorisation_time
    with pytest.raises(UserError, match="2 nodes"):
        FeatureSpectrum(c, 4, 1).quadrature(1)


def test_what_a_flow_refuses(odd_sizes):
    layer = odd_sizes.features
    w = layer.weights
    for weights in (w[0], np.zeros((3, 4)), np.full((2, 2), np.nan)):
        with pytest.raises(UserError, match="finite weights"):
            RandomFeatures(weights)
    with pytest.raises(UserError, match="17 numbers"):
        RandomFeatures(w, variances=np.ones(16))
    with pytest.raises(UserError, match="time must be positive"):
        RandomFeatures(w, time=-1)
    for data in (np.ones(17), np.ones((0, 17)), np.ones((3, 16))):
        with pytest.raises(UserError, match=r"must be \(n, 17\)"):
            layer.averages(data)
    with pytest.raises(UserError, match="must be finite"):
        layer.averages(np.full((1, 17), np.inf))
    with pytest.raises(UserError, match="training times"):
        odd_sizes.losses(np.array([-1.0]))
    with pytest.raises(UserError, match=r"must be \(17, 40\)"):
        odd_sizes.losses_of(np.ones((40, 17)))
    with pytest.raises(UserError, match="at least 1"):
        random_features(3, 0, 2, 0.1)
    with pytest.raises(UserError, match="does not converge"):
        _ = RandomFeatures(np.ones((2, 1)), lambda x: np.tanh(30 * x), 0.1).population


@pytest.mark.usefixtures("rendered")
def test_the_command_writes_what_it_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "PSI_P", 20)
    monkeypatch.setattr(experiment, "TRAINED", (8, 64, 12))
    monkeypatch.setattr(experiment, "CURVE", np.array([2.0, 8.0]))
    monkeypatch.setattr(experiment, "FITTED", np.array([2.0, 8.0]))
    monkeypatch.setattr(experiment, "TRAINING", np.geomspace(1, 1e8, 17))
    words = f"--out {tmp_path} --dimension 8 --trained-until 300".split()
    monkeypatch.setattr(sys, "argv", ["random_features", *words])
    experiment.main()
    assert "Trained network" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["n"] for row in result["networks"]] == [16, 32, 64, 128]
    run = result["trained"]
    np.testing.assert_allclose(run["losses"], run["flow"], rtol=0.05)
    for name in ("spectra", "losses", "times"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
