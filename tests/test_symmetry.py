"""Groups: their laws, what they refuse, and that equal groups are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers import EmpiricalDenoiser, SymmetricDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.symmetry import GROUPS, Group, group_named

SHAPES = {"flip": (3, 5, 2), "dihedral": (4, 4, 2), "translations": (3, 4, 2)}


def images(shape, count=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, *shape)), jnp.float32)


def images_of_all_maps(group, x):
    return [np.asarray(group(jnp.int32(i), x)) for i in range(group.order)]


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_one(name):
    """Closed, with an identity first and inverses; every map keeps the norm."""
    group, x = group_named(name, SHAPES[name]), images(SHAPES[name])
    orbit = images_of_all_maps(group, x)
    np.testing.assert_array_equal(orbit[0], x)
    assert len({each.tobytes() for each in orbit}) == group.order
    known = {each.tobytes() for each in orbit}
    for i, each in enumerate(orbit):
        np.testing.assert_array_equal(group.inverse(jnp.int32(i), each), x)
        np.testing.assert_array_equal(np.sort(each.ravel()), np.sort(np.ravel(x)))
        assert {other.tobytes() for other in images_of_all_maps(group, jnp.asarray(each))} == known


def test_the_named_maps_are_what_they_are_called():
    x = images((4, 4, 1))
    flipped = Group.flip()(jnp.int32(1), x)
    np.testing.assert_array_equal(flipped, np.asarray(x)[:, :, ::-1])
    square = {each.tobytes() for each in images_of_all_maps(Group.dihedral(), x)}
    turns = [np.rot90(np.asarray(x), k, (1, 2)) for k in range(4)]
    expected = {np.ascontiguousarray(each).tobytes() for each in turns}
    expected |= {np.ascontiguousarray(each[:, :, ::-1]).tobytes() for each in turns}
    assert square == expected
    shift = Group.translations(4, 4)(jnp.int32(1 * 4 + 3), x)
    np.testing.assert_array_equal(shift, np.roll(np.asarray(x), (1, 3), (1, 2)))


def test_a_map_of_its_own_for_each_image():
    for name, shape in SHAPES.items():
        group, x = group_named(name, shape), images(shape, 5)
        index = jnp.arange(5) % group.order
        each = jnp.stack([group(i, x[n]) for n, i in enumerate(index)])
        np.testing.assert_array_equal(group.of_each(index, x), each)


def test_ones_own_maps_in_any_order_are_a_group():
    maps = Group.dihedral().maps.maps
    own = Group.of([maps[i] for i in (5, 2, 7, 0, 1, 6, 3, 4)], (4, 4, 2))
    x = images((4, 4, 2))
    np.testing.assert_array_equal(own(jnp.int32(0), x), x)
    for i in range(8):
        np.testing.assert_array_equal(own.inverse(jnp.int32(i), own(jnp.int32(i), x)), x)
    signs = Group.of([lambda x: x, lambda x: -x], (2, 3, 1), "signs")
    assert (signs.order, signs.inverses, signs.name) == (2, (0, 1), "signs")


def test_equal_groups_are_equal():
    for name, shape in SHAPES.items():
        one, other = group_named(name, shape), group_named(name, shape)
        assert one == other
        assert hash(one) == hash(other)
    assert Group.translations(3, 4) != Group.translations(4, 3)


def rotation(x):
    return jnp.rot90(x, axes=(1, 2))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], "one map at least"),
        ([lambda x: -x], "the identity is none"),
        ([lambda x: x, rotation], "map 1 after map 1 is none"),
        ([lambda x: x, lambda x: 2 * x], "map 1 of the group changes the norm"),
        ([lambda x: x, lambda x: x[:, :2]], r"changes the shape .* to \(2, 4, 1\)"),
        ([lambda x: x, jnp.abs], "map 1 of the group is not linear"),
        ([lambda x: x, lambda x: +x], "maps 0 and 1 of the group are the same"),
    ],
)
def test_maps_that_are_no_group_are_refused(maps, message):
    with pytest.raises(UserError, match=message):
        Group.of(maps, (4, 4, 1))


@pytest.mark.parametrize(
    ("group", "shape", "message"),
    [
        (Group.dihedral(), (3, 4, 1), "quarter turns need square ones"),
        (Group.translations(3, 4), (4, 4, 1), r"images of \(3, 4\), not of \(4, 4\)"),
        (Group.flip(), (12,), r"maps images \(height, width, channels\), not \(12,\)"),
    ],
)
def test_images_that_a_group_does_not_map_to_such_are_refused(group, shape, message):
    with pytest.raises(UserError, match=message):
        group.require(shape)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="no symmetry 'mirror'; choose from flip, dihedral"):
        group_named("mirror", (4, 4, 1))
    with pytest.raises(UserError, match="at least one each way"):
        Group.translations(0, 3)


def test_groups_are_static_in_compiled_programs():
    calls = []

    @jax.jit
    def use(group_index, x):
        calls.append(1)
        return Group.flip()(group_index, x)

    x = images((3, 5, 2))
    use(jnp.int32(0), x)
    np.testing.assert_array_equal(use(jnp.int32(1), x), np.asarray(x)[:, :, ::-1])
    assert len(calls) == 1


def test_ones_own_maps_see_a_batch_everywhere():
    """Each example's own map too, and where shapes are checked."""
    own = Group.of([lambda x: x, lambda x: jnp.flip(x, axis=2)], (3, 5, 2))
    own.require((3, 5, 2))
    x = images((3, 5, 2), 4)
    moved = np.asarray(own.of_each(jnp.array([0, 1, 1, 0]), x))
    np.testing.assert_array_equal(moved[1:3], np.asarray(x)[1:3, :, ::-1])
    np.testing.assert_array_equal(moved[::3], np.asarray(x)[::3])


def test_what_jax_cannot_trace_and_what_is_no_shape_are_refused():
    with pytest.raises(UserError, match=r"map 1 of the group does not take images .* jax\.numpy"):
        Group.of([lambda x: x, lambda x: np.asarray(x)[:, :, ::-1]], (3, 5, 1))
    for shape in ((3, 5), (0, 5, 1), (3.0, 5, 1)):
        with pytest.raises(UserError, match=r"must be \(height, width, channels\) of an image"):
            Group.of([lambda x: x], shape)


def test_a_name_is_no_group():
    schedule, points = linear_schedule(30), jnp.zeros((2, 3, 3, 1))
    for make in (
        lambda: EmpiricalDenoiser(schedule, points, "flip"),
        lambda: SymmetricDenoiser(EmpiricalDenoiser(schedule, points), "flip"),
    ):
        with pytest.raises(UserError, match=r"group = 'flip' must be a Group, such as dj.Group"):
            make()
