"""The Python that the documentation shows does run, and gives what is said of it."""

import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import doc_pages
import jax
import numpy as np
import pytest
from lmdb_folders import write_folder
from servers import serving, small_model
from tiny_runs import digits, make_run

import diffusion_jax as dj
from diffusion_jax.data import SOURCES, load
from diffusion_jax.presets import data_defaults
from diffusion_jax.regimes import analysis as numbers
from diffusion_jax.runtime.files import write_json
from diffusion_jax.sampling.backward import SAMPLERS

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

SERVER = "http://127.0.0.1:8000"
# What would take long: how many images of an LMDB, and how small the errors of an analysis.
SMALLER = {
    "200_000": "3",
    "calls=50": "calls=5",
    "calls=100": "calls=5",
    "analyse(images, labels)": "analyse(images, labels, accuracy=0.05)",
    'digits.npz"))': 'digits.npz"), accuracy=0.05)',
}
PATHS = [
    path
    for path in doc_pages.paths()
    if any(language == "python" for _, language, _ in doc_pages.page(path).code)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what the pages assume: a run, an analysis, images of the reader's own."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "runs" / "regimes" / "mnist").mkdir(parents=True)
    images, labels = digits(0, 20)
    made = make_run(folder / "made", images, labels, steps=100)
    made.rename(folder / "runs" / "sample")
    analysis = dj.analyse(images, labels, accuracy=0.05).analysis
    write_json(folder / "runs" / "regimes" / "mnist" / "result.json", numbers.to_json(analysis))
    shutil.copytree(doc_pages.ROOT / "docs" / "runs", folder / "docs" / "runs")
    np.save(folder / "images.npy", np.tile(images, (160, 1, 1, 1)))
    write_folder(folder / "DATA" / "bedroom_train_lmdb", [(256, 256)] * 3)
    return folder


@pytest.fixture
def execute(world, tmp_path, monkeypatch):
    """Runs the blocks of a page in order, in a folder like `world`; gives the names they made."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    images, labels = digits(0, 20)
    names = {"dj": dj, "images": images, "labels": labels}
    tables = [(table, dict(table)) for table in (SOURCES, SAMPLERS)]

    with ExitStack() as servers:

        def run(path):
            for line, language, text in doc_pages.page(path).code:
                if language != "python":
                    continue
                if SERVER in text:
                    address, _ = servers.enter_context(serving(small_model()))
                    text = text.replace(SERVER, address)
                for said, here in SMALLER.items():
                    text = text.replace(said, here)
                # A traceback names the page and the line in it.
                exec(compile("\n" * line + text, path, "exec"), names)
            return names

        yield run
    for table, before in tables:
        table.clear()
        table.update(before)


def readme(names):
    assert {"t_S_phi", "t_C_phi"} <= set(names["study"].times)
    assert names["images"].shape == (16, 16, 16, 1)
    np.testing.assert_allclose(np.clip(names["images"], 0, 1), names["images"], atol=1e-6)


def python(names):
    """The table is the one that the page shows; the network learns; its derivative is one."""
    (shown,) = [
        text for _, language, text in doc_pages.page("docs/python.md").code if language == "text"
    ]
    printed, shown = repr(names["study"]).splitlines(), shown.splitlines()
    assert printed[:3] == shown[:3]
    rows, expected = (
        {
            line.split()[0]: re.findall(r"-?\d\.\d+", line.partition("  ")[2])
            for line in lines
            if re.match(" (Lambda|t_)", line)
        }
        for lines in (printed, shown)
    )
    assert list(rows) == list(expected)
    assert len(rows) == 8
    for name, values in expected.items():  # another processor rounds otherwise
        np.testing.assert_allclose(*(np.array(v, float) for v in (rows[name], values)), rtol=0.02)

    assert names["state"].step == 200
    # Of unit noise in 64 pixels: what is left says that something was learnt.
    assert names["metrics"]["loss"] < 0.2
    assert names["samples"].shape == (16, 8, 8, 1)

    fast = jax.jit(lambda x, step: names["run"].denoiser(x, step))
    x, v, step = (names[name] for name in ("x", "direction", "step"))
    np.testing.assert_allclose(names["noise"], fast(x, step), atol=1e-5)
    difference = (fast(x + 1e-2 * v, step) - fast(x - 1e-2 * v, step)) / 2e-2
    error = np.linalg.norm(names["change"] - difference) / np.linalg.norm(difference)
    assert error < 1e-2  # of a second order in the step, and float32's digits over it


def geometry(names):
    g = 1 / np.expm1(2 * float(names["schedule"].time[names["step"]]))
    share = g * np.array([100, 10, 5, 0.5])
    np.testing.assert_allclose(names["found"].eigenvalues[0], share / (1 + share), rtol=0.03)
    assert names["found"].open_modes[0] == 2
    distances = np.abs(names["samples"][:, None] - names["points"][1::2][None]).max(axis=2)
    assert distances.min(axis=1).max() < 0.1  # training points of the class


def memorisation(names):
    """What is printed is the closed form of these two sets, within its interval."""
    training, held_out = (names[name].astype(np.float64) for name in ("training", "held_out"))
    denoiser, g = names["denoiser"], 1 / np.expm1(1.0)
    centred = [x - training.mean(axis=0) for x in (training, held_out)]
    modes = np.asarray(denoiser.modes, np.float64)
    along = [np.mean((x @ modes.T) ** 2, axis=0) for x in centred]
    rest = [np.mean(np.sum(x**2, axis=1)) - np.sum(a) for x, a in zip(centred, along, strict=True)]
    shares = g * (along[1] - along[0]) / (1 + g * np.asarray(denoiser.eigenvalues))
    expected = 0.5 * (shares.sum() + g * (rest[1] - rest[0]))
    assert names["gap"].low < expected < names["gap"].high
    assert expected > 3


def serve(names):
    """The client that is shown asks a server, and has the numbers that it prints."""
    assert names["x"].shape == (8, 8, 1)
    assert abs(names["state"]["time"] - 1.0) < 0.05
    assert len(names["fork"]["fates"]) == 32
    assert sum(each["count"] for each in names["fork"]["classes"]) == 32


def data(names):
    """The source is one that commands know; a class is darker, and the images are prepared."""
    loaded = load(data_defaults("squares"))
    dark, light = (loaded.images[loaded.labels == label] for label in (0, 1))
    assert dark.max() < 128
    assert light.min() >= 127
    assert len(list(names["Path"]("PREPARED").rglob("*.array_record*"))) == 1


def regimes(names):
    """Steps of the schedule run with the noise; phi_C rises from a coin's toss to certainty."""
    assert np.all(np.diff(names["schedule"].time) > 0)
    assert names["phi_c"].shape == (6,)
    assert names["phi_c"][0] < 0.2 < 0.9 < names["phi_c"][-1]


def results_memorisation(names):
    with np.load("digits16.npz", allow_pickle=False) as file:
        assert file["images"].shape == (1000, 16, 16, 1)
        assert sorted(np.unique(file["labels"])) == ["1", "8"]


def runs(names):
    """The images are made again as they are shipped."""
    made, shipped = (
        np.load(folder / "docs" / "runs" / "digits.npz", allow_pickle=False)
        for folder in (Path.cwd(), doc_pages.ROOT)
    )
    assert names["images"].shape == (16, 16, 16, 1)
    for name in ("images", "labels"):
        np.testing.assert_array_equal(made[name], shipped[name])


def installation(names):
    """What goes with a package is itself and what no other needs."""
    assert "grpcio" in names["gone"]["tensorboard"]
    assert names["gone"]["numpy"] == set()


def diffusion(names):
    """The clock; unit variance of x_t at large t; the exact score's samples are training images."""
    assert abs(float(names["schedule"].time[442]) - 1) < 2e-3
    assert names["x_t"].shape == (50, 8, 8, 1)
    assert abs(float(names["x_t"].std()) - 1) < 0.05
    points = np.asarray(names["points"])
    distances = np.abs(names["samples"][:, None] - points[None]).max(axis=(2, 3, 4))
    assert distances.min(axis=1).max() < 0.1


# What is said of the numbers that a page's code makes, beside that it runs.
SAID = {
    "README.md": readme,
    "docs/concepts/diffusion.md": diffusion,
    "docs/data.md": data,
    "docs/developers/installation.md": installation,
    "docs/geometry.md": geometry,
    "docs/memorisation.md": memorisation,
    "docs/python.md": python,
    "docs/regimes.md": regimes,
    "docs/results/memorisation/README.md": results_memorisation,
    "docs/runs/README.md": runs,
    "docs/serve.md": serve,
}


@pytest.mark.parametrize("path", PATHS)
def test_the_python_of_a_page(path, execute):
    names = execute(path)
    if path in SAID:
        SAID[path](names)


def test_what_is_said_is_of_pages_that_are_there():
    assert set(SAID) <= set(PATHS)
