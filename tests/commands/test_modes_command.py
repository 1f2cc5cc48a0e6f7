"""The command that measures open modes: what it writes, goes on with, and refuses."""

import json
import re
import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_convolutions
from tiny_runs import digits, make_run, params_of

from diffusion_jax import data
from diffusion_jax.comparing import modes as comparing
from diffusion_jax.comparing.modes import Measured, stops_of
from diffusion_jax.config import ModelConfig
from diffusion_jax.errors import UserError
from diffusion_jax.plots import style
from diffusion_jax.regimes import transitions
from diffusion_jax.runtime import backend
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training import run
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.saved_state import to_saved
from diffusion_jax.training.step import make_optimizer, state_of
from experiments import modes, modes_options, modes_page, run_or_data

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

MODES = 6
FEW = (
    *("--times", "0.1", "0.5", "--draws", "4", "--modes", str(MODES), "--batch-size", "8"),
    *("--accuracy", "0.05", "--learned-samples", "6", "--sample-calls", "4"),
)
STEPS = (3, 6, 12)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Two convolutions in place of the UNet: any network has modes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        yield


def train(folder, images):
    """Checkpoints of networks that were not trained either, but others each time."""
    config = run.load_model(folder).config
    optimizer, about = make_optimizer(config.training), run.data_of(data.load(config.data))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in STEPS:
            params = params_of(config, images, step)
            saved = to_saved(state_of(params, optimizer, jax.random.key(0)))
            checkpoints.save(step, saved, run.metadata_of(config, about))
            checkpoints.wait()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: the source of the first has images left; the second has a single checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    images, labels = digits(0, 20)
    first = train(make_run(folder / "a", images, labels, per_class=12), images)
    return first, make_run(folder / "b", *digits(20, 32), seed=1)


def command(*arguments):
    """The command in this process, on its eight devices: its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on
        patch.setattr(sys, "argv", ["modes", *map(str, arguments)])
        try:
            modes.main()
        except SystemExit as exit:
            return exit.code
    return 0


@pytest.fixture(autouse=True, scope="module")
def measured_once():
    """The exact score's times of each set of images, which other tests are about, once."""
    known, measure = {}, transitions.of_points

    def of_points(points, labels, key, accuracy):
        name = points.tobytes()
        if name not in known:
            known[name] = measure(points, labels, key, accuracy)
        return known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transitions, "of_points", of_points)
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """No figures, which two tests here look at."""
    monkeypatch.setattr(modes_page, "figures", lambda findings: [])


def result_of(out):
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def measured(runs, tmp_path_factory):
    """The command on the first run. Of its figures one is rendered, which takes long."""
    out, rendered, png = tmp_path_factory.mktemp("out"), [], style.png

    def first(figure):
        rendered.append(png(figure) if not rendered else rendered[0])
        return rendered[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "png", first)
        assert command(runs[0], "--out", out, *FEW) == 0
    return out


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_command_goes_on_to_the_same_numbers(
    measured, runs, tmp_path, monkeypatch, capsys
):
    out, count, save = tmp_path / "out", [], Measured.save

    def stop(cell, path):
        count.append(path)
        if len(count) > 5:
            raise KeyboardInterrupt
        save(cell, path)

    with monkeypatch.context() as patch:
        patch.setattr(Measured, "save", stop)
        assert command(runs[0], "--out", out, *FEW) == 130
    cells = out / "cells"
    # What a disk may do.
    damaged = [count[0], next(cells.glob("learned_*")), next(cells.glob("states_*"))]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    assert command(runs[0], "--out", out, *FEW) == 0
    assert "4 of 24 cells were computed before" in capsys.readouterr().out
    assert result_of(out) == result_of(measured)


def test_the_gaussian_is_that_of_the_closed_form(measured, runs):
    result = result_of(measured)
    images = data.load(run.load_model(runs[0]).config.data).centred()
    variances = np.linalg.eigvalsh(np.cov(images.reshape(24, -1).T, bias=True))[::-1]
    np.testing.assert_allclose(result["variances"][:8], variances[:8], rtol=1e-5)
    np.testing.assert_allclose(result["mode_times"][:8], np.log1p(variances[:8]) / 2, rtol=1e-5)
    for i, t in enumerate(result["times"]):
        kept = np.exp(-2 * t) * variances.clip(0)
        M = kept / (kept - np.expm1(-2 * t))
        for source in ("training", "held-out", "trajectories"):
            found = result["sources"][source]["gaussian"]
            np.testing.assert_allclose(found["eigenvalues"][i], M[:MODES], rtol=1e-4)
            trace = {name: pytest.approx(M.sum(), rel=1e-4) for name in ("value", "low", "high")}
            assert found["trace"][i] == trace
            count = int(min(MODES, (M > 0.5).sum()))
            assert found["open_modes"][i]["value"] == count
            assert found["at_least"][i] == (count == MODES)
            assert found["asymmetry"][i]["value"] == 0


def test_the_network_is_that_of_its_whole_jacobian(measured, runs):
    """Along the kept states, whose parameters are random: the Jacobian has no symmetry at all."""
    result, model = result_of(measured), run.load_model(runs[0])
    schedule = model.sampler.schedule
    for i, step in enumerate(result["steps"]):
        x = np.load(measured / "cells" / f"states_{step:05d}_000000_000008.npy")[:4]
        eps = jax.jit(
            jax.jacfwd(lambda y, step=step: model.denoiser(y[None], jnp.array([step]))[0])
        )
        deviation = float(np.sqrt(schedule.noise_variance[step]))
        M = np.stack([np.eye(64) - deviation * np.asarray(eps(y)).reshape(64, 64) for y in x])
        found = result["sources"]["trajectories"]["network"]
        even, skew = M + M.transpose(0, 2, 1), M - M.transpose(0, 2, 1)
        values = np.linalg.eigvalsh(even / 2)[:, ::-1]
        np.testing.assert_allclose(
            found["eigenvalues"][i], values.mean(0)[:MODES], atol=2e-3, rtol=2e-3
        )
        assert max(found["residual"]) <= 1e-2  # to which the command asks for a network
        error = found["trace_error"][i] / 2  # of the mean of four draws
        trace = np.trace(M, axis1=1, axis2=2).mean()
        assert found["trace"][i]["value"] == pytest.approx(trace, abs=4 * error + 1e-3)
        norms = (np.linalg.norm(each, axis=(1, 2)) for each in (skew, even))
        ratio = np.divide(*norms).mean()
        assert found["asymmetry"][i]["value"] == pytest.approx(ratio, rel=0.5)


def test_what_is_written_hangs_together(measured, runs):
    result, model = result_of(measured), run.load_model(runs[0])
    assert list(result["sources"]) == ["training", "held-out", "trajectories"]
    assert list(result["sources"]["training"]) == ["network", "exact", "gaussian", "classes"]
    for name, found in result["sources"]["training"].items():
        for i, difference in enumerate(found["difference"]):
            loss, stein = (found[each][i]["value"] for each in ("noise_loss", "stein"))
            assert difference["value"] == pytest.approx(loss - stein, abs=1e-3 * (1 + loss)), name
    assert "noise_loss" not in result["sources"]["trajectories"]["network"]
    # Samples of each checkpoint, the first being those of its own parameters.
    learned = result["learned"]
    assert learned["updates"] == list(STEPS)
    drawn = np.load(measured / "cells" / "learned_00000003_4.npy")
    early = run.load_model(runs[0], step=3)
    own = early.backward("ddim", 4).sample(jax.random.key(0), 6, model.shape)
    np.testing.assert_allclose(drawn, own, atol=1e-4)
    images = data.load(model.config.data).centred().reshape(24, -1)
    values, vectors = np.linalg.eigh(np.cov(images.T, bias=True))
    ratio = np.var(drawn.reshape(6, -1) @ vectors[:, -1], ddof=1) / values[-1]
    assert learned["modes"][0]["ratio"][0]["value"] == pytest.approx(ratio, rel=1e-3)
    assert len(learned["modes"]) == 16
    page = (measured / "report.html").read_text()
    names = {path.name for path in measured.glob("*.png")}
    assert {"open_modes.png", "spectra.png", "asymmetry.png", "learned_modes.png"} <= names
    assert page.count("data:image/png;base64,") == len(names)
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.usefixtures("undrawn")
def test_draws_times_modes_and_theories_add_to_what_is_done(measured, runs, tmp_path, capsys):
    out = tmp_path / "more"
    shutil.copytree(measured, out)
    words = ("--sources", "training", "trajectories", "--learned-samples", "8")
    more = ("--draws", "6", "--times", "0.1", "0.5", "1.0", "--modes", str(MODES), *words)
    rest = ("--batch-size", "8", "--accuracy", "0.05", "--sample-calls", "4")
    assert command(runs[0], "--out", out, *more, *rest) == 0
    result = result_of(out)
    assert len(result["times"]) == 3
    assert result["sources"]["training"]["network"]["draws"] == 6
    (path,) = out.glob(f"cells/network_training_{result['steps'][0]:05d}_{MODES}.npz")
    with np.load(path) as new, np.load(measured / "cells" / path.name) as old:
        assert len(new["trace"]) == 6
        for name in ("eigenvalues", "trace", "loss"):
            np.testing.assert_array_equal(new[name][:4], old[name])
    drawn = [np.load(folder / "cells" / "learned_00000006_4.npy") for folder in (measured, out)]
    np.testing.assert_array_equal(drawn[1][:6], drawn[0])
    # Fewer again: what was first.
    capsys.readouterr()
    assert command(runs[0], "--out", out, *FEW) == 0
    assert "24 of 24 cells were computed before" in capsys.readouterr().out
    assert result_of(out) == result_of(measured)
    # Other numbers of modes lie beside these.
    one = ("--modes", "1", "--theories", "gaussian", "--sources", "training", *FEW[:5], *FEW[7:])
    assert command(runs[0], "--out", out, *one) == 0
    found = result_of(out)["sources"]["training"]["gaussian"]
    full = result_of(measured)["sources"]["training"]["gaussian"]
    assert [row[:1] for row in full["eigenvalues"]] == found["eigenvalues"]
    assert command(runs[0], "--out", out, *FEW, "--seed", "1") == 1
    assert "holds batches of another experiment (seed: 0 -> 1)" in capsys.readouterr().err
    assert command(runs[1], "--out", out, *FEW) == 1
    assert "other parameters of the network" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_one_checkpoint_and_no_images_left(runs, tmp_path, capsys):
    out = tmp_path / "out"
    few = ("--theories", "exact", *FEW)
    assert command(runs[1], "--out", out, *few) == 0
    result = result_of(out)
    assert list(result["sources"]) == ["training", "trajectories"]
    assert result["learned"] is None
    one, two = result["warnings"]
    assert one.startswith("the run has fewer than two checkpoints")
    assert two == "no images are held out: the run was trained on all images of its source"


def test_a_data_set_has_all_but_the_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, labels = digits(0, 12)
    np.savez("digits.npz", images=images, labels=labels)
    few = (*FEW[:9], "--accuracy", "0.05")
    monkeypatch.setattr(modes, "linear_schedule", lambda: linear_schedule(25))
    monkeypatch.setattr(style, "png", lambda figure: b"")  # figures are made, but not rendered
    assert command("digits.npz", *few) == 0
    out = Path("runs/modes/digits")
    result = result_of(out)
    assert list(result["sources"]) == ["training", "trajectories"]
    assert list(result["sources"]["training"]) == ["exact", "gaussian", "classes"]
    assert result["learned"] is None
    names = {path.name for path in out.glob("*.png")}
    figures = ("open_modes", "spectra", "dimension", "trajectory")
    assert names == {f"{name}.png" for name in figures}
    # The stops are those of the first trajectory; at the first of them all that is open is new.
    assert result["trajectory"]["denoiser"] == "exact"
    stops = result["trajectory"]["stops"]
    for stop in stops:
        step = result["steps"][result["times"].index(stop["time"])]
        with np.load(out / "cells" / f"exact_trajectories_{step:05d}_{MODES}.npz") as cell:
            values = cell["eigenvalues"][0]
        assert stop["open_modes"] == (values > 0.5).sum()
        if stop is stops[0]:
            np.testing.assert_allclose(stop["newly_open"], values[values > 0.5], atol=1e-6)
    # Other data of that name have a folder of their own, as experiments.regimes does it.
    Path("b").mkdir()
    np.savez("b/digits.npz", images=images[:, ::-1], labels=labels)
    own = modes_options.Options(what="b/digits.npz")
    folder = run_or_data.folder_of(own.what, own, None, "modes")
    assert folder.parent == out.parent
    assert folder.name.startswith("digits-")
    for words, message in (
        (("--sources", "held-out"), "digits.npz is no run, which could have held images out"),
        (("--held-out", "3"), "--held-out is for runs, and digits.npz is none"),
        (("--data", "x"), "--data is for runs, and digits.npz is none"),
        (("--theories", "local", "--patches", "2"), "patch = 2 must be an odd number of pixels"),
        (("--images-per-class", "0"), "images_per_class = 0 must be at least 1"),
    ):
        assert command("digits.npz", *few, *words) == 1
        assert message in capsys.readouterr().err
    np.save("one.npy", images[:1])
    assert command("one.npy", *few) == 1
    assert capsys.readouterr().err.startswith("error: ")
    Path("empty").mkdir()
    assert command("empty", *few) == 1
    assert "empty is no run's folder, which holds config.json" in capsys.readouterr().err
    assert command("nowhere", *few) == 1
    error = capsys.readouterr().err
    assert "nowhere is neither a run's folder nor a data set: give the folder of a run" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--draws", "1"), "draws = 1 must be at least 2"),
        (("--modes", "0"), "modes = 0 must be at least 1"),
        (("--modes", "65"), "modes = 65 must be at most 64, the components of an image"),
        (("--times", "70.0"), "times [70.0] must lie in the schedule"),
        (("--times", "1.0", "1.0001"), "two of the times [1.0, 1.0001] fall on one of 25 steps"),
        (("--theories", "wiener"), "there is no theory 'wiener'; choose from exact"),
        (("--sources", "nowhere"), "must be of training, held-out, trajectories"),
        (("--sample-calls", "26"), "between 2 and 25"),
        (("--learned-samples", "1"), "learned_samples = 1 must be at least 2, or 0 for none"),
        (("--held-out", "0"), "held_out = 0 must be at least 1"),
        (("--patches", "4", "--theories", "local"), "patch = 4 must be an odd number"),
        (("--batch-size", "0"), "batch_size = 0 must be at least 1"),
        (("--classes", "1"), "--classes is for data sets:"),
        (("--flat",), "--flat is for data sets:"),
    ],
)
def test_bad_options_are_refused(runs, tmp_path, capsys, options, message):
    assert command(runs[0], "--out", tmp_path / "x", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


class Backwards(nn.Module):
    """A network that is differentiated backwards alone."""

    @nn.compact
    def __call__(self, x, step, dropout_keys=None):
        @jax.custom_vjp
        def same(y):
            return y

        same.defvjp(lambda y: (y, None), lambda _, cotangent: (cotangent,))
        return same(x)


def test_a_network_without_forward_derivatives_is_refused_first():
    model = Backwards()

    def denoiser(x, step):
        return model.apply({}, x, step)

    with pytest.raises(UserError, match="the network has no forward derivative"):
        comparing.require_derivative(denoiser, (8, 8, 1))


def test_stops_are_where_some_but_not_all_modes_are_open():
    assert stops_of([6, 5, 3, 1, 0], 6) == [3, 2, 1]
    assert stops_of([6, 6], 6) == []
    assert stops_of([0, 1, *range(20, 0, -1)], 30)[:1] == [21]
    assert len(stops_of([*range(20, 0, -1)], 30)) == comparing.STOPS


def test_any_kept_checkpoint_opens(runs, tmp_path):
    assert run.steps_of(runs[0]) == [0, *STEPS]
    newest, early = run.load_model(runs[0]), run.load_model(runs[0], step=3)
    assert (newest.step, early.step) == (12, 3)
    images, _ = digits(0, 20)
    expected = params_of(early.config, images, 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, early.denoiser.params, expected))
    with pytest.raises(UserError, match="no checkpoint of step 4; its steps are 0, 3, 6, 12"):
        run.load_model(runs[0], step=4)
    assert run.steps_of(tmp_path) == []


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_checkpoint_is_left_out(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    for path in (folder / "checkpoints" / "6" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    words = ("--theories", "gaussian", "--sources", "training", *FEW)
    assert command(folder, *words) == 0
    result = result_of(folder / "modes")
    assert result["learned"]["updates"] == [3, 12]
    (warning,) = result["warnings"]
    assert re.match("a checkpoint is left out: the checkpoint .*/6 cannot be read", warning)
