"""What forks commit to: exact scores against the posterior engine, counts against their laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import commitment, posterior
from diffusion_jax.regimes.cloning import fork
from diffusion_jax.regimes.commitment import Outcomes
from diffusion_jax.regimes.curves import average
from diffusion_jax.sampling import AncestralSampler, sample
from diffusion_jax.schedule import linear_schedule

FORKS = [600, 400, 250, 120]
WATCH = [1000, 700, 500, 300, 200, 100, 20, 1]
COUNT = 800
# Of 8 binomial tests at once, one p-value under this is seen once in 1 250 runs.
LEVEL = 1e-4


@pytest.fixture(scope="module")
def problem():
    """Two classes of ten points in eight dimensions, and their exact score."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 10)
    points = 0.6 * rng.standard_normal((20, 2, 2, 2))
    points = (points + np.where(labels, 0.7, -0.7)[:, None, None, None]).astype(np.float32)
    schedule = linear_schedule()
    return points, labels, AncestralSampler(schedule), EmpiricalDenoiser(schedule, points)


def run(problem, first, last, clones=1, watch=WATCH, progress=lambda calls: None):
    points, _, sampler, denoiser = problem

    def classify(x):
        return (x.reshape(len(x), -1).sum(1) > 0).astype(int)

    return commitment.measure(
        sampler,
        denoiser,
        jax.random.key(5),
        FORKS,
        watch,
        points,
        classify,
        first,
        last,
        clones,
        progress,
    )


@pytest.fixture(scope="module")
def measured(problem):
    calls = []
    outcomes, pairs = run(problem, 0, COUNT, progress=calls.append)
    return outcomes, pairs, calls


def times_of(problem, steps):
    return np.asarray(problem[2].schedule.time, np.float64)[np.array(steps) - 1]


def summary(problem, outcomes):
    return commitment.summarize(
        outcomes, times_of(problem, FORKS), times_of(problem, WATCH), 2, 0.7752
    )


def test_counts_agree_with_the_posterior_engine(problem, measured):
    points, labels, _, _ = problem
    found = summary(problem, measured[0])
    draws = posterior.draw(
        points.reshape(20, -1), labels, times_of(problem, FORKS), jax.random.key(6), 10_000
    )
    # The class of a training point is that of its sum here.
    assert np.array_equal(points.reshape(20, -1).sum(1) > 0, labels == 1)
    phi, phi_C = (draws.class_probability**2).sum(2).mean(0), draws.collision.mean(0)
    assert phi[0] < 0.6 < 0.95 < phi[-1]
    assert phi_C[0] < 0.1 < 0.9 < phi_C[-1]
    assert found.phi.p_values(phi).min() > LEVEL
    assert found.phi_C.p_values(phi_C).min() > LEVEL
    # The same cubic through the exact values; the trajectories' scatter is in their intervals.
    tables = [(draws.class_probability**2).sum(2)[:, ::-1], draws.collision[:, ::-1]]
    exact = average(times_of(problem, FORKS)[::-1], tables)
    for name, level, curve in zip(("t_S_phi", "t_C_phi"), (0.7752, 0.5), exact, strict=True):
        estimate = found.times[name]
        standard_error = (estimate.high - estimate.low) / 3.92
        assert abs(estimate.value - curve.crossing(level).value) < 4 * standard_error


def test_the_exact_score_memorises_and_both_classes_come_equally_often(problem, measured):
    found = summary(problem, measured[0])
    assert found.memorised.value == 1
    assert found.class_counts.sum() == COUNT
    share = commitment.fraction(int(found.class_counts[0]), COUNT)
    assert abs(share.value - 0.5) < 4 * np.sqrt(0.25 / COUNT)


def test_the_neighbour_by_the_way_is_the_nearest_of_the_shrunk_points(problem, measured):
    """Nearest to e^-t a_nu along the trunk, by brute force on the states of a trunk of its own."""
    points, _, sampler, denoiser = problem
    outcomes = measured[0]
    np.testing.assert_allclose(
        outcomes.trunk[:9],
        sample(sampler, denoiser, jax.random.key(5), 9, points.shape[1:]),
        atol=1e-5,
    )
    forks = fork(sampler, denoiser, jax.random.key(5), [10], points.shape[1:], 0, 40, watch=WATCH)
    shrunk = np.exp(-times_of(problem, WATCH))[:, None, None] * points.reshape(1, 20, -1)
    state = forks.path.reshape(40, len(WATCH), 1, -1)
    brute = np.linalg.norm(state - shrunk[None], axis=3).argmin(2)
    np.testing.assert_array_equal(outcomes.path[:40, :-1], brute)
    np.testing.assert_array_equal(outcomes.path[:, -1], outcomes.index)
    # Near the end the nearest point is the last one: the path does commit.
    np.testing.assert_array_equal(outcomes.path[:, -2], outcomes.index)


def test_t_C_hat_is_when_the_neighbour_changed_last(problem, measured):
    outcomes = measured[0]
    found = summary(problem, outcomes)
    grid = np.append(times_of(problem, WATCH), 0)
    own = []
    for row in outcomes.path:
        changed = [i for i in range(len(row) - 1) if row[i] != row[i + 1]]
        if changed:
            own.append((grid[changed[-1]] + grid[changed[-1] + 1]) / 2)
    np.testing.assert_allclose(found.changes, own)
    assert found.unchanged == COUNT - len(own)
    assert found.mean_change.low < found.mean_change.value < found.mean_change.high
    assert found.phi_C_there == pytest.approx(
        np.interp(found.mean_change.value, found.phi_C.times[::-1], found.phi_C.phi[::-1])
    )


def test_batches_joined_are_the_whole(problem, measured, tmp_path):
    whole, pairs, calls = measured
    parts = []
    for i, (first, last) in enumerate([(0, 5), (5, 12)]):
        outcomes, ends = run(problem, first, last)
        outcomes.save(tmp_path / f"{i}.npz")
        parts.append(commitment.load(tmp_path / f"{i}.npz"))
        np.testing.assert_allclose(ends, pairs[first:last], atol=1e-5)
    joined = commitment.join(parts)
    for field in dataclasses.fields(Outcomes):
        got, want = getattr(joined, field.name), getattr(whole, field.name)[:12]
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=field.name)
    # Every call is told: the trunk's thousand, and the clone's at each fork.
    assert calls[-1] == 1000 + sum(FORKS)
    assert calls == sorted(calls)


def test_two_fresh_clones_leave_the_trunk_out(problem):
    outcomes, pairs = run(problem, 0, 24, clones=2, watch=[])
    trunk = outcomes.trunk[:, None, None]
    # Under the exact score two ends on one training point are equal, so look where few collapse.
    same = np.all(np.abs(pairs - trunk) < 1e-3, axis=(3, 4, 5))[:, 0]
    assert same.mean(0).max() < 0.5
    assert outcomes.path.shape == (24, 1)


def synthetic(phi, count, rng):
    """Outcomes whose pairs agree with given probabilities, forks of a trunk correlated."""
    same = rng.uniform(size=(count, 1)) < phi[None]
    zeros = np.zeros(count)
    return Outcomes(
        trunk=np.zeros((count, 1)),
        same_class=same,
        same_point=same,
        label=np.zeros(count, int),
        index=zeros.astype(int),
        distance=zeros,
        second=zeros + 1,
        path=np.zeros((count, 3), int),
    )


def test_the_interval_of_a_crossing_covers_it():
    """A logistic phi in log t, whose crossing is known."""
    times = np.geomspace(4, 0.25, 9)
    phi = 1 / (1 + times**4)
    level, true = 0.8, 0.25**0.25
    rng = np.random.default_rng(0)
    found = [
        commitment.summarize(synthetic(phi, 200, rng), times, np.array([2.0, 1.0]), 2, level)
        for _ in range(40)
    ]
    inside = sum(f.times["t_S_phi"].low <= true <= f.times["t_S_phi"].high for f in found)
    assert inside >= 32  # 38 expected; fewer than 32 of 40 at 95 % are seen once in 7 000 runs
    assert found[0].unchanged == 200
    assert np.isnan(found[0].mean_change.value)


def test_one_class_has_no_phi():
    rng = np.random.default_rng(1)
    outcomes = synthetic(np.array([0.2, 0.8]), 40, rng)
    found = commitment.summarize(outcomes, np.array([2.0, 1.0]), np.array([2.0, 1.0]), 1, np.nan)
    assert found.phi is None
    assert "t_S_phi" not in found.times
    assert found.class_counts.tolist() == [40]


def test_too_few_trunks_and_a_damaged_file_are_refused(tmp_path):
    rng = np.random.default_rng(2)
    few = synthetic(np.array([0.5]), 29, rng)
    with pytest.raises(UserError, match="29 trunks are too few"):
        commitment.summarize(few, np.array([1.0]), np.array([2.0, 1.0]), 2, 0.7)
    path = tmp_path / "batch.npz"
    few.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["batch.npz"]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"batch\.npz is damaged.*run again"):
        commitment.load(path)


def test_a_denoiser_that_diverges_is_named(problem):
    points, _, sampler, _ = problem

    def broken(x, step):
        return jnp.full_like(x, jnp.nan)

    broken_denoiser = jax.tree_util.Partial(broken)
    with pytest.raises(UserError, match="not finite"):
        commitment.measure(sampler, broken_denoiser, jax.random.key(0), [5], [], points, None, 0, 2)


def test_classes_that_trunks_end_in_too_often_are_found():
    """Against the law of fair trunks, and with the class that a reader saw."""
    half = np.array([500, 500])
    each, p = commitment.skewed_class(np.array([1, 31]), half)
    assert each == 1
    assert p == pytest.approx(2 * 2 * 33 / 2**32)  # two classes; both tails, of 0 and 1 out of 32
    assert commitment.skewed_class(np.array([13, 19]), half) is None
    assert commitment.skewed_class(np.array([28, 4]), np.array([900, 100])) is None
    assert commitment.skewed_class(np.array([0, 0, 60]), np.array([1, 1, 1]))[0] == 2
    rng = np.random.default_rng(0)
    shares = np.array([5, 3, 1, 1])
    found = [commitment.skewed_class(rng.multinomial(64, shares / 10), shares) for _ in range(1000)]
    assert sum(each is not None for each in found) <= 4  # mean at most 1
