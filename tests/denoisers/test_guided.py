"""Classifier-free guidance of pairs of denoisers: its formula, its weights, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from flax import struct
from hypothesis import given
from hypothesis import strategies as st
from weights import random_params

from diffusion_jax.denoisers import (
    ClippedDenoiser,
    EmpiricalDenoiser,
    GaussianClassesDenoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    GuidedDenoiser,
    TrainedDenoiser,
    guidance_window,
    require_steps,
)
from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import UNet
from diffusion_jax.process import noise_to_score
from diffusion_jax.regimes import cloning
from diffusion_jax.sampling import AncestralSampler, DDIMSampler, sample, sampling_loop
from diffusion_jax.sampling.likelihood import basis_probes, image_bits, log_likelihood
from diffusion_jax.sampling.respacing import RespacedDenoiser, respaced
from diffusion_jax.schedule import from_time

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

KEY = jax.random.key(0)
CALL = quick_jit(lambda denoiser, x, step: denoiser(x, step))
SHAPE = (3, 2, 1)


def schedule_of(num_steps=20):
    return from_time(np.linspace(0.05, 2, num_steps))


SCHEDULE = schedule_of()
RNG = np.random.default_rng(0)
POINTS = RNG.normal(0, 0.5, (12, *SHAPE))
LABELS = np.arange(12) % 3 == 0


def exact_pair(dtype=jnp.float32, schedule=SCHEDULE):
    """The exact scores of one class and of all points."""
    sets = (POINTS[LABELS], POINTS)
    return [EmpiricalDenoiser(schedule, jnp.asarray(points, dtype)) for points in sets]


def gaussian_pair(dtype=jnp.float64, schedule=SCHEDULE):
    """Of Gaussians in float64 with a floor, so that no direction has variance zero."""
    return [
        GaussianDenoiser.fit(schedule, POINTS[LABELS], None, 0.1),
        GaussianClassesDenoiser.fit(schedule, POINTS, LABELS.astype(int), None, 0.1),
    ]


def draw(count=5, dtype=jnp.float32):
    x = np.random.default_rng(1).standard_normal((count, *SHAPE))
    return jnp.asarray(x, dtype), jnp.arange(count) * 4 % 20


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_its_formula_and_its_fixed_points_to_the_bit(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        own, other = exact_pair(dtype, schedule_of())
        x, step = draw(dtype=dtype)
        parts = own(x, step), other(x, step)
        for w in (0.0, -1, 0.7, np.float32(3), -2.5):
            noise = GuidedDenoiser(own, other, w)(x, step)
            assert noise.dtype == dtype
            expected = (1 + float(w)) * np.asarray(parts[0]) - float(w) * np.asarray(parts[1])
            np.testing.assert_allclose(noise, expected, rtol=0, atol=40 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(GuidedDenoiser(own, other, 0.0)(x, step), parts[0])
        np.testing.assert_array_equal(GuidedDenoiser(own, other, -1)(x, step), parts[1])


@pytest.mark.parametrize("pair", [exact_pair, gaussian_pair], ids=["exact", "Gaussian"])
def test_it_adds_the_gradient_of_the_class_probability(pair):
    """score_w = score + (1 + w) grad log p(c | x_t), with p(c | x) by the denoisers' own forms."""
    with jax.enable_x64(True):
        own, other = pair(jnp.float64, schedule_of())
        x, step = draw(dtype=jnp.float64)

        def log_class(y, s):
            batch, steps = y[None], s[None]
            if pair is gaussian_pair:
                return other.class_log_probability(batch, steps)[0, 1]
            return jax.nn.logsumexp(other.posterior(batch, steps)[0][np.flatnonzero(LABELS)])

        pull = quick_jit(jax.vmap(jax.grad(log_class)))(x, step)
        for w in (1.5, -2.0):
            guided = GuidedDenoiser(own, other, w)
            score = noise_to_score(guided.conditional.schedule, guided(x, step), step)
            plain = noise_to_score(guided.conditional.schedule, other(x, step), step)
            np.testing.assert_allclose(score, plain + (1 + w) * pull, rtol=1e-7, atol=1e-9)


@given(st.floats(-3, 9), st.floats(0, 2.5), st.floats(0.01, 2), st.floats(-3, 9))
def test_windows_are_functions_that_add_up(weight, low, width, outside):
    window = guidance_window(weight, low, low + width, outside)
    times = np.linspace(0, 5, 401)
    inside = (times >= low) & (times <= low + width)
    np.testing.assert_array_equal(window(times), np.where(inside, weight, outside))
    assert float(window(low)) == weight
    both = window + guidance_window(1.0, 0.5, 1.5) + (lambda t: 0 * t + 0.25)
    expected = window(times) + ((times >= 0.5) & (times <= 1.5)) + 0.25
    np.testing.assert_array_equal(both(times), expected)


def test_a_function_of_time_is_tabulated_on_the_schedule_once():
    own, other = exact_pair()
    asked = []

    def rising(t):  # of one number alone
        asked.append(float(t))
        return 2.0 if t > 1 else 0.0

    x, step = draw(20)
    step = jnp.arange(20)
    guided = GuidedDenoiser(own, other, rising)
    times = np.asarray(SCHEDULE.time, np.float64)
    np.testing.assert_array_equal(asked, times)
    expected = np.where(times > 1, 2.0, 0.0)
    np.testing.assert_array_equal(guided.weight, expected.astype(np.float32))
    noise = guided(x, step)
    assert len(asked) == 20
    for w in (0.0, 2.0):
        at = expected == w
        plain = GuidedDenoiser(own, other, w)(x, step)
        np.testing.assert_array_equal(noise[at], plain[at])
    # Vectorised, of JAX, a window, and a table are the same thing.
    kinds = [
        lambda t: np.where(t > 1, 2.0, 0),
        lambda t: jnp.where(t > 1, 2, 0),
        guidance_window(2, np.nextafter(1, 2), np.inf),
        expected,
        jnp.asarray(expected),
    ]
    for same in kinds:
        np.testing.assert_array_equal(GuidedDenoiser(own, other, same).weight, guided.weight)

    def without(x, step):
        return x

    given = GuidedDenoiser(without, without, rising, SCHEDULE)
    assert given.num_steps == 20
    np.testing.assert_array_equal(given.weight, guided.weight)
    assert GuidedDenoiser(without, without, 1.0).num_steps is None


def test_other_weights_are_not_compiled_again():
    pair, (x, step) = exact_pair(), draw()
    traced = []

    @quick_jit
    def run(denoiser, x, step):
        traced.append(None)
        return denoiser(x, step)

    for weights in (
        [0, 1.5, -2, np.float64(3), jnp.float32(1)],
        [np.sin, guidance_window(1, 0, 1)],
    ):
        traced.clear()
        for weight in weights:
            guided = GuidedDenoiser(*pair, weight)
            np.testing.assert_allclose(run(guided, x, step), guided(x, step), atol=1e-5)
        assert len(traced) == 1
    made = quick_jit(lambda w: GuidedDenoiser(*pair, w)(x, step))(jnp.float32(0.5))  # within, too
    np.testing.assert_allclose(made, GuidedDenoiser(*pair, 0.5)(x, step), atol=1e-5)


def test_derivatives_are_those_of_the_formula():
    """Forwards and backwards, and in the weight."""
    own, other = exact_pair()
    x, step = draw()
    v = draw()[0][::-1]
    guided = GuidedDenoiser(own, other, 1.5)

    def products(denoiser):
        _, forward = jax.jvp(lambda y: denoiser(y, step), (x,), (v,))
        _, pullback = jax.vjp(lambda y: denoiser(y, step), x)
        return forward, pullback(v)[0]

    rows = quick_jit(lambda each: [products(one) for one in each])((guided, own, other))
    for whole, one, two in zip(*rows, strict=True):
        np.testing.assert_allclose(whole, 2.5 * one - 1.5 * two, atol=2e-5)
    slope = jax.jacfwd(lambda w: GuidedDenoiser(own, other, w)(x, step))(jnp.float32(1))
    np.testing.assert_allclose(slope, own(x, step) - other(x, step), atol=1e-6)


@struct.dataclass
class Shaped:
    """Noise of a shape of its own."""

    size: jax.Array

    def __call__(self, x, step):
        return jnp.broadcast_to(self.size, (len(x), *self.size.shape))


def test_respaced_its_weights_are_those_of_the_original_steps():
    guided = GuidedDenoiser(*exact_pair(), lambda t: t**2)
    steps = np.array([2, 9, 19])
    few = RespacedDenoiser(guided, jnp.asarray(steps, jnp.int32))
    x, _ = draw(3)
    np.testing.assert_array_equal(few(x, jnp.arange(3)), guided(x, jnp.asarray(steps)))
    # And of respaced denoisers, with the schedule of their own steps, it is the same.
    schedule = respaced(SCHEDULE, steps)
    pair = [RespacedDenoiser(each, jnp.asarray(steps, jnp.int32)) for each in exact_pair()]
    inner = GuidedDenoiser(*pair, lambda t: t**2, schedule)
    np.testing.assert_allclose(inner(x, jnp.arange(3)), few(x, jnp.arange(3)), atol=1e-5)
    bounded = ClippedDenoiser(guided, SCHEDULE, jnp.float32(-0.1), jnp.float32(0.1))
    data = (
        bounded(x, jnp.asarray(steps))
        * jnp.sqrt(SCHEDULE.noise_variance[steps])[:, None, None, None]
    )
    signal = jnp.sqrt(SCHEDULE.alpha_bar[steps])[:, None, None, None]
    assert np.abs((x - data) / signal).max() < 0.1 + 1e-5


def test_samplers_forks_u_turns_and_likelihood_take_it():
    """With w = 0 they do what they do with the conditional denoiser itself, on 8 devices."""
    own, other = exact_pair()
    sampler, few = AncestralSampler(SCHEDULE), from_time(np.asarray(SCHEDULE.time[:3]))
    images = RNG.integers(0, 256, (3, *SHAPE), np.uint8)

    def found(denoiser):
        yield sample(sampler, denoiser, KEY, 9, SHAPE)
        yield cloning.fork(sampler, denoiser, KEY, [15, 5], SHAPE, 0, 8).clones
        yield cloning.u_turns(sampler, denoiser, KEY, [10], POINTS[:3].astype(np.float32))
        yield image_bits(denoiser, few, images, np.full(1, 0.5), KEY)

    for one, two in zip(found(GuidedDenoiser(own, other, 0.0)), found(own), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)

    # Further towards its class it ends there, far from it does not.
    def ends(w):
        x = sample(sampler, GuidedDenoiser(own, other, w), KEY, 24, SHAPE)
        distance = ((x[:, None] - POINTS[None]) ** 2).sum((2, 3, 4))
        return LABELS[distance.argmin(1)].mean(), np.sqrt(distance.min(1)).max()

    assert ends(2.0)[0] == ends(0.0)[0] == 1
    assert 0 < ends(-1.0)[0] < 1
    assert ends(-2.0)[0] == 0


def test_its_likelihood_between_is_exact_for_gaussians_of_one_covariance():
    """Of N(m_c, f) and N(m_u, f), guided is N(m_c + w (m_c - m_u), f): a Gaussian's density."""
    schedule = from_time(np.linspace(0.05, 3, 12))
    means = np.array([[0.3, -0.2], [-0.1, 0.4]])
    nothing = jnp.zeros((0, 2)), jnp.zeros(0), jnp.asarray(0.5)
    pair = [GaussianDenoiser(schedule, jnp.asarray(m, jnp.float32), *nothing) for m in means]
    moved = GaussianDenoiser(
        schedule, jnp.asarray(means[0] + 1.5 * (means[0] - means[1]), jnp.float32), *nothing
    )
    x = jnp.asarray(np.random.default_rng(3).standard_normal((4, 2)), jnp.float32)
    probes = basis_probes(4, (2,))
    one, two = (
        log_likelihood(denoiser, schedule, x, probes)[0]
        for denoiser in (GuidedDenoiser(*pair, 1.5), moved)
    )
    np.testing.assert_allclose(one, two, atol=1e-4)
    run = quick_jit(partial(sampling_loop, DDIMSampler(schedule), keys=jax.random.split(KEY, 4)))
    ends = run(GuidedDenoiser(*pair, 1.5), x)
    np.testing.assert_allclose(ends, run(moved, x), atol=1e-5)


def test_networks_are_guided_too():
    """Two of random weights, and one by a closed form of fewer steps than the network knows."""
    model = UNet(1, 16, (1,), attention_levels=(), num_res_blocks=1, dropout=0.0)
    shape = (4, 4, 1)
    nets = [TrainedDenoiser(random_params(model, shape, seed), model) for seed in (0, 1)]
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, *shape)), jnp.float32)
    step = jnp.array([3, 11])
    one, two = (CALL(net, x, step) for net in nets)
    guided = GuidedDenoiser(*nets, guidance_window(2.0, 1.0, 5.0, -1.0), SCHEDULE)
    assert np.abs(one - two).max() > 0.01
    found = CALL(guided, x, step)
    np.testing.assert_allclose(found[1], 3 * one[1] - 2 * two[1], atol=1e-5)
    np.testing.assert_allclose(found[0], two[0], atol=1e-6)
    assert GuidedDenoiser(*nets, 1.0).num_steps == nets[0].num_steps > 20
    points = jnp.asarray(np.random.default_rng(3).standard_normal((5, *shape)), jnp.float32)
    mixed = GuidedDenoiser(nets[0], EmpiricalDenoiser(SCHEDULE, points), 1.0)
    assert mixed.num_steps == 20
    with pytest.raises(UserError, match=r"knows the steps 0\.\.19 alone"):
        require_steps(mixed, 21)


def test_what_is_refused_in_a_sentence():
    own, other = exact_pair()

    def refused(match, weight=1.0, pair=(own, other), schedule=None):
        with pytest.raises(UserError, match=match) as raised:
            GuidedDenoiser(*pair, weight, schedule)
        assert "\n" not in str(raised.value)

    for wrong in (np.nan, np.inf, np.array(-np.inf), jnp.float32(np.nan)):
        refused("the guidance weight is -?(nan|inf): give finite weights", wrong)
    first = float(SCHEDULE.time[0])
    refused(r"weight at t = 0\.05 is inf", lambda t: np.inf if t == first else 1.0)
    refused(r"weight at step 3 is nan", np.where(np.arange(20) == 3, np.nan, 1.0))
    for wrong in ("1", None, [1.0, 2.0], 1j):
        refused("is a number or a function of time, not", wrong)
    refused("weights of type complex64", jnp.complex64(1))
    refused(r"at t = 0\.05 is no number but of shape \(2,\)", lambda t: np.ones(2))
    refused(r"at t = 0\.05 is no number but of shape \(\) and type <U1", lambda t: "1")
    for wrong in (np.ones(19), jnp.ones((20, 1)), np.ones(1)):
        refused(r"weights of shape .*: give one number, or one per step, \(20,\)", wrong)
    refused("function of time needs a schedule", np.sin, [lambda x, step: x] * 2)
    longer = exact_pair(schedule=schedule_of(30))[1]
    shifted = exact_pair(schedule=from_time(np.linspace(0.06, 2, 20)))[1]
    refused(r"different schedules \(20 and 30 steps\)", pair=(own, longer))
    refused(r"different schedules \(20 and 20 steps\)", pair=(own, shifted))
    refused(r"different schedules \(30 and 20 and 20 steps\)", schedule=schedule_of(30))
    few = [RespacedDenoiser(each, jnp.arange(0, 20, 4)) for each in (own, other)]
    refused(r"has 20 steps, but the denoiser knows the steps 0\.\.4", np.sin, few, SCHEDULE)
    for wrong in (
        (np.nan, 0, 1, 0),
        (1, 1, 0, 0),
        (1, 0, np.nan, 0),
        (1, -2, -1, 0),
        (1, 0, 1, np.inf),
    ):
        with pytest.raises(UserError, match="a guidance window needs finite weights and"):
            guidance_window(*wrong)
    x, step = draw()
    for shapes in (((3, 2, 1), (3, 2, 2)), ((2,), (2,))):
        pair = [Shaped(jnp.zeros(shape)) for shape in shapes]
        with pytest.raises(UserError, match="take two denoisers of the same data"):
            GuidedDenoiser(*pair, 1.0)(x, step)


def test_the_mixtures_class_is_a_gaussian_with_a_floor():
    """Its guided score is the module's formula of `regimes.guidance`, in d dimensions."""
    m, sigma, w = np.random.default_rng(4).standard_normal(6), 0.7, 1.7
    with jax.enable_x64(True):
        schedule = schedule_of()
        nothing = jnp.zeros((0, 6)), jnp.zeros(0)
        own = GaussianDenoiser(schedule, jnp.asarray(m), *nothing, jnp.asarray(sigma**2))
        both = GaussianMixtureDenoiser(schedule, jnp.asarray(m), jnp.asarray(sigma))
        x = jnp.asarray(np.random.default_rng(5).standard_normal((5, 6)))
        step = jnp.array([0, 4, 9, 14, 19])
        score = noise_to_score(schedule, GuidedDenoiser(own, both, w)(x, step), step)
        t = np.asarray(schedule.time)[np.asarray(step)]
        gamma = (1 - np.exp(-2 * t) + sigma**2 * np.exp(-2 * t))[:, None]
        signal, x = np.exp(-t)[:, None], np.asarray(x)
        tilt = 1 - np.tanh(signal * (x @ m)[:, None] / gamma)
        expected = (signal * m - x) / gamma + w * signal * m / gamma * tilt
        np.testing.assert_allclose(score, expected, rtol=1e-9)
