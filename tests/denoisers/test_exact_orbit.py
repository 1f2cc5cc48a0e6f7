"""The exact score of a training set with its orbit, against that of the orbit as points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import images_of, maps_of, noise_of, quick_jit
from scipy.special import logsumexp

from diffusion_jax.denoisers import EmpiricalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.process import noise_to_x_0
from diffusion_jax.regimes import cloning
from diffusion_jax.sampling import AncestralSampler, sample
from diffusion_jax.sampling.likelihood import basis_probes, log_likelihood
from diffusion_jax.schedule import from_time
from diffusion_jax.symmetry import Group

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def own():
    """Upside down, and, with the sign, one channel for the other."""
    maps = [
        lambda x: -x[..., ::-1],
        lambda x: x[..., ::-1, :, :],
        lambda x: x,
        lambda x: -x[..., ::-1, :, ::-1],
    ]
    return Group.of(maps, (3, 5, 2), "own")


CASES = {
    "flip": (Group.flip(), (3, 5, 2)),
    "dihedral": (Group.dihedral(), (4, 4, 2)),
    "translations": (Group.translations(3, 4), (3, 4, 2)),
    "own": (own(), (3, 5, 2)),
}
each_case = pytest.mark.parametrize(("group", "shape"), CASES.values(), ids=CASES)


def schedule_of(num_steps=16, first=0.02, last=3.0):
    return from_time(np.geomspace(first, last, num_steps))


@quick_jit
def log_probability(denoiser, x, step):
    return denoiser.posterior(x, step)


def orbit(group, points):
    """All g a_nu (n |G|, ...), map by map, in the type of the points."""
    return np.concatenate(images_of(group, points))


def training_points(group, shape, count=6):
    """Random images, one of them twice, one that is its own image under all maps, and the mean."""
    points = np.random.default_rng(3).normal(0, 0.5, (count, *shape))
    with jax.enable_x64(True):
        images = orbit(group, points[:2])
    invariant, half = images[::2].mean(0), (points[1] + images[group.order // 2 * 2 + 1]) / 2
    return np.concatenate([points, points[:1], invariant[None], half[None]])


def noisy(points, schedule, count, seed=0):
    """Draws of x_t around the points at all times of a schedule, each at its own step."""
    rng = np.random.default_rng(seed)
    step = np.arange(count) % schedule.num_steps
    signal, noise = (
        np.sqrt(np.asarray(each, np.float64))[step].reshape(-1, 1, 1, 1)
        for each in (schedule.alpha_bar, schedule.noise_variance)
    )
    x = signal * points[rng.integers(len(points), size=count)]
    return x + noise * rng.standard_normal(x.shape), step


def both(group, shape, dtype, count=32):
    """The denoiser with the group, that of the stored orbit, and x at steps of their own."""
    schedule, points = schedule_of(), training_points(group, shape)
    with jax.enable_x64(True):
        stored = orbit(group, points)
    x, step = noisy(stored, schedule, count)
    with_group = EmpiricalDenoiser(schedule, jnp.asarray(points, dtype), group)
    explicit = EmpiricalDenoiser(schedule, jnp.asarray(stored, dtype))
    return with_group, explicit, np.asarray(x, dtype), step


@quick_jit
def data_of_noise(denoiser, x, step):
    """D, from the noise that is predicted."""
    return noise_to_x_0(denoiser.schedule, denoiser(x, step), x, step)


@each_case
def test_it_is_the_exact_score_of_the_stored_orbit(group, shape):
    """In float64 to rounding, at times from 0.02 to 3, each image at its own."""
    with jax.enable_x64(True):
        with_group, explicit, x, step = both(group, shape, jnp.float64)
        found = noise_of(with_group, x, step)
        np.testing.assert_allclose(found, noise_of(explicit, x, step), atol=1e-13)
        each = np.asarray(log_probability(explicit, x, step)).reshape(len(x), group.order, -1)
        found = log_probability(with_group, x, step)
        np.testing.assert_allclose(found, logsumexp(each, axis=1), atol=1e-9)


@each_case
def test_in_float32_too(group, shape):
    """Within what float32 leaves of logits of the size |a|^2/Delta: see the class."""
    with_group, explicit, x, step = both(group, shape, jnp.float32)
    schedule = with_group.schedule
    found, expected = (data_of_noise(each, x, step) for each in (with_group, explicit))
    squares = (np.asarray(with_group.points) ** 2).sum((1, 2, 3))
    size = squares.max() / float(schedule.noise_variance[0])
    np.testing.assert_allclose(found, expected, atol=2**-24 * size)
    assert found.dtype == jnp.float32


@each_case
def test_it_is_equivariant_and_the_plain_one_is_not(group, shape):
    with_group, _, x, step = both(group, shape, jnp.float32)
    plain = EmpiricalDenoiser(with_group.schedule, with_group.points)

    @quick_jit
    def both_ways(denoiser):
        """Of all maps, eps(g x) and g eps(x)."""
        moved = maps_of(group, x)
        return jax.lax.map(lambda image: denoiser(image, step), moved), maps_of(
            group, denoiser(x, step)
        )

    np.testing.assert_allclose(*both_ways(with_group), atol=1e-5)
    assert np.abs(np.subtract(*both_ways(plain))).max() > 0.1


def test_the_order_of_the_maps_does_not_matter():
    maps = Group.dihedral().maps.maps
    groups = [
        Group.of([maps[i] for i in order], (4, 4, 2))
        for order in (range(8), (0, 7, 3, 5, 2, 6, 4, 1))
    ]
    with jax.enable_x64(True):
        one, _, x, step = both(groups[0], (4, 4, 2), jnp.float64)
        other = one.replace(group=groups[1])
        found = noise_of(one, x, step)
        np.testing.assert_allclose(found, noise_of(other, x, step), atol=1e-12)


@each_case
def test_its_limits(group, shape):
    """Early the nearest image of a point, late the mean of all."""
    with jax.enable_x64(True):
        schedule = from_time(np.array([1e-4, 14.0]))
        points = training_points(group, shape)[:3]
        stored = orbit(group, points)
        denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points), group)
        x, step = stored * np.exp(-1e-4), np.zeros(len(stored), int)
        early = data_of_noise(denoiser, x, step)
        np.testing.assert_allclose(early, stored, atol=1e-9)
        nu = np.tile(np.arange(3), group.order)
        log_p = np.asarray(log_probability(denoiser, x, step))
        np.testing.assert_allclose(log_p[np.arange(len(nu)), nu], 0, atol=1e-9)
        # D moves from the mean by e^-t Cov x/Delta.
        late = data_of_noise(denoiser, x, step + 1)
        np.testing.assert_allclose(late, np.broadcast_to(stored.mean(0), late.shape), atol=2e-4)


def test_its_samples_are_all_images_alike():
    """Of three points and the flip, one of which the flip leaves alone: two shares for it."""
    points = np.random.default_rng(0).normal(0, 0.5, (3, 3, 2, 1)).astype(np.float32)
    points[2] = (points[2] + points[2][:, ::-1]) / 2
    schedule = schedule_of(100, 1e-4, 4.0)
    denoiser = EmpiricalDenoiser(schedule, jnp.asarray(points), Group.flip())
    ends = sample(AncestralSampler(schedule), denoiser, jax.random.key(0), 600, (3, 2, 1))
    images = np.concatenate([points, points[:2, :, ::-1]])
    apart = np.sqrt(((ends[:, None] - images[None]) ** 2).sum((2, 3, 4)))
    assert apart.min(1).max() < 0.05
    counts = np.bincount(apart.argmin(1), minlength=5)
    expected = 100 * np.array([1, 1, 2, 1, 1])
    assert np.sum((counts - expected) ** 2 / expected) < 18.5  # 99.9 % quantile of chi^2, 4


def test_forks_u_turns_and_likelihood_are_those_of_the_stored_orbit():
    group, shape = CASES["translations"]
    points = np.random.default_rng(5).normal(0, 0.5, (4, *shape)).astype(np.float32)
    with jax.enable_x64(True):
        stored = orbit(group, points).astype(np.float32)
    schedule, key = schedule_of(24, 0.05, 3.0), jax.random.key(1)
    denoisers = (
        EmpiricalDenoiser(schedule, jnp.asarray(points), group),
        EmpiricalDenoiser(schedule, jnp.asarray(stored)),
    )
    sampler = AncestralSampler(schedule)

    def found(denoiser):
        forks = cloning.fork(sampler, denoiser, key, [20, 8], shape, 0, 16)
        yield from (forks.trunk, forks.clones)
        yield cloning.u_turns(sampler, denoiser, key, [12], stored[::5])
        density, end = log_likelihood(
            denoiser, schedule, jnp.asarray(stored[:2]), basis_probes(2, shape)
        )
        yield from (density / 24, end)

    for one, other in zip(*map(found, denoisers), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.parametrize(
    ("shape", "group", "message"),
    [
        ((12,), Group.flip(), r"maps images \(height, width, channels\), not \(12,\)"),
        ((3, 4, 1), Group.dihedral(), "quarter turns need square ones"),
        ((3, 4, 1), Group.translations(4, 4), r"images of \(4, 4\), not of \(3, 4\)"),
    ],
)
def test_images_that_the_group_does_not_map_are_refused(shape, group, message):
    denoiser = EmpiricalDenoiser(schedule_of(), jnp.zeros((2, *shape)), group)
    for use in (denoiser, denoiser.posterior):
        with pytest.raises(UserError, match=message):
            use(jnp.zeros((3, *shape)), jnp.zeros(3, jnp.int32))


def test_calls_outside_of_compiled_code_compile_the_loop_once():
    group, shape = CASES["dihedral"]
    denoiser, _, x, step = both(group, shape, jnp.float32)
    others = x + 1
    denoiser(x, step)
    heard = []

    def listen(name, seconds, **_):
        heard.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        denoiser.replace(group=Group.dihedral())(others, step)
        assert not any("compile" in name for name in heard)
        denoiser(x[:3], step[:3])
        assert any("compile" in name for name in heard)  # it would have been heard
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
