"""The command that compares a run with theories: what it writes, goes on with, and refuses."""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import two_convolutions
from rich.console import Console
from tiny_runs import digits, make_run

from diffusion_jax import data
from diffusion_jax.comparing.cells import denoised
from diffusion_jax.config import ModelConfig
from diffusion_jax.denoisers import EmpiricalDenoiser, LocalDenoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import theories as families
from diffusion_jax.runtime import backend, memory
from diffusion_jax.training import run
from experiments import theories, theories_options, theories_page
from experiments.theories_options import Options

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

BASE = ("--times", "0.3", "1.0", "--images", "8", "--batch-size", "8", "--accuracy", "0.05")
# Few of everything.
FEW = (
    *(*BASE, "--theories", "exact", "classes", "local", "equivariant", "--patches", "3", "7"),
    *("--equivariant-patches", "3", "--equivariant-images", "3"),
    *("--samples", "3", "--sample-calls", "4"),
)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Two convolutions in place of the UNet: any network can be compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on disjoint images; the source of the first has others left."""
    folder = tmp_path_factory.mktemp("runs")
    first = make_run(folder / "a", *digits(0, 20), per_class=12)
    return first, make_run(folder / "b", *digits(20, 32), seed=1)


def command(*arguments):
    """The command in this process, on its eight devices: its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on
        patch.setattr(sys, "argv", ["theories", *map(str, arguments)])
        try:
            theories.main()
        except SystemExit as exit:
            return exit.code
    return 0


@pytest.fixture
def undrawn(monkeypatch):
    """No figures, which other tests here look at."""
    monkeypatch.setattr(theories_page, "figures", lambda findings: [])


def result_of(out):
    return json.loads((out / "result.json").read_text())


PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(two_convolutions.__file__).parent)!r})
from two_convolutions import ModelConfig, build
from experiments import theories
ModelConfig.build = build
theories.main()
"""


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    """The command in a process, killed once some cells are there, and started again."""
    out = tmp_path_factory.mktemp("out")
    words = [sys.executable, "-c", PROGRAM, str(runs[0]), "--out", str(out), *FEW]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(list(out.glob("cells/exact_*.npz"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "result.json").exists()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command(runs[0], "--out", out, *FEW) == 0
    return out, printed.getvalue()


def near(one, other):
    """Two results are the same, but for the rounding of other devices and batches."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            near(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each in zip(one, other, strict=True):
            near(*each)
    else:
        assert one == other or one == pytest.approx(other, rel=2e-3, abs=2e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_killed_comparison_goes_on_to_the_same_numbers(compared, runs, tmp_path):
    out, text = compared
    assert re.search(r"[2-9] of 30 cells were computed before", text)
    # Cells, states and samples that are gone or damaged are made again.
    again = tmp_path / "again"
    shutil.copytree(out, again)
    cells = again / "cells"
    gone = [*sorted(cells.glob("classes_*"))[:2], *cells.glob("samples_exact*")]
    for path in gone:
        path.unlink()
    for path in (*sorted(cells.glob("exact_*"))[:1], *sorted(cells.glob("states_*"))[:1]):
        path.write_bytes(path.read_bytes()[:100])
    assert command(runs[0], "--out", again, *FEW) == 0
    result = result_of(again)
    near(result, result_of(out))
    assert all(path.exists() for path in gone)


def test_what_is_written_is_what_the_definitions_say(compared, runs):
    out, text = compared
    result, model = result_of(out), run.load_model(runs[0])
    assert list(result["sources"]) == ["training", "held-out", "trajectories"]
    schedule = model.sampler.schedule
    times = np.asarray(schedule.time)
    steps = [int(np.abs(times - t).argmin()) for t in (0.3, 1.0)]
    assert result["steps"] == steps
    np.testing.assert_allclose(result["times"], times[steps], rtol=1e-6)
    # Along the trajectories: of the kept states, which are those of the model's own samples.
    points = data.load(model.config.data).centred()
    x = np.load(out / "cells" / f"states_{steps[0]:05d}_000000_000008.npy")
    at = np.full(len(x), steps[0])
    network = denoised(schedule, np.asarray(model.denoiser(x, at)), x, steps[0])
    for name, each in (
        ("exact", EmpiricalDenoiser(schedule, points)),
        ("local_3", LocalDenoiser(schedule, points, 3)),
    ):
        theory = denoised(schedule, np.asarray(each(x, at)), x, steps[0])
        variance = ((network - network.mean(0)) ** 2).sum() * 8 / 7
        found = result["sources"]["trajectories"]["resemblance"][name]
        expected = 1 - ((network - theory) ** 2).sum() / variance
        assert found["r_squared"][0]["value"] == pytest.approx(expected, rel=1e-3)
        assert found["network_loss"][0]["value"] is None
        training = result["sources"]["training"]["resemblance"][name]
        assert training["theory_loss"][0]["value"] > 0
        for estimate in training["r_squared"]:
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    # On training images no theory's loss is below the exact score's, but by chance.
    training = result["sources"]["training"]
    assert training["closest"][0]["name"].partition("_")[0] in families.FAMILIES
    assert training["resemblance"]["equivariant_3"]["images"] == 3
    best = training["patches"]["local"][0]
    r_squared = {k: training["resemblance"][f"local_{k}"]["r_squared"][0] for k in (3, 7)}
    assert best["patch"] == max(r_squared, key=lambda k: r_squared[k]["value"])
    assert best["r_squared"] == r_squared[best["patch"]]
    assert best["least"] <= best["patch"] <= best["largest"]
    assert set(result["sampled_with"]["local"]) <= {"local_3", "local_7"}
    assert result["samples"]["network"]["correlation"]["value"] == pytest.approx(1)
    assert set(result["samples"]) == {"network", "exact", "classes", "local", "equivariant"}
    assert result["two_moments"]["t_S_phi"]["value"] > 0
    assert result["t_S_phi"]["value"] > result["t_C_phi"]["value"]
    for word in ("R^2 of the network by each theory, on held-out", "Samples from one seed"):
        assert word in text
    page = (out / "report.html").read_text()
    names = {path.name for path in out.glob("*.png")}
    figures = ("resemblance", "losses", "patches", "two_moments", "samples")
    assert names == {f"{name}.png" for name in figures}
    assert page.count("data:image/png;base64,") == len(names)
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.usefixtures("undrawn")
def test_times_theories_and_images_add_to_what_is_done(compared, runs, tmp_path, capsys):
    out = tmp_path / "more"
    shutil.copytree(compared[0], out)
    more = ("--times", "0.3", "0.6", "1.0", *FEW[3:])
    assert command(runs[0], "--out", out, *more) == 0
    assert "30 of 45 cells were computed before" in capsys.readouterr().out
    assert len(result_of(out)["times"]) == 3
    assert command(runs[0], "--out", out, *FEW[:-4], "--samples", "0") == 0
    assert "30 of 30 cells were computed before" in capsys.readouterr().out
    found, earlier = result_of(out), result_of(compared[0])
    assert found["sources"] == earlier["sources"]
    assert not found["samples"]
    assert command(runs[0], "--out", out, *FEW, "--seed", "1") == 1
    assert "holds batches of another experiment (seed: 0 -> 1)" in capsys.readouterr().err


@pytest.mark.usefixtures("rendered")
def test_two_networks(runs, tmp_path, capsys):
    out = tmp_path / "out"
    options = (*BASE, "--theories", "exact", "--samples", "3", "--sample-calls", "4")
    assert command(runs[0], "--other", runs[1], "--out", out, *options) == 0
    result = result_of(out)["other"]
    assert list(result["sources"]) == ["training", "held-out", "trajectories", "other's training"]
    # By hand: the other network sees images less its own mean.
    one, two = map(run.load_model, runs)
    step = result_of(out)["steps"][1]
    x = np.load(out / "cells" / f"states_{step:05d}_000000_000008.npy")
    at, schedule = np.full(len(x), step), one.sampler.schedule
    signal = np.sqrt(np.asarray(schedule.alpha_bar))[step]
    moved = (x + signal * (one.mean - two.mean)).astype(np.float32)
    D = denoised(schedule, np.asarray(one.denoiser(x, at)), x, step)
    other = denoised(schedule, np.asarray(two.denoiser(moved, at)), x, step)
    expected = 1 - ((D - other) ** 2).sum() / (((D - D.mean(0)) ** 2).sum() * 8 / 7)
    found = result["sources"]["trajectories"]["r_squared"][1]["value"]
    assert found == pytest.approx(expected, rel=1e-3)
    assert result["to_nearest_training_image"]["other"]["correlation"]["value"] <= 1
    assert {path.name for path in out.glob("other*.png")} == {"other.png", "other_samples.png"}
    assert "The two networks:" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_another_run_that_cannot_be_compared(runs, tmp_path, capsys):
    images, labels = digits(8, 20)

    def refused(folder):
        out = tmp_path / "out"
        assert command(runs[0], "--other", folder, "--out", out, *FEW) == 1
        assert not out.exists()
        return capsys.readouterr().err

    small = make_run(tmp_path / "small", images[:, :6], labels)
    assert "images of different shapes: (8, 8, 1), and (6, 8, 1)" in refused(small)
    assert "another noise schedule" in refused(make_run(tmp_path / "c", images, labels, steps=30))
    assert "the same parameters" in refused(runs[0])
    # Images in common are no reason to refuse, but to be told: 12 of the first run's 12 to 20.
    shared = make_run(tmp_path / "shared", images, labels, seed=2)
    options = ("--images", "4", *BASE[:3], *BASE[5:], "--samples", "0", "--theories", "exact")
    out = tmp_path / "shared_out"
    assert command(runs[0], "--other", shared, "--out", out, *options) == 0
    warnings = result_of(out)["warnings"]
    assert any(re.match("8 of 24 training images are training images of", w) for w in warnings)
    assert any(re.match("4 of 4 held-out images are training images of", w) for w in warnings)


@pytest.mark.usefixtures("undrawn")
def test_a_source_without_images_left(runs, tmp_path, capsys):
    """The second run was trained on all: nothing is held out, which is said, and the rest done."""
    out = tmp_path / "out"
    options = (*BASE, "--theories", "exact", "--samples", "0")
    assert command(runs[1], "--out", out, *options) == 0
    result = result_of(out)
    assert list(result["sources"]) == ["training", "trajectories"]
    (said,) = result["warnings"]
    assert said == "no images are held out: the run was trained on all images of its source"
    assert said in " ".join(capsys.readouterr().out.split())
    # Too many asked for: the source says how many it has.
    words = ("--held-out", "9", "--out", tmp_path / "o", "--sources", "held-out", *options)
    assert command(runs[0], *words) == 1
    assert "those asked for = 12 + 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "1"), "images = 1 must be at least 2"),
        (("--equivariant-images", "1"), "equivariant_images = 1 must be at least 2"),
        (("--times", "70.0"), "times [70.0] must lie in the schedule"),
        (("--times", "1.0", "1.0001"), "two of the times [1.0, 1.0001] fall on one of 25 steps"),
        (("--theories", "local_5"), "there is no theory 'local_5'; choose from exact"),
        (("--theories", "exact", "exact"), "each once"),
        (("--sources", "nowhere"), "must be of training, held-out, trajectories"),
        (("--sample-calls", "26"), "between 2 and 25"),
        (("--held-out", "0"), "held_out = 0 must be at least 1"),
        (("--accuracy", "0"), "accuracy = 0.0 must be positive"),
        (("--patches", "3", "4"), "patch = 4 must be an odd number of pixels from 1 to 15"),
        (("--patches", "17"), "patch = 17 must be an odd number of pixels from 1 to 15"),
        (("--patches", "3", "3"), "patches = (3, 3) must name at least one patch, and each once"),
        (
            ("--theories", "circular", "--equivariant-patches", "9"),
            "patch = 9 must be an odd number of pixels from 1 to 7",
        ),
        (("--batch-size", "0"), "batch_size must be at least 1"),
    ],
)
def test_bad_options_are_refused(runs, tmp_path, capsys, options, message):
    assert command(runs[0], "--out", tmp_path / "x", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_takes_too_long_is_left_out_and_says_so(monkeypatch):
    """The paper's LSUN: 40 000 images of 64 x 64 x 3."""
    pixels = np.broadcast_to(np.zeros(1, np.uint8), (40_000, 64, 64, 3))
    labels = np.repeat([0, 1], 20_000)
    images, warnings, text = data.ImageSet(pixels, labels, ("a", "b")), [], io.StringIO()
    console = Console(file=text, width=200)
    chosen = theories_options.families_of(Options(Path()), images, 8, warnings, console)
    assert chosen[0] == "exact"
    assert not {"local", "equivariant", "circular"} & {*chosen}
    assert re.search("local is left out: local takes about .* hours on two cores", warnings[-2])
    assert warnings[-1].endswith("--theories equivariant asks for it")
    asked = Options(Path(), theories=("equivariant",))
    assert theories_options.families_of(asked, images, 8, [], console) == ["equivariant"]
    assert re.search("equivariant takes about [0-9]+ hours on two cores", text.getvalue())
    monkeypatch.setattr(theories_options, "available", lambda: memory.Available(2**30))
    warnings.clear()
    chosen = theories_options.families_of(Options(Path()), images, 8, warnings, console)
    assert chosen == ["exact"]
    assert "GiB, of which 1 are free" in warnings[0]


def test_runs_that_cannot_be_compared(runs, tmp_path, capsys):
    folder = tmp_path / "gone"
    shutil.copytree(runs[0], folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["data"] = str(tmp_path / "nowhere.npz")
    (folder / "config.json").write_text(json.dumps(config))
    assert command(folder, *FEW) == 1
    assert "the run's training images cannot be read" in capsys.readouterr().err
    one = data.ImageSet(np.zeros((1, 8, 8, 1), np.uint8), None, ())
    model = run.load_model(runs[0])
    with pytest.raises(UserError, match="one training image only"):
        theories.setting_of(Options(tmp_path), model, one, Console())
    unlabelled = data.ImageSet(digits(0, 9)[0], None, ())
    with pytest.raises(UserError, match="the theory classes needs images of two classes"):
        theories.setting_of(Options(tmp_path, theories=("classes",)), model, unlabelled, Console())
