"""The posterior over a training set's orbit, against the orbit stored and merged by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import images_of
from scipy.special import logsumexp, softmax

from diffusion_jax.errors import UserError
from diffusion_jax.regimes import posterior
from diffusion_jax.regimes.posterior import draw
from diffusion_jax.regimes.training_set import training_set
from diffusion_jax.symmetry import Group

TIMES = np.array([1e-3, 1e-2, 0.05, 0.2, 0.7, 2.0, 10.0])
TABLES = ("entropy", "collision", "log_own", "largest", "log_evidence", "squared")
FAR = np.array([20.0])


def swapped(x):
    return x[..., ::-1]


def turned(x):
    return jnp.flip(x, (-3, -2))


def both(x):
    return turned(swapped(x))


def rotated(x):
    """By 90 degrees in the plane of the two channels."""
    return jnp.stack([-x[..., 1], x[..., 0]], -1)


def custom():
    """Channels and corners change places: neither keeps the mean of each channel."""
    return Group.of([both, lambda x: x, swapped, turned], (3, 4, 2), "corners")


def rotations():
    """Not one pixel keeps its values, but where they are zero; a quarter turn has an order of 4."""
    maps = [lambda x: x, rotated, lambda x: -x, lambda x: -rotated(x)]
    return Group.of(maps, (3, 4, 2), "rotations")


pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

GROUPS = {
    "flip": (lambda: Group.flip(), (3, 5, 2)),
    "dihedral": (lambda: Group.dihedral(), (4, 4, 2)),
    "translations": (lambda: Group.translations(3, 4), (3, 4, 2)),
    "corners": (custom, (3, 4, 2)),
    "rotations": (rotations, (3, 4, 2)),
}


def case(name, kind="float", n=12):
    """A group, images in three unequal classes of which two are near neighbours, and labels."""
    make, shape = GROUPS[name]
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 1, (n, *shape)).astype(np.float32)
    images[1] = images[0] + 1e-3 * rng.standard_normal(shape).astype(np.float32)
    if kind == "uint8":
        images = (255 * images).astype(np.uint8)
    return make(), images, rng.permutation(np.repeat([0, 1, 2], [2, n - 7, 5]))


def orbit_of(group, images):
    """All g a, (n, |G|, ...)."""
    return np.moveaxis(images_of(group, images), 0, 1)


def tables(training, source, key, times=TIMES):
    """What the engine says of given sources, of which it makes the noise from the key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(source)))
    r = jnp.asarray(1 / np.sqrt(np.expm1(2 * times)), jnp.float32)
    found = posterior._chunk(training, jnp.asarray(source), keys, r, len(r), len(r), 1)
    return dict(zip(TABLES, map(np.asarray, found), strict=True))


def noise_of(key, num_draws, d):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_draws))
    return np.asarray(jax.vmap(lambda k: jax.random.normal(k, (d,)))(keys), np.float64)


@pytest.mark.parametrize(
    ("name", "kind", "classes"),
    [
        ("flip", "uint8", True),
        ("dihedral", "float", True),
        ("translations", "uint8", False),
        ("corners", "float", False),
        ("rotations", "float", True),
    ],
)
def test_it_is_that_of_the_orbit_stored(name, kind, classes):
    group, images, labels = case(name, kind)
    labels = labels if classes else np.zeros(len(images), int)
    order = np.argsort(labels, kind="stable")
    images, labels = images[order], labels[order]
    stored = orbit_of(group, images).reshape(-1, *images.shape[1:])
    source = np.arange(len(images)).repeat(2).astype(np.int32)
    key = jax.random.key(1)
    given = labels if classes else None
    lazy = training_set(images, given, group)
    assert lazy.num_points == len(stored)
    found = tables(lazy, source, key)
    repeated = np.repeat(labels, group.order) if classes else None
    expected = tables(training_set(stored, repeated), group.order * source, key)
    for table, values in expected.items():
        np.testing.assert_allclose(found[table], values, rtol=1e-4, atol=1e-3, err_msg=table)


def merged(group, images, labels, source, z, times):
    """By the definition, in float64: distinct points of each orbit, weighted by their number."""
    points, weights, classes, place = [], [], [], []
    for image, label in zip(images, labels, strict=True):
        mine: list[np.ndarray] = []
        counts: list[int] = []
        place.append(len(points))
        for moved in orbit_of(group, image[None])[0].astype(np.float64):
            twins = [i for i, other in enumerate(mine) if np.allclose(other, moved, atol=1e-6)]
            if twins:
                counts[twins[0]] += 1
            else:
                mine.append(moved)
                counts.append(1)
        points += mine
        weights += counts
        classes += [label] * len(mine)
    a = np.reshape(points, (len(points), -1))
    weights, classes = np.array(weights), np.array(classes)
    own = np.array(place)[source]
    rows, out = np.arange(len(source)), []
    for t in times:
        delta = -np.expm1(-2 * t)
        x = np.exp(-t) * a[own] + np.sqrt(delta) * z
        distance = ((x[:, None] - np.exp(-t) * a[None]) ** 2).sum(2)
        logit = np.log(weights) - (distance - distance[rows, own][:, None]) / (2 * delta)
        logit -= np.log(weights[own])[:, None]
        log_p = logit - logsumexp(logit, axis=1, keepdims=True)
        p = np.exp(log_p)
        others = logit.copy()
        others[rows, own] = -np.inf
        evidence = [
            logsumexp(np.where(classes == c, others, -np.inf), axis=1) for c in np.unique(labels)
        ]
        entropy = -np.sum(np.where(p > 0, p * log_p, 0), 1)
        apart = np.sum((a[own][:, None] - a[None]) ** 2, 2)
        inside = [np.where(classes == c, logit, -np.inf) for c in np.unique(labels)]
        squared = [(softmax(each, axis=1) * apart).sum(1) for each in inside]
        alone = (np.sum(p * p, 1), log_p[rows, own], p.max(1))
        out.append((entropy, *alone, np.stack(evidence, 1), np.stack(squared, 1)))
    share = weights / weights.sum()
    tables = dict(zip(TABLES, (np.stack(each, 1) for each in zip(*out, strict=True)), strict=True))
    return tables, len(points), -np.sum(share * np.log(share))


def fixed_images(name):
    """Images that some or all maps fix, among others; the first class is one such image alone."""
    group, images, _ = case(name, n=8)
    images[3] = 0.5
    images[5] = orbit_of(group, images[5:6])[0].mean(0)  # every map fixes it, but for rounding
    if name == "rotations":
        images[[3, 5]] = 0  # else they fix nothing
    if name == "dihedral":
        images[6] = (images[6] + images[6, ::-1]) / 2  # one of the eight
    if name == "translations":
        images[6] = images[6, :1]  # moving its rows
        images[7, :, 2:] = images[7, :, :2]  # moving columns by half its width
    if name == "corners":
        images[6] = (images[6] + both(images[6])) / 2
    images[4] = orbit_of(group, images[7:8])[0][-1]  # of another image: a point of its own
    return group, images, np.array([2, 1, 1, 0, 1, 2, 1, 2])


@pytest.mark.parametrize("name", ["dihedral", "translations", "corners", "rotations"])
def test_an_image_that_a_map_fixes_is_fewer_points(name):
    group, images, labels = fixed_images(name)
    order = np.argsort(labels, kind="stable")
    images, labels = images[order], labels[order]
    source, key = np.arange(len(images)).repeat(3).astype(np.int32), jax.random.key(2)
    training = training_set(images, labels, group)
    found = tables(training, source, key)
    z = noise_of(key, len(source), images[0].size)
    expected, number, entropy = merged(group, images, labels, source, z, TIMES)
    assert number < len(images) * group.order
    assert training.orbit.num_distinct == sum(training.sizes) == number
    assert np.log(training.num_points) == pytest.approx(entropy, rel=1e-12)
    for table, values in expected.items():
        np.testing.assert_allclose(found[table], values, rtol=1e-4, atol=1e-3, err_msg=table)
    # The class of the image that all maps fix is empty without it, whatever the number of columns.
    assert np.isneginf(found["log_evidence"][labels[source] == 0, :, 0]).all()


def test_the_ends_of_the_curves():
    """One point at small t, the prior at large t: of n |G| points, or of the distinct ones."""
    group, images, labels = case("dihedral")
    images[1] = np.random.default_rng(1).uniform(size=images[1].shape)
    many = len(images) * 8
    got = draw(images, labels, np.array([1e-3, 20.0]), jax.random.key(0), 24, group)
    np.testing.assert_allclose(got.collision, [[1, 1 / many]] * 24, rtol=1e-4)
    np.testing.assert_allclose(got.entropy, [[0, np.log(many)]] * 24, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.class_probability[:, 1], [np.bincount(labels) / 12] * 24, 1e-4)
    images[2] = 0.5  # m = 8, so that H = log(8 n) - log(8)/n
    training = training_set(images, labels, group)
    assert training.num_points == pytest.approx(many / 8 ** (1 / 12), rel=1e-12)
    got = posterior.draw_from(training, np.array([1e-3, 20.0]), jax.random.key(0), 0, 24)
    np.testing.assert_allclose(got.collision[:, 0], 1, rtol=1e-4)
    np.testing.assert_allclose(got.entropy[:, 1], np.log(training.num_points), rtol=1e-5)
    np.testing.assert_allclose(got.collision[:, 1], (11 * 8 + 8**2) / many**2, rtol=1e-4)


@pytest.mark.parametrize("name", ["translations", "rotations"])
def test_of_a_closed_set_every_weight_is_split(name):
    """Each point is then |G| points: H grows by log |G|, phi_C is divided, and phi is the same."""
    group, images, labels = case(name, n=8)
    order = group.order
    closed = orbit_of(group, images).reshape(-1, *images.shape[1:])
    repeated = np.repeat(labels, order)
    times, key = TIMES[2:], jax.random.key(3)
    plain, split = (draw(closed, repeated, times, key, 40, each) for each in (None, group))
    np.testing.assert_array_equal(plain.index, split.index)
    np.testing.assert_allclose(split.entropy, plain.entropy + np.log(order), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(split.collision, plain.collision / order, rtol=2e-3)
    np.testing.assert_allclose(split.class_probability, plain.class_probability, atol=1e-3)
    assert training_set(closed, repeated, group).num_points == order * len(closed)


def test_neither_chunks_nor_maps_at_a_time_change_anything(monkeypatch):
    """One draw a device and one map at a time, as of 1 000 000 columns, or all together."""
    images = np.random.default_rng(0).uniform(size=(9, 3, 4, 2)).astype(np.float32)
    images[4] = 0.5
    group = Group.translations(3, 4)
    found = []
    for most in (posterior._Chunk(1, 1, 0), posterior._Chunk(2**29, 4096, 2**30)):
        monkeypatch.setattr(posterior, "_ON_CPU", most)
        found.append(draw(images, None, TIMES, jax.random.key(0), 20, group))
    for table in TABLES:
        a, b = (getattr(each, table) for each in found)
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_near_duplicates_under_a_map_keep_their_digits():
    """A point that is 1e-3 from another's mirror image: products alone would not tell them apart.

    All draws are of these two; they are far from the origin, and noise of t = 1e-3 joins them.
    """
    rng = np.random.default_rng(4)
    images = 30 + rng.uniform(size=(40, 9, 8, 1)).astype(np.float32)
    images[0] -= 20  # which takes the mean image from all of them
    images[2] = images[1, :, ::-1] + 2e-2 * rng.standard_normal((9, 8, 1)).astype(np.float32)
    labels = np.zeros(40, int)
    source, key = np.full(12, 2, np.int32), jax.random.key(5)
    found = tables(training_set(images, None, Group.flip()), source, key)
    z = noise_of(key, 12, 72)
    expected, _, _ = merged(Group.flip(), images, labels, source, z, TIMES)
    for table, values in expected.items():
        np.testing.assert_allclose(found[table][:, :5], values[:, :5], rtol=1e-3, atol=2e-3)
    assert 0.01 < expected["entropy"][:, 0].mean() < 0.69


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("dihedral", (4, 5, 1), "changes the shape of images of 4 x 5 pixels"),
        ("translations", (4, 4, 1), r"one of images of \(3, 4\), not of \(4, 4\)"),
        ("flip", (16,), r"maps images \(height, width, channels\), not \(16,\)"),
    ],
)
def test_images_that_a_group_does_not_map(name, shape, message):
    with pytest.raises(UserError, match=message):
        training_set(np.zeros((3, *shape)), None, GROUPS[name][0]())


def test_more_columns_than_can_be_counted():
    group = replace(Group.flip(), order=2**30)
    with pytest.raises(UserError, match=r"more than the 2\^31 that can be counted"):
        training_set(np.zeros((2, 3, 4, 1)), None, group)
