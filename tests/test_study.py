"""A data set analysed from Python: the numbers of the command, a table, a figure, a page."""

import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

import diffusion_jax as dj

FAST = {"accuracy": 0.03, "max_draws": 1024}


def blobs(n=40, size=6):
    """Two classes of noisy images about two means."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    means = np.stack([x, y])
    labels = np.arange(n) % 2
    noise = 0.15 * rng.standard_normal((n, size, size))
    return np.clip(means[labels] + noise, 0, 1), np.array(["across", "down"])[labels]


@pytest.fixture(scope="module")
def study():
    images, labels = blobs()
    return dj.analyse(images, labels, name="blobs", **FAST)


def test_it_prints_the_times_and_the_warnings(study):
    text = repr(study)
    assert text.splitlines()[0] == "40 images of 36 values in 2 classes"
    for name in ("t_S_spectrum", "t_S_phi", "t_C_entropy", "t_C_phi"):
        value = study.times[name].value
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        shown = float(re.findall(r"-?\d+\.\d+(?= \[)", line)[0])
        assert shown == pytest.approx(value, abs=6e-4)
    images, _ = blobs()
    bare = dj.analyse(images, **FAST)
    assert "warning: the images have no labels" in repr(bare)
    assert "t_S_phi " not in repr(bare).split("\n\n", 1)[1]


def test_grey_levels_flat_rows_and_integer_labels_are_the_same(study):
    images, labels = blobs()
    grey = np.round(255 * images).astype(np.int64)
    other = dj.analyse(grey.reshape(len(grey), -1), (labels == "down").astype(int), **FAST)
    for name, time in study.times.items():  # grey levels are rounded by 1/510 at most
        assert other.times[name].value == pytest.approx(time.value, abs=0.02)
    assert other.images.class_names == ("0", "1")
    as_pandas_has_them = np.array(labels, object)
    again = dj.analyse(images, as_pandas_has_them, **FAST)
    assert again.times["t_S_phi"] == study.times["t_S_phi"]


def test_an_image_set_goes_in_as_it_is(study, tmp_path):
    images, labels = blobs()
    np.savez(tmp_path / "blobs.npz", images=images, labels=labels)
    loaded = dj.load_images(tmp_path / "blobs.npz")
    again = dj.analyse(loaded, **FAST)
    assert {name: time.value for name, time in again.times.items()} == {
        name: time.value for name, time in study.times.items()
    }
    with pytest.raises(dj.UserError, match="its own labels"):
        dj.analyse(loaded, labels)


def test_it_is_drawn_without_touching_pyplot(study):
    figure = study.plot()
    assert isinstance(figure, Figure)
    shown = figure._repr_png_()
    assert shown.startswith(b"\x89PNG")
    assert len(figure.axes[0].lines) >= 6  # three curves, three times


def test_it_is_saved_and_reported(study, tmp_path):
    paths = study.save(tmp_path / "deep" / "folder")
    result = json.loads((tmp_path / "deep" / "folder" / "result.json").read_text())
    assert result["t_S_phi"]["value"] == study.times["t_S_phi"].value
    assert result["settings"]["classes"] == ["across", "down"]
    assert {path.name for path in paths} >= {"collapse.png", "speciation.png", "spectrum.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    study.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page == (tmp_path / "deep" / "folder" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(paths)
    (tmp_path / "file").write_text("")
    with pytest.raises(dj.UserError, match="cannot write"):
        study.save(tmp_path / "file" / "below")
    (tmp_path / "taken" / "spectrum.png").mkdir(parents=True)
    with pytest.raises(dj.UserError, match="cannot write"):
        study.save(tmp_path / "taken")
    with pytest.raises(dj.UserError, match="cannot write"):
        study.report(tmp_path)
    assert study == study
    assert study in {study}


def test_classes_may_be_minus_one_and_one(study):
    images, labels = blobs()
    other = dj.analyse(images, np.where(labels == "down", 1, -1), **FAST)
    assert other.images.class_names == ("-1", "1")
    assert other.times["t_S_phi"] == study.times["t_S_phi"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((5, 4, 3, 6)), None, "channels"),
        (np.full((5, 6, 6), np.nan), None, "not a finite number"),
        (np.full((5, 6, 6), 300), None, "no grey level"),
        (np.zeros((5, 6, 6)), None, "all 5 images are equal"),
        (np.random.default_rng(0).random((5, 6, 6)), [0, 1, 0, 1], r"labels .* shape \(4,\)"),
        (np.random.default_rng(0).random((5, 6, 6)), [0.5] * 5, "integers or strings"),
        (np.array(["a", "b"], object), None, "Python objects"),
        ([[0.1, 0.2], [0.3]], None, "lists of equal shapes"),
    ],
)
def test_what_cannot_be_analysed_is_refused(images, labels, message):
    with pytest.raises(dj.UserError, match=message):
        dj.analyse(images, labels, **FAST)
