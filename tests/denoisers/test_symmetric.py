"""The projection of a denoiser onto equivariant ones: equivariance, projection, Pythagoras."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import images_of, noise_of, quick_jit
from flax import struct
from weights import random_params

from diffusion_jax.denoisers import (
    EmpiricalDenoiser,
    SymmetricDenoiser,
    TrainedDenoiser,
    require_steps,
)
from diffusion_jax.errors import UserError
from diffusion_jax.nn.unet import UNet
from diffusion_jax.process import diffuse, noise_to_x_0
from diffusion_jax.regimes import cloning
from diffusion_jax.sampling import (
    AncestralSampler,
    DDIMSampler,
    sample,
    sampling_loop,
)
from diffusion_jax.sampling.likelihood import basis_probes, log_likelihood
from diffusion_jax.sampling.respacing import RespacedDenoiser, respaced
from diffusion_jax.schedule import from_time
from diffusion_jax.symmetry import GROUPS, Group, group_named

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

KEY = jax.random.key(0)


def schedule_of(num_steps=20):
    return from_time(np.linspace(0.05, 2, num_steps))


SCHEDULE = schedule_of()


def up_down(x):
    return jnp.flip(x, axis=-3)


def other_channel(x):
    return x[..., ::-1]


def custom():
    """Upside down, and, with the sign, one channel for the other: maps that no name has."""
    maps = [lambda x: x, up_down, lambda x: -other_channel(x), lambda x: -other_channel(up_down(x))]
    return Group.of(maps, (3, 5, 2), "own")


CASES = {
    "flip": (Group.flip(), (3, 5, 2)),
    "dihedral": (Group.dihedral(), (4, 4, 2)),
    "translations": (Group.translations(3, 4), (3, 4, 2)),
    "own": (custom(), (3, 5, 2)),
}
each_case = pytest.mark.parametrize(("group", "shape"), CASES.values(), ids=CASES)


@struct.dataclass
class Arbitrary:
    """Nonlinear, different at each pixel and step, and without any symmetry."""

    mixing: jax.Array
    num_steps: int = struct.field(pytree_node=False, default=20)

    def __call__(self, x, step):
        flat = x.reshape(len(x), -1)
        hidden = jnp.tanh(jnp.matmul(flat, self.mixing, precision="highest"))
        scale = 1 + step.astype(x.dtype)[:, None] / 7
        return (hidden * scale + flat[:, ::-1] ** 2 / 9).reshape(x.shape)


def arbitrary(shape, dtype=jnp.float32):
    d = int(np.prod(shape))
    return Arbitrary(jnp.asarray(np.random.default_rng(7).standard_normal((d, d)) / 2, dtype))


def draw(shape, count=5, dtype=jnp.float32, seed=0):
    """Images, and a step of its own for each."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *shape)).astype(dtype), np.arange(count) * 4 % 20


def distance(a, b):
    """The largest difference, of the largest value."""
    return float(np.abs(np.subtract(a, b)).max() / np.abs(b).max())


def least_symmetric(denoiser, group, x, step):
    """How far a denoiser is from equivariance under the worst map."""
    images = np.concatenate(images_of(group, x))
    found = np.split(
        np.asarray(noise_of(denoiser, images, np.tile(step, group.order))), group.order
    )
    expected = images_of(group, found[0])
    return max(distance(*each) for each in zip(found[1:], expected[1:], strict=True))


@each_case
def test_it_is_equivariant_to_rounding(group, shape):
    """24 maps at most are averaged, of values that are alike in size: a few units of 2^-24."""
    plain, (x, step) = arbitrary(shape), draw(shape)
    assert least_symmetric(plain, group, x, step) > 0.1
    assert least_symmetric(SymmetricDenoiser(plain, group), group, x, step) < 2e-6


@each_case
def test_it_is_the_mean_over_the_maps(group, shape):
    """Of eps and of D, from maps made of numpy for the named groups, in float64."""
    height, width = shape[:2]
    lists = {
        "flip": [(lambda x: x, lambda x: x), 2 * (lambda x: x[:, :, ::-1],)],
        "dihedral": [
            (
                lambda x, k=k, f=f: np.rot90(x[:, :, :: 1 - 2 * f], k, (1, 2)),
                lambda x, k=k, f=f: np.rot90(x, -k, (1, 2))[:, :, :: 1 - 2 * f],
            )
            for k in range(4)
            for f in (0, 1)
        ],
        "translations": [
            (
                lambda x, i=i, j=j: np.roll(x, (i, j), (1, 2)),
                lambda x, i=i, j=j: np.roll(x, (-i, -j), (1, 2)),
            )
            for i in range(height)
            for j in range(width)
        ],
        "own": [2 * (lambda x, f=f, s=s: s * x[:, ::f, :, ::s],) for f in (1, -1) for s in (1, -1)],
    }
    with jax.enable_x64(True):
        schedule = schedule_of()
        plain, (x, step) = arbitrary(shape, jnp.float64), draw(shape, dtype=jnp.float64)

        @quick_jit
        def both(denoiser, x):
            noise = denoiser(x, step)
            return noise, noise_to_x_0(schedule, noise, x, step)

        def average(which):
            parts = [back(np.asarray(both(plain, g(x))[which])) for g, back in lists[group.name]]
            assert len(parts) == group.order
            return np.mean(parts, axis=0)

        noise, data = both(SymmetricDenoiser(plain, group), x)
        np.testing.assert_allclose(noise, average(0), atol=1e-13)
        np.testing.assert_allclose(data, average(1), rtol=1e-9)


@each_case
def test_it_is_a_projection(group, shape):
    """Again changes nothing; and what is equivariant stays, such as x f(|x|)."""
    once = SymmetricDenoiser(arbitrary(shape), group)
    x, step = draw(shape)

    def radial(x, step):
        return x * jnp.tanh(jnp.sum(x**2, (1, 2, 3), keepdims=True) / 20)

    @quick_jit
    def found(x, step):
        again, symmetric = SymmetricDenoiser(once, group), SymmetricDenoiser(radial, group)
        return again(x, step), once(x, step), symmetric(x, step), radial(x, step)

    twice, first, symmetric, plain = found(x, step)
    assert distance(twice, first) < 2e-6
    assert distance(symmetric, plain) < 1e-6


@each_case
def test_pythagoras_of_the_loss(group, shape):
    """loss(D) = loss(D_sym) + E|D - D_sym|^2 on draws that are closed, (g a, g z) for all g."""
    with jax.enable_x64(True):
        schedule, plain = schedule_of(), arbitrary(shape, jnp.float64)
        symmetric = SymmetricDenoiser(plain, group)
        (a, step), (z, _) = (draw(shape, dtype=jnp.float64, seed=s) for s in (1, 2))
        a, z = (np.concatenate(images_of(group, x)) for x in (a, z))
        step = np.tile(step, group.order)

        @quick_jit
        def both(a, z):
            x = diffuse(schedule, a, step, z)
            return plain(x, step), symmetric(x, step)

        def mean_square(difference):
            return float(np.mean(np.square(difference)))

        one, other = both(a, z)
        parts = mean_square(other - z), mean_square(one - other)
        assert min(parts) > 0.1
        assert mean_square(one - z) == pytest.approx(sum(parts), rel=1e-13)


@pytest.mark.parametrize("name", GROUPS)
def test_a_network(name):
    """A small UNet, whose paddings and attention know places, and whose kernels know left."""
    shape = (4, 4, 2)
    model = UNet(2, 16, (1,), attention_levels=(1,), num_res_blocks=1, dropout=0.0)
    network = TrainedDenoiser(random_params(model, shape), model)
    group, (x, step) = group_named(name, shape), draw(shape, 3)
    assert least_symmetric(network, group, x, step) > 0.01
    projected = SymmetricDenoiser(network, group)
    # The network's own rounding, of sums over 144 products.
    assert least_symmetric(projected, group, x, step) < 1e-5
    assert projected.num_steps == network.num_steps


def test_sampling_with_it_is_equivariant():
    """Whole samplers: from g x they end at g of where they end from x, with calls of any number."""
    for group, shape in CASES.values():
        denoiser = SymmetricDenoiser(arbitrary(shape), group)
        x, _ = draw(shape, 2)
        steps = np.array([2, 9, 19])
        few = RespacedDenoiser(denoiser, jnp.asarray(steps, jnp.int32))
        sampler = DDIMSampler(respaced(SCHEDULE, steps))
        run = quick_jit(partial(sampling_loop, sampler, few, keys=jax.random.split(KEY, 2)))
        moved = images_of(group, x)[-1]
        assert distance(run(moved), images_of(group, run(x))[-1]) < 1e-5


def test_samples_forks_and_u_turns_go_through_it():
    """Of what is symmetric already they are as without, on eight devices."""
    group, shape = CASES["translations"]
    points = jnp.broadcast_to(jnp.asarray([0.3, -0.2]), (1, *shape))  # moved, they are the same
    exact = EmpiricalDenoiser(SCHEDULE, points)
    projected = SymmetricDenoiser(exact, group)
    sampler = AncestralSampler(SCHEDULE)

    def ends(denoiser):
        yield sample(sampler, denoiser, KEY, 9, shape)
        yield cloning.fork(sampler, denoiser, KEY, [15, 5], shape, 0, 8).clones
        yield cloning.u_turns(sampler, denoiser, KEY, [10], np.repeat(points, 3, 0))

    for one, other in zip(ends(exact), ends(projected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_its_likelihood_is_symmetric():
    """log p(g x) = log p(x): the derivative goes through the loop over the maps."""
    schedule = schedule_of(6)
    for group, shape in (CASES["translations"], CASES["own"]):
        denoiser = SymmetricDenoiser(arbitrary(shape), group)
        x = jnp.asarray(draw(shape, 2)[0] / 3)
        moved, probes = jnp.asarray(images_of(group, x)[-1]), basis_probes(2, shape)
        (one, _), (other, _) = (log_likelihood(denoiser, schedule, y, probes) for y in (x, moved))
        np.testing.assert_allclose(one, other, atol=2e-4)
    plain, _ = log_likelihood(denoiser.denoiser, schedule, moved, probes)
    assert np.abs(plain - one).max() > 1e-2


def test_the_derivative_keeps_no_more_for_more_maps():
    shape = (3, 40, 1)

    def kept(group):
        denoiser, (x, step) = SymmetricDenoiser(arbitrary(shape), group), draw(shape)
        backward = jax.eval_shape(lambda x: jax.vjp(lambda y: denoiser(y, step), x)[1], x)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    # But for the numbers of the maps and of their inverses.
    assert kept(Group.translations(3, 40)) <= kept(Group.flip()) + 2 * 4 * 120


def test_steps_are_passed_on_and_wrong_images_refused():
    group, shape = CASES["dihedral"]
    denoiser = SymmetricDenoiser(arbitrary(shape), group)
    require_steps(denoiser, 20)
    with pytest.raises(UserError, match=r"knows the steps 0\.\.19 alone"):
        require_steps(denoiser, 21)
    assert SymmetricDenoiser(lambda x, step: x, group).num_steps is None
    for wrong, message in (((3, 4, 2), "quarter turns need square"), ((12,), "maps images")):
        with pytest.raises(UserError, match=message):
            denoiser(*draw(wrong))
    with pytest.raises(UserError, match=r"images of \(3, 5, 2\), not of \(3, 5, 1\)"):
        SymmetricDenoiser(denoiser, CASES["own"][0])(*draw((3, 5, 1)))
