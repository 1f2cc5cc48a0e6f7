"""Where a network is compared with theories, cell by cell, and samples from one seed."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from diffusion_jax.comparing import samples, sources, summary
from diffusion_jax.comparing.cells import Cells, denoised
from diffusion_jax.comparing.table import Asked
from diffusion_jax.data.images import ImageSet
from diffusion_jax.denoisers import EmpiricalDenoiser, GaussianDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import resemblance
from diffusion_jax.regimes.theories import Theory
from diffusion_jax.runtime.devices import fold_in_each
from diffusion_jax.sampling import backward, sample, sampling_loop
from diffusion_jax.schedule import linear_schedule

SHAPE = (4, 3, 2)
SCHEDULE = linear_schedule(30)
CONSOLE = Console(quiet=True)
KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).standard_normal((7, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def image_set():
    pixels = np.random.default_rng(1).integers(0, 256, (15, *SHAPE), np.uint8)
    return ImageSet(pixels, None, ())


def states_of(process, steps, folder, count=5, batch_size=8):
    folder.mkdir(exist_ok=True)
    source = sources.trajectories(process, SHAPE, count, KEY, steps, folder, batch_size, CONSOLE)
    assert source.count == count
    return {step: source.at(step)[0] for step in steps}


def test_trajectories_are_those_of_the_samples(points, tmp_path):
    process = backward(SCHEDULE, EmpiricalDenoiser(SCHEDULE, points))
    states = states_of(process, [3, 12, 29], tmp_path)
    end = sample(process.sampler, process.denoiser, KEY, 5, SHAPE)
    keys = fold_in_each(KEY, np.arange(5))
    for step, x in states.items():
        there = sampling_loop(process.sampler, process.denoiser, jnp.asarray(x), keys, step + 1)
        np.testing.assert_allclose(there, end, atol=1e-5)
    assert sources.trajectories(process, SHAPE, 5, KEY, [3], tmp_path, 8, CONSOLE).at(3)[1] is None


def test_trajectories_go_on_from_what_is_kept(points, tmp_path):
    """After a kill, with more stops, in batches of another size, and with a damaged file."""
    process = backward(SCHEDULE, EmpiricalDenoiser(SCHEDULE, points))
    at_once = states_of(process, [2, 9, 20], tmp_path / "once", count=11)
    broken = dataclasses.replace(process.denoiser, points=np.nan * points)
    with pytest.raises(UserError, match="not finite"):
        states_of(process._replace(denoiser=broken), [9], tmp_path / "broken", 11)
    folder = tmp_path / "pieces"
    states_of(process, [20], folder, count=11)
    kept = folder / "states_00020_000000_000008.npy"
    content = kept.read_bytes()
    states_of(process, [2, 20], folder, count=11)
    (folder / "states_00002_000008_000016.npy").write_bytes(b"torn")
    # Nothing is run but what is missing: a network that breaks is not asked for the rest.
    found = states_of(process, [2, 9, 20], folder, count=11)
    for step, x in at_once.items():
        np.testing.assert_allclose(found[step], x, atol=1e-5)
    assert kept.read_bytes() == content
    again = states_of(process._replace(denoiser=broken), [2, 9, 20], folder, count=11)
    np.testing.assert_array_equal(again[9], found[9])
    with pytest.raises(UserError, match="begin at step 29"):
        states_of(process, [30], folder)


def test_noised_images_are_noised_images(image_set):
    mean = np.array([0.4, 0.5], np.float32)
    some, every = (sources.noised("held-out", image_set, mean, n, KEY, SCHEDULE) for n in (6, 15))
    x, noise = every.at(17)
    signal, variance = (
        np.asarray(table)[17] for table in (SCHEDULE.alpha_bar, SCHEDULE.noise_variance)
    )
    a = (x - np.sqrt(variance) * noise) / np.sqrt(signal)
    rows = {tuple(row) for row in np.rint(255 * (a + mean)).astype(int).reshape(15, -1)}
    assert rows == {tuple(row) for row in image_set.images.reshape(15, -1).astype(int)}
    # The first are the same, whatever the number, and the noise is one at all times.
    np.testing.assert_array_equal(some.at(17)[0], x[:6])
    np.testing.assert_array_equal(every.at(3)[1], noise)
    assert abs(noise.std() - 1) < 0.2
    assert some.key != every.key
    assert some.key.startswith("held-out_")
    other = sources.noised("held-out", image_set, mean, 6, jax.random.key(5), SCHEDULE)
    assert other.key != some.key


@pytest.fixture(scope="module")
def compared(points, image_set):
    """A Gaussian in the network's place, and two theories: itself and the exact score."""
    mean = np.zeros(2, np.float32)
    source = sources.noised("training", image_set, mean, 11, KEY, SCHEDULE)
    network = GaussianDenoiser.fit(SCHEDULE, points)
    made = []

    def theory(name, images, batch_size=8):
        def make():
            made.append(name)
            return network if name == "itself" else EmpiricalDenoiser(SCHEDULE, points)

        return Asked(name, make, images, [source], 0.1, batch_size)

    return source, network, theory, made


def test_a_network_that_is_the_theory_and_one_that_is_not(compared, tmp_path, points):
    source, network, theory, _ = compared
    cells = Cells(tmp_path, SCHEDULE, [5, 20], network, batch_size=8)
    every = [theory("itself", 11), theory("exact", 11)]
    cells.fill(every, CONSOLE)
    itself, exact = (cells.found(each) for each in every)
    for step in (5, 20):
        found = resemblance.summarize(itself["training", step])
        np.testing.assert_allclose(found.r_squared.value, 1, atol=1e-9)
        assert found.excess.value == 0
        # Against the definition, by hand.
        x, noise = source.at(step)
        steps = np.full(11, step)
        own, theirs = network(x, steps), EmpiricalDenoiser(SCHEDULE, points)(x, steps)
        D, other = (denoised(SCHEDULE, np.asarray(each), x, step) for each in (own, theirs))
        found = exact["training", step]
        np.testing.assert_allclose(found.error, ((D - other) ** 2).sum((1, 2, 3)), rtol=1e-3)
        np.testing.assert_allclose(found.network, ((D - D.mean(0)) ** 2).sum((1, 2, 3)), rtol=1e-3)
        np.testing.assert_allclose(
            found.theory_loss, ((theirs - noise) ** 2).mean((1, 2, 3)), rtol=1e-3
        )


def test_cells_grow_and_damaged_ones_are_computed_again(compared, tmp_path):
    source, network, theory, made = compared
    at_once = Cells(tmp_path / "once", SCHEDULE, [5, 20], network, batch_size=8)
    pieces = Cells(tmp_path / "pieces", SCHEDULE, [5, 20], network, batch_size=8)
    for cells in (at_once, pieces):
        cells.folder.mkdir()
    at_once.fill([theory("exact", 11, 16)], CONSOLE)
    pieces.fill([theory("exact", 3)], CONSOLE)
    assert len(pieces.read("exact", source, 5)) == 3
    pieces.fill([theory("exact", 11)], CONSOLE)
    whole = pieces.path("exact", source, 20)
    content = whole.read_bytes()
    pieces.path("exact", source, 5).write_bytes(content[: len(content) // 3])
    network_path = pieces.folder / f"network_{source.key}_00005.npy"
    network_path.write_bytes(b"torn")
    assert pieces.read("exact", source, 5) is None
    with pytest.raises(UserError, match="is gone or damaged"):
        pieces.found(theory("exact", 11))
    text = io.StringIO()
    pieces.fill([theory("exact", 11)], Console(file=text))
    assert "1 of 2 cells were computed before" in text.getvalue()
    for step in (5, 20):
        one, other = (each.read("exact", source, step) for each in (at_once, pieces))
        for name, value in vars(one).items():
            np.testing.assert_allclose(getattr(other, name), value, rtol=1e-4)
    # Nothing is left to do: no theory is made, and fewer images are the first of them.
    made.clear()
    pieces.fill([theory("exact", 4)], CONSOLE)
    assert not made
    few = pieces.found(theory("exact", 4))["training", 20]
    assert (len(few), few.draws) == (4, 11)
    # A cell whose mean was that of other images is none.
    fewer = dataclasses.replace(source, count=9)
    assert pieces.read("exact", fewer, 20) is None


def test_samples_with_one_denoiser_a_stretch_of_steps(points, tmp_path):
    exact, gaussian = EmpiricalDenoiser(SCHEDULE, points), GaussianDenoiser.fit(SCHEDULE, points)
    processes = {
        name: backward(SCHEDULE, each, "ddim", 6)
        for name, each in (("exact", exact), ("gaussian", gaussian))
    }

    def drawn(choice, name="some"):
        return samples.drawn(tmp_path, name, choice, processes.__getitem__, KEY, 5, SHAPE)

    alone = drawn(["exact"] * 6)
    np.testing.assert_allclose(alone, processes["exact"].sample(KEY, 5, SHAPE), atol=1e-5)
    choice = ["gaussian", "gaussian", "gaussian", "exact", "gaussian", "exact"]
    assert samples.stretches(choice) == [
        ("exact", 6, 5),
        ("gaussian", 5, 4),
        ("exact", 4, 3),
        ("gaussian", 3, 0),
    ]
    mixed = drawn(choice)
    x, keys = (
        samples._noise(fold_in_each(KEY, np.arange(5)), SHAPE),
        fold_in_each(KEY, np.arange(5)),
    )
    for step in range(5, -1, -1):
        process = processes[choice[step]]
        x = sampling_loop(process.sampler, process.denoiser, x, keys, step + 1, step)
    np.testing.assert_allclose(mixed, x, atol=1e-5)
    assert np.abs(mixed - alone).max() > 0.1
    # Kept: nothing is drawn again, unless the file is damaged.
    processes.clear()
    np.testing.assert_array_equal(drawn(choice), mixed)
    for path in tmp_path.glob("samples_*"):
        path.write_bytes(b"torn")
    with pytest.raises(KeyError):
        drawn(choice)


def test_the_patch_of_each_step_is_the_best_at_the_nearest_time():
    network = np.random.default_rng(0).standard_normal((9, 20))
    mean = network.mean(axis=0)

    def cell(size):
        other = network + size * np.random.default_rng(1).standard_normal((9, 20))
        return resemblance.sums(network, other, mean, 9)

    theories = [
        Theory("local_3", "local", 3),
        Theory("local_5", "local", 5),
        Theory("exact", "exact"),
    ]
    sizes = {"local_3": (0.1, 0.9), "local_5": (0.5, 0.2), "exact": (1.0, 1.0)}
    steps = [4, 20]
    tables = {
        name: {("training", step): cell(size) for step, size in zip(steps, each, strict=True)}
        for name, each in sizes.items()
    }
    times = np.asarray(SCHEDULE.time, np.float64)
    taken = samples.chosen(tables, theories, "training", steps, SCHEDULE, times[[0, 4, 12, 29]])
    assert taken["exact"] == ["exact"] * 4
    assert taken["local"] == ["local_3", "local_3", taken["local"][2], "local_5"]
    middle = times[4] * times[20] > times[12] ** 2
    assert taken["local"][2] == ("local_3" if middle else "local_5")
    found = summary.summarize(tables, theories, ["training"], steps, 0)
    assert [each.name for each in found.closest["training"]] == ["local_3", "local_5"]
    assert [each.name for each in found.patches["training"]["local"]] == ["local_3", "local_5"]
    alone = resemblance.summarize(tables["exact"]["training", 4])
    assert found.resemblance["training"]["exact"][0].r_squared == alone.r_squared


def test_rows_of_samples(points):
    found = summary.row(points[:4], points[:4], points, 0)
    assert found.correlation.value == pytest.approx(1)
    assert (found.neighbour_ratio, found.memorised) == (0, 1)
    nearest, correlation, cosine = summary.to_nearest(points[:4] + np.float32(1e-3), points, 0)
    np.testing.assert_array_equal(nearest, points[:4])
    assert correlation.value > 0.999
    assert cosine.value > 0.999
