"""A data set analysed from Python: the numbers of the command, a table, a figure, a page."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

import diffusion_jax as dj
from diffusion_jax import schedules
from diffusion_jax import study as module
from diffusion_jax.plots import page
from diffusion_jax.plots import regimes as plots
from diffusion_jax.plots.pictures import pictures_of
from diffusion_jax.regimes import adaptive
from diffusion_jax.regimes import analysis as numbers
from diffusion_jax.schedule import from_time

FAST = {"accuracy": 0.03, "max_draws": 1024}
SPECTRUM = page.Picture("spectrum.png", b"drawn", "")  # in place of all, which take long to draw


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


@pytest.mark.usefixtures("rendered")
def test_it_is_saved_and_reported(study, tmp_path, monkeypatch):
    paths = study.save(tmp_path / "deep" / "folder")
    result = json.loads((tmp_path / "deep" / "folder" / "result.json").read_text())
    assert result["t_S_phi"]["value"] == study.times["t_S_phi"].value
    assert result["settings"]["classes"] == ["across", "down"]
    half_log = 0.5 * np.log(result["Lambda"]["value"])
    assert result["t_S_spectrum"]["value"] == pytest.approx(half_log)
    assert half_log > 0
    assert {path.name for path in paths} >= {"collapse.png", "speciation.png", "spectrum.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    study.report(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text == (tmp_path / "deep" / "folder" / "report.html").read_text()
    assert text.count("data:image/png;base64,") == len(paths)
    monkeypatch.setattr(module, "pictures_of", lambda analysis, images: [SPECTRUM])
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


def test_two_groups_of_one_class_each_are_the_two_classes(study):
    images, labels = blobs()
    found = dj.analyse(images, labels, **FAST, partition=["down", ["across"]])
    for name in ("t_S_phi", "t_S_rate"):
        time, own = found.analysis.partition.regimes.times[name], study.times[name]
        assert [time.value, time.low, time.high] == pytest.approx([own.value, own.low, own.high])
    assert study.analysis.pairs == found.analysis.pairs == ()
    assert found.settings["partition"] == (("down",), ("across",))
    assert "The partition is down | across, of entropy 0.693 nats" in " ".join(repr(found).split())
    with pytest.raises(dj.UserError, match="a partition is one of classes, and the data set does"):
        dj.analyse(images, **FAST, partition=["down", ["across"]])


def test_what_is_known_at_each_time_is_told(study):
    """The second table, against the curves: at the collapse, say, phi_C = 1/2."""
    curves = study.analysis.overall.curves
    lines = [line.split() for line in repr(study).splitlines()]
    rows = {line[1]: [line[0], *line[2:]] for line in lines if len(line) == 6}
    for name in ("t_S_rate", "t_S_phi", "t_C_phi"):
        row = [float(value) for value in rows[name]]
        expected = [study.times[name].value] + [
            np.interp(
                np.log(study.times[name].value), np.log(curves[curve].times), curves[curve].mean
            )
            for curve in ("class_information", "point_information", "effective_points")
        ]
        assert row[:4] == pytest.approx(expected, rel=6e-3)
        assert row[2] == pytest.approx(np.log(40) - np.log(row[3]), rel=0.05)
        assert 1 / row[3] < row[4] < 1


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


def faint(scale, first_channel=1.0):
    """Colour images of two classes whose Lambda goes with the square of the scale."""
    images = scale * blobs()[0][..., None] * np.array([first_channel, 1, 1])
    return images, np.arange(40) % 2


@pytest.mark.parametrize(
    ("scale", "first_channel", "none"),
    [(0.1, 1.0, {"t_S_spectrum", "t_S_all_channels"}), (1, 0.5, {"t_S_spectrum"}), (1, 0.0, None)],
)
def test_lambda_up_to_1_gives_no_time_anywhere(scale, first_channel, none, tmp_path):
    none = none or {"t_S_spectrum"}
    found = dj.analyse(*faint(scale, first_channel), **FAST)
    assert found.analysis.first_channel.Lambda.value < 1
    rows = {line.split()[0]: line for line in repr(found).splitlines() if line.split()}
    for name in ("t_S_spectrum", "t_S_all_channels"):
        assert ("none: Lambda <= 1" in rows[name]) == (name in none)
        assert not re.search(r"-\d", rows[name])
    assert "there is no t_S_spectrum" in " ".join(repr(found).split())
    pictures = found.save(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    nothing = {"value": None, "low": None, "high": None}
    assert result["t_S_spectrum"] == nothing
    every = result["t_S_spectrum_all_channels"]
    assert (every == nothing) == ("t_S_all_channels" in none)
    assert {path.name for path in pictures} >= {"spectrum.png", "speciation.png", "samples.png"}
    shown = plots.draw_spectrum(
        found.analysis.eigenvalues,
        found.analysis.all_channels.modes,
        None,
        found.analysis.all_channels.t_S,
    )
    lines = [line.get_label() for axes in shown.axes for line in axes.lines]
    assert any("log" in str(label) for label in lines) == ("t_S_all_channels" not in none)


def test_an_interval_of_lambda_that_straddles_1_shows_no_negative_time():
    images, labels = faint(1)
    Lambda = dj.analyse(images, labels, **FAST).analysis.first_channel.Lambda.value
    for wanted in (1.02, 0.98):
        found = dj.analyse(images * np.sqrt(wanted / Lambda), labels, **FAST)
        spectrum = found.analysis.first_channel
        assert spectrum.Lambda.low < 1 < spectrum.Lambda.high
        (row,) = [line for line in repr(found).splitlines() if line.startswith(" t_S_spectrum")]
        assert not re.search(r"-\d", row)
        assert ("[0, " in row) == (wanted > 1)
        assert np.isfinite(spectrum.t_S.value) == (wanted > 1)


def test_the_schedule_is_that_of_the_curves(study, tmp_path, monkeypatch):
    """schedule.json against the formulas, from what result.json holds."""
    monkeypatch.setattr(module, "pictures_of", lambda analysis, images: [SPECTRUM])
    study.save(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    schedule = json.loads((tmp_path / "schedule.json").read_text())
    assert set(schedule) == {"name", "of", "time"}
    assert (schedule["name"], schedule["of"]) == ("adaptive", "blobs")
    times = np.array(schedule["time"])
    assert times.shape == (1000,)
    assert times[0] > 0
    assert np.all(np.diff(times) > 0)
    phi, entropy = (result["curves"][name] for name in ("phi", "excess_entropy"))
    d = result["dimension"]
    density = adaptive.step_density(
        np.array(phi["time"]),
        np.array(result["eigenvalues"]),
        np.array(phi["mean"]),
        np.array(entropy["mean"]) * np.log(40) / d,
        d,
        result["phi_floor"],
    )
    expected = adaptive.adaptive_schedule(np.array(phi["time"]), density, 1000)
    np.testing.assert_allclose(from_time(times).alpha_bar, expected.alpha_bar, rtol=1e-6)
    assert len(result["eigenvalues"]) == d  # so that no zero is missing
    # What json reads is what was written, to the last digit.
    assert np.array_equal(times, study.analysis.schedule)
    assert schedules.read_times(tmp_path / "schedule.json") == tuple(times)


@pytest.mark.parametrize("labels", [None, np.zeros(40, int), np.arange(40) % 2])
@pytest.mark.parametrize("scale", [1, 1e6])
def test_there_is_a_schedule_for_all_that_has_regimes(labels, scale):
    """Without classes, with one alone, and where phi crosses nothing within the times."""
    images = np.float32(scale) * blobs()[0].astype(np.float32)
    if scale > 1:
        names = () if labels is None else ("a", "b")[: labels.max() + 1]
        images, labels = dj.ImageSet(images[..., None], labels, names), None
    found = dj.analyse(images, labels, **FAST)
    assert np.all(np.diff(found.analysis.schedule) > 0)
    from_time(found.analysis.schedule)


def shapes(n, size=16):
    """Circles and squares of n images each, too few for classes to show before images do."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    labels = np.arange(2 * n) % 2
    centres = size * rng.uniform(0.35, 0.65, (2 * n, 2, 1, 1))
    radii = size * rng.uniform(0.15, 0.3, (2 * n, 1, 1))
    across, down = abs(x - centres[:, 0]), abs(y - centres[:, 1])
    round_ = np.where(labels[:, None, None] == 1, np.hypot(across, down), np.maximum(across, down))
    return (round_ < radii).astype(float), labels


def test_speciation_below_the_collapse_is_warned_of(study, tmp_path, monkeypatch):
    """In the text, in result.json and in the report; and t_S_phi is then not the time to quote."""
    monkeypatch.setattr(module, "pictures_of", lambda analysis, images: [SPECTRUM])
    found = dj.analyse(*shapes(10), **FAST)
    assert found.times["t_S_phi"].value <= found.times["t_C_phi"].value
    (warning,) = [text for text in found.warnings if "t_C_phi" in text]
    assert warning.startswith("t_S_phi lies at or below t_C_phi: it tells training images apart")
    assert warning in " ".join(repr(found).split())
    assert not any("to quote" in text for text in found.warnings)
    found.save(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert warning in result["settings"]["warnings"]
    assert warning in (tmp_path / "report.html").read_text()
    assert study.times["t_S_phi"].value > study.times["t_C_phi"].value
    assert not any("t_C_phi" in text for text in study.warnings)


def test_a_lambda_that_is_too_large_sends_to_phi(monkeypatch):
    """Where there is a t_S_phi, and it tells classes apart."""
    images, labels = blobs()
    estimate = numbers.spectrum.speciation_estimate
    monkeypatch.setattr(
        numbers.spectrum, "speciation_estimate", lambda *given: (*estimate(*given)[:2], 2.0)
    )
    says = "Lambda is too large by more than its interval, and t_S_spectrum with it: no mode"
    (labelled,) = [text for text in dj.analyse(images, labels, **FAST).warnings if says in text]
    assert labelled.endswith("or the images are too few; t_S_phi is the time to quote")
    (alone,) = [text for text in dj.analyse(images, **FAST).warnings if says in text]
    assert alone.endswith("or the images are too few")
    faint_one = dj.analyse(images / 10, labels, **FAST)
    assert "Lambda is too large by more than its interval: no mode" in " ".join(faint_one.warnings)


def test_the_norm_is_told_of_where_it_stands_still(study):
    """Else result.json alone has it."""
    assert study.notes == ""
    assert "E|a|^2" not in repr(study)
    assert numbers.to_json(study.analysis)["squared_norm"]["critical_point"] == "nowhere"
    norm = numbers.spectrum.SquaredNorm(36, 36.0)
    still = replace(study, analysis=replace(study.analysis, norm=norm))
    assert numbers.to_json(still.analysis)["squared_norm"]["critical_point"] == "everywhere"
    assert still.notes.startswith("The images minus their mean have the mean squared norm of the")
    assert "E|a|^2 = d = 36: so has x_t at every time t" in " ".join(repr(still).split())


def test_where_no_schedule_can_be_made_it_is_said(study, monkeypatch, tmp_path):
    def none(*arguments):
        raise dj.UserError("the density is zero")

    monkeypatch.setattr(module, "pictures_of", lambda analysis, images: [])
    study.save(tmp_path)
    assert (tmp_path / "schedule.json").exists()
    monkeypatch.setattr(numbers, "adaptive_times", none)
    found = dj.analyse(*blobs(), **FAST)
    assert "no schedule can be made from these images: the density is zero" in found.warnings
    assert "schedule.png" not in [each.name for each in pictures_of(found.analysis, found.images)]
    found.save(tmp_path)
    assert not (tmp_path / "schedule.json").exists()


@pytest.fixture
def saved(study, monkeypatch):
    """Saves a study that draws pictures of the given names alone, into a folder."""

    def save(folder, *names):
        drawn = [page.Picture(name, b"drawn", "") for name in names]
        monkeypatch.setattr(module, "pictures_of", lambda analysis, images: drawn)
        study.save(folder)

    return save


def test_only_files_of_its_own_are_removed_or_written_over(saved, tmp_path):
    for name in ("speciation.png", "mine.png"):
        (tmp_path / name).write_text("mine")
    for content in ("{", "[]", '{"files": 3}', '{"files": "speciation.png"}', "{}", "3"):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(dj.UserError, match=r"holds result\.json, which no study"):
            saved(tmp_path, "collapse.png")
        assert (tmp_path / "result.json").read_text() == content
    (tmp_path / "result.json").unlink()
    saved(tmp_path, "collapse.png")
    assert (tmp_path / "speciation.png").read_text() == "mine"
    with pytest.raises(dj.UserError, match=r"holds speciation\.png, which no study"):
        saved(tmp_path, "collapse.png", "speciation.png")
    assert (tmp_path / "speciation.png").read_text() == "mine"
    (tmp_path / "speciation.png").unlink()
    saved(tmp_path, "collapse.png", "speciation.png")
    assert (tmp_path / "speciation.png").read_text() == "drawn"
    saved(tmp_path, "spectrum.png")
    assert not (tmp_path / "speciation.png").exists()
    assert not (tmp_path / "collapse.png").exists()
    assert (tmp_path / "mine.png").read_text() == "mine"
    # A name that leads elsewhere is none of ours.
    result = json.loads((tmp_path / "result.json").read_text())
    result["files"] = ["../mine.png", "notes.txt", "spectrum.png"]
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text(json.dumps(result))
    (out / "notes.txt").write_text("mine")
    saved(out, "collapse.png")
    assert (tmp_path / "mine.png").exists()
    assert (out / "notes.txt").exists()


def test_names_are_printed_as_they_are():
    images, labels = blobs()
    names = np.array(["[red]x", "[/] :dog: \\"])[(labels == "down").astype(int)]
    text = repr(dj.analyse(images, names, **FAST))
    assert "from [red]x" in text
    assert "from [/] :dog: \\" in text


def test_a_symmetry_by_name_or_of_ones_own(study, tmp_path):
    images, labels = blobs()
    named = dj.analyse(images, labels, symmetry="dihedral", name="blobs", **FAST)
    assert named.settings["symmetry"] == "dihedral"
    assert named.analysis.symmetry.without.times == study.times
    assert "blobs with the symmetry dihedral" in repr(named)
    assert "320 maps of the images" in repr(named)
    # Across and down are one another's quarter turns: their mean images no longer part them.
    assert named.times["t_S_phi"].value < study.times["t_S_phi"].value
    own = dj.Group.of([lambda x: x, lambda x: -x], (6, 6, 1), "signs")
    found = dj.analyse(images, labels, symmetry=own, **FAST)
    # Signs of the images less the mean of all pixels: so the mean image is their second moment's.
    rows = images.reshape(40, -1) - images.mean()
    second = rows - rows.mean(0)
    exact = second.T @ second / 39 + np.outer(rows.mean(0), rows.mean(0))
    Lambda = found.analysis.first_channel.Lambda.value
    assert Lambda == pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-4)
    with pytest.raises(dj.UserError, match="group signs is one of images of"):
        dj.analyse(np.random.default_rng(0).random((9, 5, 6)), symmetry=own)
