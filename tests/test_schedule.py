from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.schedule import (
    constant_schedule,
    cosine_schedule,
    from_beta,
    from_time,
    linear_schedule,
)

EPS = np.finfo(np.float32).eps


@pytest.mark.parametrize("num_steps", [1000, 250, 50])
def test_linear_schedule_is_the_original_to_float32_rounding(num_steps):
    reference = np.load(Path(__file__).parent / "reference" / "schedule.npz")
    schedule = linear_schedule(num_steps)
    np.testing.assert_allclose(schedule.beta, reference[f"beta_{num_steps}"], rtol=4 * EPS)
    # The original multiplies L float32 factors, each rounded: a random walk of rounding errors.
    np.testing.assert_allclose(
        schedule.alpha_bar, reference[f"alpha_bar_{num_steps}"], rtol=np.sqrt(num_steps) * EPS
    )


@pytest.mark.parametrize(
    "schedule", [linear_schedule(), linear_schedule(37), constant_schedule(), cosine_schedule(400)]
)
def test_tables_agree_with_the_product_in_float64(schedule):
    beta = np.asarray(schedule.beta, np.float64)
    alpha_bar = np.cumprod(1 - beta)
    np.testing.assert_allclose(schedule.alpha_bar, alpha_bar, rtol=3e-5)
    np.testing.assert_allclose(schedule.noise_variance, 1 - alpha_bar, rtol=1e-6)
    np.testing.assert_allclose(schedule.time, -0.5 * np.log(alpha_bar), rtol=2e-5)
    np.testing.assert_allclose(
        schedule.log_snr, np.log(alpha_bar / (1 - alpha_bar)), rtol=1e-5, atol=3e-5
    )
    assert np.all(np.diff(schedule.log_snr) < 0)


def test_published_end_of_the_linear_schedule():
    assert float(linear_schedule().time[-1]) == pytest.approx(5.0589, abs=5e-5)
    for num_steps in (50, 250, 4000):
        assert float(linear_schedule(num_steps).time[-1]) == pytest.approx(5.06, abs=0.9)


def test_noise_variance_keeps_its_digits_at_the_first_step():
    assert float(linear_schedule().noise_variance[0]) == pytest.approx(1e-4, rel=1e-6)


def test_constant_schedule_is_not_rescaled():
    for num_steps in (10, 1000):
        np.testing.assert_allclose(constant_schedule(num_steps).beta, np.full(num_steps, 6e-3))


def test_cosine_schedule_is_the_squared_cosine():
    num_steps = 1000
    s = np.arange(1, num_steps + 1) / num_steps
    g = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    schedule = cosine_schedule(num_steps)
    # The last beta is clipped at 0.999, where the formula would reach 1.
    np.testing.assert_allclose(schedule.alpha_bar[:-1], g[:-1], rtol=2e-5)
    assert float(schedule.beta[-1]) == pytest.approx(0.999)


@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule(), linear_schedule(50)])
def test_the_two_clocks_invert_each_other(schedule):
    steps = np.linspace(0, schedule.num_steps - 1, 313, dtype=np.float32)
    time = schedule.time_of_step(steps)
    np.testing.assert_allclose(schedule.step_of_time(time), steps, atol=2e-3)
    whole = jnp.arange(schedule.num_steps)
    np.testing.assert_array_equal(jnp.round(schedule.step_of_time(schedule.time)), whole)
    np.testing.assert_allclose(jnp.exp(-2 * schedule.time), schedule.alpha_bar, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [20, 1, 0, -3])
def test_too_few_steps_for_the_linear_schedule(num_steps):
    with pytest.raises(UserError, match="more than 20 steps"):
        linear_schedule(num_steps)


@pytest.mark.parametrize("beta", [[0.1, 1.0], [0.0, 0.1], [-0.1], [np.nan]])
def test_beta_outside_the_unit_interval(beta):
    with pytest.raises(UserError, match=r"must lie in \(0, 1\)"):
        from_beta(np.array(beta))


def test_empty_schedule():
    with pytest.raises(UserError, match="non-empty"):
        cosine_schedule(0)


@pytest.mark.parametrize("make", [linear_schedule, constant_schedule, cosine_schedule])
@pytest.mark.parametrize("num_steps", [-1, 0, 100.0, 50.5, np.nan, "100", None, [100]])
def test_a_number_of_steps_that_is_none(make, num_steps):
    with pytest.raises(UserError) as refused:
        make(num_steps)
    message = str(refused.value)
    assert "\n" not in message
    assert "must be a whole number" in message or f"{num_steps}" in message


def test_a_number_of_steps_may_be_numpys():
    for make in (linear_schedule, constant_schedule, cosine_schedule):
        assert make(np.int64(30)).num_steps == make(np.uint8(30)).num_steps == 30


@pytest.mark.parametrize("beta", [0, 1, -0.1, np.nan, np.inf, "much", None, [0.1, 0.2]])
def test_a_constant_beta_that_is_none(beta):
    with pytest.raises(UserError, match=r"must (lie in \(0, 1\)|be a (non-empty )?vector)"):
        constant_schedule(10, beta)


@pytest.mark.parametrize("make", [from_beta, from_time])
@pytest.mark.parametrize("values", [[], 0.1, [[0.1]], ["a"], [1j], None, [[0.1], [0.1, 0.2]]])
def test_tables_that_are_no_vector_of_numbers(make, values):
    with pytest.raises(UserError, match=r"^(beta|time) must be a (non-empty )?vector"):
        make(values)


@pytest.mark.parametrize(
    ("time", "part"),
    [
        ([0.1, 0.1], r"time\[1\] = 0.1 comes after time\[0\] = 0.1"),
        ([0.2, 0.1], r"time\[1\] = 0.1 comes after time\[0\] = 0.2"),
        ([0.0, 0.1], r"time\[0\] = 0 comes after 0"),
        ([-0.1], r"time\[0\] = -0.1 comes after 0"),
        ([0.1, np.nan, 0.3], r"time\[1\] = nan comes after"),
        ([0.1, np.inf], r"time\[1\] = inf comes after"),
    ],
)
def test_times_that_do_not_increase(time, part):
    with pytest.raises(UserError, match=f"times must be finite and increase from above 0.*{part}"):
        from_time(time)


def test_times_come_back():
    times = np.array([0.01, 0.3, 2.0, 5.0])
    np.testing.assert_allclose(from_time(times).time, times, rtol=1e-6)
