"""The guided law of two Gaussians: limits, orders, and samples and clones that follow it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from flax import struct
from scipy.integrate import quad, solve_ivp
from scipy.linalg import solve_banded
from scipy.stats import norm

from diffusion_jax.denoisers import (
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    GuidedDenoiser,
    guidance_window,
)
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import guidance as module
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture
from diffusion_jax.regimes.guidance import GuidedMixture
from diffusion_jax.sampling import AncestralSampler, DDIMSampler, DPMSolver2M, sampling_loop
from diffusion_jax.schedule import linear_schedule
from experiments.paper import guidance as experiment

TIMES = np.array([0.0, 0.3, 0.8, 1.4, 2.0, 2.6, 3.4])
QUANTITIES = ("overshoot", "spread", "positive", "phi", "class_entropy")
MIXTURES = [GaussianMixture(16), GaussianMixture(64, 0.5, 0.4), GaussianMixture(9, 1.2, 1.7)]
each_mixture = pytest.mark.parametrize("mixture", MIXTURES, ids=["round", "narrow", "wide"])


def difference(one, other):
    return max(np.abs(getattr(one, q) - getattr(other, q)).max() for q in QUANTITIES)


@each_mixture
@pytest.mark.parametrize("process", ["diffusion", "flow"])
def test_without_guidance_it_is_the_class(mixture, process):
    """w = 0: mean e^-t |m|, variance Gamma, and phi and H of the mixture, by symmetry."""
    law = getattr(GuidedMixture(mixture, 0.0), process)(TIMES)
    np.testing.assert_allclose(law.mean, np.exp(-TIMES) * mixture.centre_norm, atol=1e-9)
    np.testing.assert_allclose(law.variance, mixture.gamma(TIMES), rtol=1e-9)
    np.testing.assert_allclose(law.phi, mixture.phi(TIMES), atol=1e-9)
    np.testing.assert_allclose(law.positive, mixture.phi_overlap(TIMES), atol=1e-9)
    np.testing.assert_allclose(law.class_entropy, mixture.class_entropy(TIMES), atol=1e-9)


@each_mixture
@pytest.mark.parametrize("process", ["diffusion", "flow"])
def test_unconditional_it_is_the_whole_mixture(mixture, process):
    """w = -1: symmetric, of variance Gamma + e^-2t |m|^2, and phi and H of the mixture.

    The step's error is 3e-4 of |m|; a node of the flow, between the classes, weighs 1.8e-3.
    """
    law = getattr(GuidedMixture(mixture, -1), process)(TIMES)
    scale = mixture.centre_norm
    np.testing.assert_allclose(law.mean, 0, atol=2e-3 * scale)
    expected = mixture.gamma(TIMES) + (np.exp(-TIMES) * scale) ** 2
    np.testing.assert_allclose(law.variance, expected, rtol=2e-3)
    np.testing.assert_allclose(law.positive, 0.5, atol=1e-3)
    np.testing.assert_allclose(law.phi, mixture.phi(TIMES), atol=2e-3)
    np.testing.assert_allclose(law.class_entropy, mixture.class_entropy(TIMES), atol=2e-3)


@pytest.mark.parametrize("w", [-1.7, 8.0])
def test_orders_of_convergence(w):
    """Strang's splitting: halving its step takes a quarter of the error. Runge-Kutta: a 16th."""
    guided, times = GuidedMixture(GaussianMixture(16), w), np.array([0.0, 0.9, 1.6, 3.0])
    for process, order, largest in (("diffusion", 2, 0.16), ("flow", 4, 0.02)):
        # What the fine one lacks is 1/64 of the first error, or less.
        coarse, half, fine = (getattr(guided, process)(times, step=largest / n) for n in (1, 2, 8))
        errors = difference(coarse, fine), difference(half, fine)
        assert errors[0] / errors[1] > 0.75 * 2**order, (process, errors)
        if process == "diffusion":  # whose default is the fine one
            bound = 1e-3 if w > 0 else 3e-3
            assert errors[1] / 16 < bound * max(1, np.sqrt(fine.spread.max()))
        else:
            assert errors[1] < 1e-6  # at the default


def test_the_nodes_are_dense_enough(monkeypatch):
    """Twice as many change nothing that the step's error would not hide a thousandfold."""
    mixture, schedule = GaussianMixture(16), linear_schedule(40)

    def found():
        guided = [GuidedMixture(mixture, w) for w in (-1.3, 4.0)]
        laws = [each.diffusion(TIMES[::3], step=0.04) for each in guided]
        return laws + [each.ancestral(schedule) for each in guided]

    before = found()
    monkeypatch.setattr(module, "_NODES_PER_WIDTH", 6.0)
    for one, other in zip(before, found(), strict=True):
        assert difference(one, other) < 1e-7 * max(1, np.abs(other.spread).max())


def test_one_law_for_all_dimensions():
    """At equal separation the law is the same, whatever d, mu and sigma are."""
    for w in (-1.5, 2.0):
        for process in ("diffusion", "flow"):
            rows = []
            for mixture in MIXTURES:
                s = np.array([0.1, 1.0, 2.0, 4.0])  # all of them reach s = 4
                times = 0.5 * np.log(mixture.centre_norm**2 / s + 1 - mixture.sigma**2)
                law = getattr(GuidedMixture(mixture, w), process)(times)
                np.testing.assert_allclose(mixture.separation(law.times)[::-1], s)
                rows.append(np.array([getattr(law, q)[::-1] for q in QUANTITIES]))
            np.testing.assert_allclose(rows[1], rows[0], atol=2e-4)
            np.testing.assert_allclose(rows[2], rows[0], atol=2e-4)


def test_high_dimension_forgets_in_the_diffusion_and_not_in_the_flow():
    """Overshoot C/sqrt(s_0) and variance lost K/s_0 in the first; constants in the second."""
    dimensions = np.array([36, 400])
    for w in (0.5, 4.0):
        laws = [
            GuidedMixture(GaussianMixture(int(d)), w).diffusion(np.zeros(1)) for d in dimensions
        ]
        shift = np.array([law.overshoot[0] for law in laws]) * np.sqrt(dimensions)
        loss = (1 - np.array([law.spread[0] for law in laws])) * dimensions
        assert shift[0] > 0.4
        assert loss[0] > 0.5
        np.testing.assert_allclose(shift, shift[0], rtol=2e-3)
        np.testing.assert_allclose(loss, loss[0], rtol=2e-3)
        flows = [GuidedMixture(GaussianMixture(int(d)), w).flow(np.zeros(1)) for d in dimensions]
        assert flows[0].overshoot[0] > 0.3
        assert flows[0].spread[0] < 0.7
        assert difference(flows[0], flows[-1]) < 1e-3


@pytest.mark.parametrize("mixture", MIXTURES[:2], ids=["round", "narrow"])
def test_a_little_guidance_by_perturbation(mixture):
    """To first order in w the diffusion's sqrt(s) E u is 2 w I(c; x_t), the flow's an integral."""
    w = 1e-3
    root = np.sqrt(mixture.separation(TIMES))
    law = GuidedMixture(mixture, w).diffusion(TIMES)
    expected = 2 * mixture.class_information(TIMES)
    np.testing.assert_allclose(law.overshoot * root / w, expected, atol=3e-3)
    flow = GuidedMixture(mixture, w).flow(TIMES)
    x, weights = np.polynomial.hermite_e.hermegauss(120)

    def unsure(r):  # 1 - E tanh(s + sqrt(s) z)
        return 1 - weights @ np.tanh(r * r + r * x) / weights.sum()

    shift = [quad(unsure, 0, r)[0] for r in root]
    np.testing.assert_allclose(flow.overshoot / w, shift, atol=3e-3)


def test_the_flow_is_a_rising_map_that_an_ode_solver_finds():
    """Paths by scipy in x and t, from the data's own start: quantiles, mean and variance."""
    mixture, w, end = GaussianMixture(25, 0.8, 0.6), 2.5, 6.0
    m = mixture.centre_norm

    def drift(t, q):
        gamma, signal = mixture.gamma(t), math.exp(-t)
        tilt = 1 - np.tanh(signal * m * q / gamma)
        return -(q + (signal * m - q) / gamma + w * signal * m / gamma * tilt)

    z, weights = np.polynomial.hermite_e.hermegauss(60)
    path = solve_ivp(drift, (end, 0), z, t_eval=[1.5, 0.0], rtol=1e-9, atol=1e-10).y
    assert (np.diff(path, axis=0) > 0).all()
    law = GuidedMixture(mixture, w).flow(np.array([0.0, 1.5]), start=end)
    mean = weights @ path / weights.sum()
    variance = weights @ (path - mean) ** 2 / weights.sum()
    np.testing.assert_allclose(law.mean[::-1], mean, atol=1e-5)
    np.testing.assert_allclose(law.variance[::-1], variance, rtol=1e-4)


def test_the_density_obeys_the_fokker_planck_equation():
    """An implicit scheme in x and t, on a fine grid, from the law of the class."""
    mixture, w = GaussianMixture(4, 1.0, 0.8), 3.0
    m, start, end, steps = mixture.centre_norm, 4.0, 0.2, 1200
    x = np.linspace(-6, 8, 1401)
    h, dt = x[1] - x[0], (start - end) / steps
    density = norm.pdf(x, m * math.exp(-start), math.sqrt(mixture.gamma(start)))
    faces = (x[1:] + x[:-1]) / 2
    for i in range(steps):
        t = start - (i + 0.5) * dt
        gamma, signal = float(mixture.gamma(t)), math.exp(-t)
        tilt = 1 - np.tanh(signal * m * faces / gamma)
        score = (signal * m - faces) / gamma + w * signal * m / gamma * tilt
        drift = faces + 2 * score
        left, right = drift / 2 + 1 / h, drift / 2 - 1 / h  # of the flux through a face
        main = np.zeros(len(x))
        main[:-1] -= left / h
        main[1:] += right / h
        upper, lower = -right / h, left / h
        product = main * density
        product[:-1] += upper * density[1:]
        product[1:] += lower * density[:-1]
        bands = np.zeros((3, len(x)))
        bands[0, 1:], bands[1], bands[2, :-1] = -dt / 2 * upper, 1 - dt / 2 * main, -dt / 2 * lower
        density = solve_banded((1, 1), bands, density + dt / 2 * product)
    mass = density / density.sum()
    mean = mass @ x
    # The class's law is not the guided one at the start: what it lacks is forgotten but for this.
    missing = w * math.sqrt(float(mixture.separation(start)) / float(mixture.separation(end)))
    law = GuidedMixture(mixture, guidance_window(w, 0, start)).diffusion(np.array([end]))
    assert missing < 0.1
    assert law.mean[0] == pytest.approx(mean, abs=1e-3)
    assert law.variance[0] == pytest.approx(mass @ (x - mean) ** 2, abs=2e-3)
    v = math.exp(-end) * m * x / float(mixture.gamma(end))
    assert law.phi[0] == pytest.approx(mass @ (0.5 * (1 + np.tanh(v) ** 2)), abs=1e-4)


def test_windows_below_speciation_change_little_and_away_goes_beyond():
    mixture = GaussianMixture(64)
    t_S = mixture.speciation_time
    late = GuidedMixture(mixture, guidance_window(4.0, 0, t_S - 1))
    for process in ("diffusion", "flow"):
        law = getattr(late, process)(np.array([0.0, 1.0]))
        assert 0 < law.overshoot[0] < 5e-3
        assert abs(law.spread[0] - 1) < 0.025
        everywhere = getattr(GuidedMixture(mixture, 4.0), process)(np.array([0.0]))
        assert law.overshoot[0] < everywhere.overshoot[0] / 20
    # Away from the class: the class - is left on its far side, for (1 + 2 w) m, to 1/d.
    for d in (16, 64):
        away = GuidedMixture(GaussianMixture(d), -3.0).diffusion(np.zeros(1))
        share = away.positive[0]
        assert share == pytest.approx(0.031, abs=0.002)  # what had parted towards the class
        expected = share - 5 * (1 - share)
        assert away.mean[0] / math.sqrt(d) == pytest.approx(expected, abs=20 / d)
    # A negative window gives back the variance that guidance took.
    taken, given = (
        GuidedMixture(mixture, guidance_window(4.0, t_S, np.inf, w)).diffusion(np.zeros(1))
        for w in (0.0, -0.25)
    )
    assert 1 - taken.spread[0] > 5 * abs(1 - given.spread[0])


def test_speciation_times():
    times = np.linspace(0.0, 5, 51)
    for mixture in MIXTURES[:2]:
        shifts = []
        for w in (0.0, 4.0):
            t_S = GuidedMixture(mixture, w).diffusion(times).speciation_time
            grown = np.exp(2 * t_S) - 1 + mixture.sigma**2
            shifts.append(0.5 * math.log(grown / mixture.centre_norm**2))
        assert abs(shifts[0]) < 2e-3  # s = 1
        assert shifts[1] == pytest.approx(0.563, abs=0.004)  # the same for both
    late = GuidedMixture(MIXTURES[0], 0.0).diffusion(np.linspace(0, 0.5, 9))
    assert math.isnan(late.speciation_time)


SCHEDULE = linear_schedule(60)
RUN = quick_jit(sampling_loop)


def pair(mixture, direction, schedule=SCHEDULE):
    centre = jnp.asarray(direction * mixture.centre_norm, jnp.float32)
    nothing = jnp.zeros((0, len(direction))), jnp.zeros(0)
    sigma = jnp.float32(mixture.sigma)
    own = GaussianDenoiser(schedule, centre, *nothing, sigma**2)
    return own, GaussianMixtureDenoiser(schedule, centre, sigma)


def standard_errors(u, v, law, at):
    """How far samples are from theory, of mean, variance, phi and H."""
    odds = np.abs(2 * v)
    values = {
        "overshoot": u,
        "spread": (u - u.mean()) ** 2,
        "phi": 0.5 * (1 + np.tanh(v) ** 2),
        "class_entropy": np.log1p(np.exp(-odds)) + odds / (1 + np.exp(odds)),
    }
    return [
        (x.mean() - getattr(law, name)[at]) / (x.std() / math.sqrt(len(x)))
        for name, x in values.items()
    ]


DIMENSIONS = {1: 8000, 24: 1600}
WEIGHTS = (-1.0, 2.0, 8.0)
STOPS = (42, 30, 0)


@pytest.fixture(scope="module")
def runs():
    """Guided projections with 42 and 30 steps to go and at the end, by d, w and steps."""
    mixture, found = GaussianMixture(24, 0.9, 0.8), {}
    for d, num in DIMENSIONS.items():
        rng = np.random.default_rng(d)
        direction = np.ones(1) if d == 1 else rng.standard_normal(d)
        direction /= np.linalg.norm(direction)
        own, both = pair(mixture, direction)
        noise = jnp.asarray(rng.standard_normal((num, d)), jnp.float32)
        keys = jax.random.split(jax.random.key(d), num)
        for w in WEIGHTS:
            x, at = noise, SCHEDULE.num_steps
            for b in STOPS:
                x = RUN(AncestralSampler(SCHEDULE), GuidedDenoiser(own, both, w), x, keys, at, b)
                found[d, w, b] = np.asarray(x, np.float64) @ direction
                at = b
                if (d, w, b) == (24, 2.0, 30):
                    found["state"] = x, keys, both, direction
    return mixture, found


def test_samples_follow_the_samplers_exact_law(runs):
    """In 24 dimensions and in one, at each w and time, within 4 standard errors."""
    mixture, found = runs
    for w in WEIGHTS:
        law = GuidedMixture(mixture, w).ancestral(SCHEDULE)
        for d in DIMENSIONS:
            for b in STOPS:
                q, t = found[d, w, b], law.times[b]
                gamma, signal = float(mixture.gamma(t)), math.exp(-t) * mixture.centre_norm
                u, v = (q - signal) / math.sqrt(gamma), signal * q / gamma
                off = standard_errors(u, v, law, b)
                # At the end phi and H are of rare events.
                assert np.abs(off if b else off[:2]).max() < 4, (d, w, b, off)
    # And the chain's law tends to that of the continuous process, in first order of its steps.
    guided, end = GuidedMixture(mixture, 2.0), float(SCHEDULE.time[-1])
    exact = guided.diffusion(np.zeros(1), start=end)
    coarse, fine = (guided.ancestral(linear_schedule(n)) for n in (60, 120))
    errors = [law.overshoot[0] - exact.overshoot[0] for law in (coarse, fine)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.4)


def test_guidance_that_is_wrong_by_a_little_is_seen(runs):
    """Samples of w = 2 are not those of the law of w = 1.6 or 2.5."""
    mixture, found = runs
    for w in (1.6, 2.5):
        law = GuidedMixture(mixture, w).ancestral(SCHEDULE)
        t = law.times[30]
        gamma, signal = float(mixture.gamma(t)), math.exp(-t) * mixture.centre_norm
        u = (found[1, 2.0, 30] - signal) / math.sqrt(gamma)
        off = (u.mean() - law.overshoot[30]) / (u.std() / math.sqrt(len(u)))
        assert abs(off) > 5


def test_unguided_clones_of_guided_states_agree_as_phi_says(runs):
    """Two clones each, which go on unguided by the project's own sampler."""
    mixture, found = runs
    x, keys, both, direction = found["state"]
    sides = []
    for clone in (1, 2):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, clone)
        end = RUN(AncestralSampler(SCHEDULE), both, x, own, 30, 0)
        sides.append(np.asarray(end) @ direction > 0)
    law = GuidedMixture(mixture, 2.0).ancestral(SCHEDULE)
    for observed, expected in (
        (sides[0] == sides[1], law.phi[30]),
        (sides[0], law.positive[30]),
    ):
        error = math.sqrt(expected * (1 - expected) / len(x))
        # The clones' own steps are biased too, by less than a hundredth.
        assert abs(observed.mean() - expected) < 4 * error + 0.01
    assert 0.6 < law.phi[30] < 0.95


@struct.dataclass
class Wrong:
    """A score times a factor, as a network may have it."""

    denoiser: Any
    factor: jax.Array

    def __call__(self, x, step):
        return self.factor * self.denoiser(x, step)


def test_samplers_without_noise_follow_the_flow():
    """DDIM in first order, DPM-Solver++(2M) better, from their start; with a score 2 % off, nearly.

    That the ends then move by up to a twentieth of |m| is what factors of 1.02 do to the flow
    without guidance, too.
    """
    mixture, w = GaussianMixture(24, 0.9, 0.8), 2.0
    schedule = linear_schedule(100)
    own, both = pair(mixture, np.ones(1), schedule)
    z = np.linspace(-5, 5, 801)
    weights = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    law = GuidedMixture(mixture, w).flow(np.zeros(1), start=float(schedule.time[-1]))
    x, keys = jnp.asarray(z, jnp.float32)[:, None], jax.random.split(jax.random.key(0), len(z))
    cases = ((DDIMSampler, 1.0, 0.05), (DPMSolver2M, 1.0, 0.012), (DPMSolver2M, 1.02, 0.3))
    for kind, factor, bound in cases:
        pairs = [Wrong(each, jnp.float32(factor)) for each in (own, both)]
        end = np.asarray(RUN(kind(schedule), GuidedDenoiser(*pairs, w), x, keys), np.float64)[:, 0]
        mean = weights @ end
        spread = weights @ (end - mean) ** 2 / mixture.sigma**2
        bias = abs(mean - law.mean[0]) / mixture.sigma, abs(spread - law.spread[0])
        assert max(bias) < bound, (kind, factor, bias)
        assert factor == 1 or max(bias) > 0.012


def test_what_is_refused():
    guided = GuidedMixture(GaussianMixture(4), 1.0)
    for times in ([], [-1.0], [np.nan], [2.0, np.inf]):
        with pytest.raises(
            UserError, match="guided laws are asked for at times from 0 to the start"
        ):
            guided.diffusion(np.array(times))
    with pytest.raises(UserError, match="to the start, 2, not at"):
        guided.flow(np.array([2.5]), start=2.0)
    for step in (0.0, -1.0, np.nan, 1.0):
        with pytest.raises(UserError, match="step of a guided law must lie between 0 and 1"):
            guided.flow(np.zeros(1), step=step)
    for weight, match in ((np.nan, "weight is nan"), (lambda t: np.nan, "at t = .* is nan")):
        bad = GuidedMixture(GaussianMixture(4), weight)
        for ask in (lambda g: g.flow(np.ones(1)), lambda g: g.ancestral(SCHEDULE)):
            with pytest.raises(UserError, match=match), np.errstate(all="ignore"):
                ask(bad)


def test_the_command_names_what_leaves_theory(monkeypatch, capsys):
    monkeypatch.setattr(experiment, "DIMENSIONS", (16,))
    law = GuidedMixture(GaussianMixture(16), 2.0).ancestral(SCHEDULE)
    at = np.array([42, 30, 0])
    found = {"t": law.times[at]}
    for name in ("overshoot", "spread", "phi", "class_entropy"):
        found[name] = np.stack([getattr(law, name)[at], np.full(3, 0.01)], axis=1)
    row = {"overshoot": [0.2], "spread": [0.9], "t_S": 0.3}
    against = {"diffusion": [row], "flow": [row]}
    rows = []
    for shift in (0.0, 0.039, -0.041):
        off = found | {"overshoot": found["overshoot"] + np.array([[shift, 0]])}
        deviations = experiment.deviations(off, law)
        np.testing.assert_allclose(deviations["overshoot"], 100 * shift, atol=1e-9)
        assert np.isnan(deviations["phi"][2])  # no clone parts from the other there
        rows.append({"d": 16, "w": 2.0, "of": "samples", "deviations": deviations})
    broken = experiment.report({"against": {"w": [2.0], **against}}, rows)
    assert broken == ["samples, d = 16, w = 2.0: 4.10 standard errors from theory"]
    assert "guidance_scale - 1 elsewhere" in capsys.readouterr().out
