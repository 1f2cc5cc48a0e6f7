"""The study of memorisation: its runs, a kill, what is refused, and what it writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_study
from tiny_runs import digits, save_digits

from diffusion_jax import forking
from diffusion_jax.judging.classifier_training import train_classifier
from diffusion_jax.memorising import workers
from diffusion_jax.runtime import backend
from diffusion_jax.training import evaluations
from experiments import memorisation, memorisation_page

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

TESTS = Path(small_study.__file__).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_digits(tmp_path_factory.mktemp("data"))


def words_of(out, data, *options):
    words = ["--out", out, "--data", data, "--diffusion-steps", 50, "--steps", 47]
    words += ["--sizes", 8, 2000, "--held-out-per-class", 10, "--held-out-after", 20]
    words += ["--checkpoint-every", 10]
    words += ["--evaluate-samples", 16, "--evaluate-calls", 5, "--learning-rate", 1e-2]
    return [*map(str, [*words, *options])]


def study(*words):
    """The study in this process, its runs in others; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "keep_freed_memory", lambda: None)
        patch.setattr(workers, "PROGRAM", small_study.PROGRAM)
        patch.setattr(forking, "train_classifier", partial(train_classifier, updates=5))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
        patch.setattr(sys, "argv", ["memorisation", *words])
        try:
            memorisation.main()
        except SystemExit as ended:
            return ended.code
    return 0


@pytest.fixture
def run(monkeypatch, capsys):
    """The same without figures, at which `whole` is looked at: status, stdout, stderr."""
    monkeypatch.setattr(memorisation_page, "_pictures", lambda findings: [])
    return lambda *words: (study(*words), *capsys.readouterr())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a study of two sizes that nothing interrupted."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    assert study(*words_of(folder, data, "--sizes", 8, 16)) == 0
    return folder


def kept(folder):
    cell = folder / "n8_w64_s0"
    steps = (*evaluations.kept(cell), evaluations.EXACT)
    return {step: evaluations.path_of(cell, step).read_bytes() for step in steps}


def killed_study(out, data):
    """Starts a study and kills it, and it alone, once a run has saved something."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(TESTS), *sys.path]))
    program = [sys.executable, "-m", "small_study", *words_of(out, data)]
    process = subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (out / "n8_w64_s0" / "checkpoints" / "10").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_to_the_same_numbers(tmp_path, data, whole, run):
    """Though its run is still saving itself, and is waited for."""
    killed_study(tmp_path / "killed", data)
    status, _, err = run(*words_of(tmp_path / "killed", data, "--signals"))
    assert status == 1  # of the size that there are no images for
    assert "n2000_w64_s0" in err
    assert "begin after the first 20 of each class" in err
    assert kept(tmp_path / "killed") == kept(whole)
    result = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert list(result["cells"]) == ["n8_w64_s0"]
    assert list(result["failed"]) == ["n2000_w64_s0"]


@pytest.mark.slow
def test_what_a_study_writes(whole):
    cells = json.loads((whole / "result.json").read_text())["cells"]
    assert list(cells) == ["n8_w64_s0", "n16_w64_s0"]
    for cell in cells.values():
        assert cell["updates"] == [33, 47]
        assert cell["tau_mem"] is None  # two convolutions learn nothing by heart
        low, value, high = (cell["nats_per_image"][name] for name in ("low", "value", "high"))
        assert low < value < high
        assert cell["memory_share"]["value"] < 0.5
        assert set(cell["series"]["distances"]) == {
            *("random_convolutions", "leading_components", "classifier")
        }
        assert np.sum([each[-1]["value"] for each in cell["series"]["kinds"].values()]) == 1
    figures = ["memorised", "gap", "share", "losses", "quality_w64", "times", "phases"]
    for name in (*figures, "bands", "kinds", "modes"):
        assert (whole / f"{name}.png").stat().st_size > 5000
    assert "The memorised fraction in the plane" in (whole / "report.html").read_text()


@pytest.mark.slow
def test_a_study_that_is_done(tmp_path, data, whole, run):
    """Nothing is trained again, and there are no signals; another run in its folder is told."""
    shutil.copytree(whole, tmp_path / "whole")
    whole = tmp_path / "whole"
    cells = json.loads((whole / "result.json").read_text())["cells"]
    times = [path.stat().st_mtime_ns for path in whole.rglob("checkpoints/*")]
    status, out, err = run(*words_of(whole, data, "--signals", "--sizes", 8))
    assert (status, err) == (0, "")
    assert "1 runs, of which 1 are done" in out
    assert times == [path.stat().st_mtime_ns for path in whole.rglob("checkpoints/*")]
    again = json.loads((whole / "result.json").read_text())["cells"]["n8_w64_s0"]
    assert "tau_gen" not in again
    fractions = [each["series"]["memorised_fraction"] for each in (again, cells["n8_w64_s0"])]
    assert fractions[0] == fractions[1]
    (whole / "classifier.msgpack").write_bytes(b"no network")
    status, out, _ = run(*words_of(whole, data, "--signals", "quality", "--sizes", 16))
    assert status == 0
    assert "No classifier, so no distance in its features" in out
    named = json.loads((whole / "result.json").read_text())["cells"]["n16_w64_s0"]["series"]
    assert set(named["distances"]) == {"random_convolutions", "leading_components"}
    for option, part in (("30", "must lie within the schedule"), ("1e-9", "must lie within")):
        status, _, err = run(*words_of(whole, data, "--sizes", 8, "--information-time", option))
        assert status == 1
        assert part in err
    # The exact score's part is made again, as it was; other images of the same shape are told.
    exact = evaluations.path_of(whole / "n8_w64_s0", evaluations.EXACT)
    content = exact.read_bytes()
    exact.unlink()
    status, _, _ = run(*words_of(whole, data, "--signals", "--sizes", 8))
    assert (status, exact.read_bytes() == content) == (0, True)
    images, labels = digits(40, 80)
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    status, _, err = run(*words_of(whole, tmp_path / "other.npz", "--sizes", 8))
    assert status == 1
    assert "the data changed since the last checkpoint" in err
    status, _, err = run(*words_of(whole, data, "--sizes", 8, "--learning-rate", 0.02))
    assert status == 1
    assert "holds a run with another configuration (learning_rate: 0.01 -> 0.02)" in err


def test_what_a_study_decides_itself_is_no_option(tmp_path, data, run):
    for options, part in (
        (("--run-dir", "x"), "--run-dir x is each training's own here: give --out"),
        (("--base-channels", 8), "give --widths"),
        (("--images-per-class", 8), "give --sizes"),
        (("--sizes", 8, 8), "must name each once"),
        (("--sizes", 1), "must be at least 2"),
        (("--steps-by-size", 5, 6, 7), "for each of the 2 sizes"),
        (("--level", 0), "level = 0.0 must lie in (0, 1]"),
        (("--information-time", -1), "must be positive"),
        (("--sizes", 7, 9), "none of the sizes can be trained"),
        (("--held-out-per-class", 60), "none of the sizes can be trained"),
    ):
        status, _, err = run(*words_of(tmp_path / "out", data, *options))
        assert status == 1
        assert part in err
    assert not list((tmp_path / "out").glob("n*"))


@pytest.mark.slow
def test_an_evaluation_that_was_cut_short_is_named(tmp_path, data, whole, run):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = evaluations.path_of(out / "n8_w64_s0", 33)
    path.write_bytes(path.read_bytes()[:1000])
    status, _, err = run(*words_of(out, data, "--sizes", 8))
    assert status == 1
    assert "00000033.npz cannot be read" in err
    assert "Traceback" not in err
