import contextlib
import io
import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

import diffusion_jax as dj
from diffusion_jax import study
from diffusion_jax.runtime.text import shown
from experiments import regimes

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["regimes", *map(str, arguments)])
    try:
        regimes.main()
    except SystemExit as exit:
        return exit.code
    return 0


@pytest.fixture(scope="module")
def blobs():
    """Two classes of 6 x 6 colour images, far enough apart to speciate before they collapse."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    centre = rng.uniform(0.3, 0.7, (2, 6, 6, 3))
    return np.clip(centre[labels] + 0.1 * rng.standard_normal((80, 6, 6, 3)), 0, 1), labels


FAST = ("--accuracy", "0.02")


@pytest.fixture(scope="module")
def plain(blobs, tmp_path_factory):
    """The folder that holds mine.npz, and what the command wrote of it into `out` and printed."""
    folder, printed = tmp_path_factory.mktemp("plain"), io.StringIO()
    images, labels = blobs
    np.savez(folder / "mine.npz", images=images.astype(np.float32), labels=labels)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        assert run(patch, "--data", folder / "mine.npz", "--out", folder / "out", *FAST) == 0
    return folder, printed.getvalue()


def test_images_with_labels(blobs, plain):
    images, out = blobs[0], plain[0] / "out"
    result = json.loads((out / "result.json").read_text())
    covariance = np.cov(images[..., 0].reshape(80, -1), rowvar=False)
    Lambda = np.linalg.eigvalsh(covariance)[-1]
    assert result["Lambda"]["value"] == pytest.approx(Lambda, rel=1e-4)
    assert Lambda < 1
    assert result["t_S_spectrum"] == {"value": None, "low": None, "high": None}
    assert result["Lambda"]["low"] < Lambda < result["Lambda"]["high"]
    for name in ("t_S_phi", "t_C_entropy", "t_C_phi"):
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]
    assert result["t_C_phi"]["value"] < result["t_S_phi"]["value"]
    phi = result["curves"]["phi"]
    assert phi["mean"][0] == pytest.approx(1, abs=1e-3)
    assert phi["mean"][-1] == pytest.approx(0.5, abs=1e-3)
    assert max(phi["standard_error"]) <= 0.02
    mean_norm = np.mean(np.sum((images - images.mean((0, 1, 2))) ** 2, (1, 2, 3)))
    assert result["squared_norm"]["initial"] == pytest.approx(mean_norm, rel=1e-4)
    assert set(result["per_class"]) == {"0", "1"}
    # The page needs no other file: its pictures are in it.
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "t_S_phi" in plain[1]


def test_a_partition_of_named_classes(blobs, tmp_path, monkeypatch, capsys):
    """Of awkward names; each of the groups is drawn, told of and saved, and so are the pairs."""
    images = blobs[0][..., :1].astype(np.float32)
    names = np.array(["$a$, b", "c d", "猫"])[np.arange(80) % 3]
    np.savez(tmp_path / "a.npz", images=images, labels=names)
    words, out = ("--data", tmp_path / "a.npz"), tmp_path / "o"
    groups = ("--partition", "c d", "--partition", "猫", "$a$, b")
    assert run(monkeypatch, *words, "--out", out, *FAST, *groups) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "The partition is c d | 猫, $a$, b, of entropy 0.6" in printed
    assert "t_S_rate of groups peak of -dI/dt" in printed
    result = json.loads((out / "result.json").read_text())
    found = result["partition"]
    assert found["groups"] == result["settings"]["partition"] == [["c d"], ["猫", "$a$, b"]]
    assert found["weights"] == pytest.approx([27 / 80, 53 / 80])
    assert found["curves"]["class_information"]["mean"][0] == pytest.approx(0.6393, abs=1e-3)
    assert found["t_S_rate"] == found["class_rate_peaks"]["per t"]
    assert [pair["classes"] for pair in result["pairs"]] == [
        ["$a$, b", "c d"],
        ["$a$, b", "猫"],
        ["c d", "猫"],
    ]
    assert all(
        pair["class_information"][0] == pytest.approx(0.693, abs=1e-3) for pair in result["pairs"]
    )
    assert {"information.png", "pairs.png"} <= set(result["files"])
    for wrong, message in (
        (("c d", "--partition", "x"), "has no class x; its classes are $a$, b, c d,"),
        (("c d", "--partition"), "group 2 of the partition names no class"),
        (("c d", "--partition", "c d"), "names class c d more than once"),
        (("c d",), "a partition has two groups of classes at least, not 1"),
    ):
        assert run(monkeypatch, *words, "--out", tmp_path / "none", "--partition", *wrong) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert not (tmp_path / "none").exists()


def test_a_folder_without_labels_says_what_is_missing(blobs, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(blobs[0][:30]):
        Image.fromarray((255 * image).astype(np.uint8)).save(tmp_path / "mine" / f"{i:02d}.png")
    out = tmp_path / "out"
    assert run(monkeypatch, "--data", tmp_path / "mine", "--out", out, *FAST) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the images have no labels: phi, the class entropy and t_S_phi need them" in text
    result = json.loads((out / "result.json").read_text())
    assert "t_S_phi" not in result
    assert result["t_C_phi"]["value"] > 0
    assert any("no labels" in warning for warning in result["settings"]["warnings"])
    assert "no labels" in (out / "report.html").read_text()


def test_copies_and_a_single_class_are_named(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(1).integers(0, 256, (20, 5, 5), dtype=np.uint8)
    images[7] = images[3]
    np.savez(tmp_path / "a.npz", images=images, labels=np.zeros(20, int))
    assert run(monkeypatch, "--data", tmp_path / "a.npz", "--out", tmp_path / "o", *FAST) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "2 of 20 images are exact copies" in text
    assert "one class only" in text
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert result["curves"]["phi_C"]["mean"][0] == pytest.approx(19 / 20, abs=0.03)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 6, 6), np.uint8), "at least two images"),
        (np.full((5, 6, 6), 7, np.uint8), "all 5 images are equal"),
        (np.full((5, 6, 6), np.nan), r"images\[0, 0, 0\] is nan"),
        (np.full((5, 6, 6), 300), "300"),
    ],
)
def test_images_without_regimes(images, message, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", images)
    assert run(monkeypatch, "--data", tmp_path / "a.npy", "--out", tmp_path / "o", *FAST) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert not (tmp_path / "o").exists()


def test_other_bad_options(blobs, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", blobs[0].astype(np.float32))
    for arguments, message in (
        (("--data", tmp_path / "none"), "none does not exist"),
        (("--data", tmp_path / "a.npy", "--classes", "1"), "has no class 1; it has no classes"),
        (("--data", tmp_path / "a.npy", "--memory", "1e-6"), "GiB"),
        (("--data", tmp_path / "a.npy", "--accuracy", "-1"), "accuracy = -1"),
        (("--data", tmp_path / "a.npy", "--accuracy", "inf"), "accuracy = inf"),
        (("--data", tmp_path / "a.npy", "--memory", "nan"), "memory_gib = nan"),
        (("--data", "mnist", "--data-dir", "x"), "mnist comes with a package"),
        (("--data", "mnist", "--classes", "x"), "must be digits"),
    ):
        assert run(monkeypatch, *arguments, "--out", tmp_path / "o") == 1
        assert message in capsys.readouterr().err


def test_out_must_be_a_folder(blobs, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", blobs[0].astype(np.float32))
    assert run(monkeypatch, "--data", tmp_path / "a.npy", "--out", tmp_path / "a.npy") == 1
    assert "cannot be made a folder: File exists" in capsys.readouterr().err


@pytest.mark.usefixtures("rendered")
def test_awkward_names_and_few_draws(blobs, tmp_path, monkeypatch, capsys):
    """They are printed as they are: neither markup, nor emoji, nor mathematics, but legible."""
    images, labels = blobs
    byte, bold = os.fsdecode(b"\xe9"), "\x1b[1m"
    classes = ["[/]", f"[red]x[/red]{byte}", "a[/b] :cat:\\", f"_ $5^^$ {bold}"]
    legible = ["[/]", r"[red]x[/red]\xe9", "a[/b] :cat:\\", r"_ $5^^$ \x1b[1m"]
    names = np.array(classes)[2 * labels + np.arange(80) % 2]
    folder = tmp_path / f"[red]mine{byte}"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    file = folder / f"$x$ {byte}{bold}.npz"
    held = {"images": images.astype(np.float32), "y": names, ":cat:[/]": np.zeros(3)}
    np.savez(file, **held)
    monkeypatch.setenv("COLUMNS", "300")
    assert run(monkeypatch, "--data", file, "--max-draws", 100) == 0
    printed, said = capsys.readouterr()
    text = " ".join(printed.split())
    note = f"{file} also holds :cat:[/], not used: labels are called labels or y"
    assert said == f"note: {shown(note)}\n"
    assert "also holds" not in text
    assert "the accuracy asked for, 0.002, was not reached" in text
    assert all(f"from {name}" in text for name in legible)
    study = dj.analyse(dj.load_images(file), max_draws=100)
    assert "also holds :cat:[/], not used" in " ".join(repr(study).split())
    assert "\x1b" not in repr(study)
    out = tmp_path / "runs" / "regimes" / r"$x$ \xe9\x1b[1m"
    result = json.loads((out / "result.json").read_text())
    assert set(result["per_class"]) == set(classes)
    assert result["settings"]["warnings"][0] == note
    page = (out / "report.html").read_text("utf-8")
    assert page.count(r"Regimes of $x$ \xe9\x1b[1m<") == 2
    assert all(f"<th>from {name}</th>" in page for name in legible)
    assert (out / "samples.png").read_bytes()[1:4] == b"PNG"


def test_times_beyond_the_window_are_said_to_be(tmp_path, monkeypatch, capsys):
    # So far apart that they collapse before the first noise that is looked at.
    images = 1e6 * np.random.default_rng(2).random((20, 6, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", images)
    assert run(monkeypatch, "--data", tmp_path / "a.npy", "--out", tmp_path / "o", *FAST) == 0
    assert capsys.readouterr().out.count("> 10") >= 3


def test_files_of_others_are_not_written_over(blobs, tmp_path, monkeypatch, capsys):
    """Before anything is measured; a study's own folder is used again."""
    np.save(tmp_path / "a.npy", blobs[0].astype(np.float32))
    words = ("--data", tmp_path / "a.npy", "--out", tmp_path / "o", *FAST)
    (tmp_path / "o").mkdir()
    for name in ("collapse.png", "result.json"):
        (tmp_path / "o" / name).write_text("{}")
        assert run(monkeypatch, *words) == 1
        assert f"holds {name}, which no study of this project wrote" in capsys.readouterr().err
        assert (tmp_path / "o" / name).read_text() == "{}"
        (tmp_path / "o" / name).unlink()
    for _ in range(2):
        assert run(monkeypatch, *words) == 0


def test_a_result_of_other_settings_is_not_replaced_in_silence(
    blobs, tmp_path, monkeypatch, capsys
):
    """Which of them were others, before anything is measured; the same settings need no note."""
    monkeypatch.chdir(tmp_path)
    images, labels = blobs
    np.savez("mine.npz", images=images.astype(np.float32), labels=labels)
    out = tmp_path / "runs" / "regimes" / "mine"
    out.mkdir(parents=True)
    loaded = dj.load_images("mine.npz")
    settings = study.settings_of(loaded, 0.02, 50_000, 0)
    named = {"data": "mine.npz", "data_dir": None}

    def said(*arguments, **earlier):
        written = {"settings": named | settings | earlier, "Lambda": {}, "files": []}
        (out / "result.json").write_text(json.dumps(written, default=list))
        assert run(monkeypatch, "--data", "mine.npz", *FAST, *arguments) == 1
        return capsys.readouterr().err.removesuffix("error: measured\n")

    def measured(*arguments):
        raise dj.UserError("measured")

    monkeypatch.setattr(regimes.study, "measure", measured)
    assert said() == ""
    ends = "in runs/regimes/mine; --out names another folder\n"
    assert (
        said("--images-per-class", 20)
        == f"note: replaces the earlier result of num_images = 80 {ends}"
    )
    assert f"of shape = [4, 4, 3] {ends}" in said(shape=[4, 4, 3])
    assert f"of data = 'b.npz', seed = 1 {ends}" in said(
        "--out", out.relative_to(tmp_path), data="b.npz", seed=1
    )
    assert said(data=str(tmp_path / "mine.npz")) == ""
    assert f"of classes = ['0', '7'], partition = [['0'], ['7']] {ends}" in said(
        classes=["0", "7"], partition=[["0"], ["7"]]
    )
    assert f"of symmetry = 'flip' {ends}" in said(symmetry="flip")
    (out / "result.json").unlink()
    assert run(monkeypatch, "--data", "mine.npz", *FAST) == 1
    assert "note" not in capsys.readouterr().err


@pytest.mark.usefixtures("rendered")
def test_a_symmetry_stands_beside_the_images_alone(plain, tmp_path, monkeypatch, capsys):
    """In a folder of its own; what is said of the images alone is what the command says of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = ("--data", plain[0] / "mine.npz", *FAST)
    assert run(monkeypatch, *words, "--symmetry", "flip") == 0
    printed = capsys.readouterr().out
    assert "mine with the symmetry flip" in printed
    assert "with flip [95 %] without [95 %]" in " ".join(printed.split())
    assert "the law is that of the 160 maps of the images minus their mean" in printed
    folder = tmp_path / "runs" / "regimes"
    alone, found = (
        json.loads((of / "result.json").read_text())
        for of in (plain[0] / "out", folder / "mine_flip")
    )
    assert (alone["settings"]["symmetry"], found["settings"]["symmetry"]) == (None, "flip")
    assert (found["num_points"], found["num_distinct"], found["order"]) == (160, 160, 2)
    assert "without_symmetry" not in alone
    for name, time in found["without_symmetry"].items():
        assert time == alone[name], name
        if time["value"] is not None:
            assert found[name]["value"] != time["value"]
    assert found["lipschitz"] == alone["lipschitz"]
    assert found["squared_norm"]["initial"] == pytest.approx(alone["squared_norm"]["initial"])
    assert found["curves"]["phi_C"]["mean"][-1] == pytest.approx(1 / 160, rel=1e-3)
    page = (folder / "mine_flip" / "report.html").read_text()
    assert page.count("Regimes of mine with the symmetry flip<") == 2
    assert page.count("data:image/png;base64,") == 8
    assert "of the images alone, without the symmetry" in page
    assert (folder / "mine_flip" / "symmetry.png").is_file()


def test_images_that_are_others_flipped_are_named(blobs, tmp_path, monkeypatch, capsys):
    """phi is what it was, and each point of the orbit is there twice."""
    images = blobs[0][:12].astype(np.float32)
    images[8:12, :, 3:] = images[8:12, :, 2::-1]  # their own mirror images, and no others'
    images = np.concatenate([images, images[3:7, :, ::-1]])
    labels = np.array([0] * 8 + [1] * 6 + [0] * 2)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    words = ("--data", tmp_path / "mine.npz", "--out", tmp_path / "o", *FAST)
    assert run(monkeypatch, *words, "--symmetry", "flip") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "8 of 16 images are others under the symmetry flip" in text
    assert "(the first: images 3 and 12, counted from 0)" in text
    assert "4 of them are of another class" in text
    assert "of the 32 maps of the images minus their mean (28 points, since some maps" in text
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    # 8 images share their points with another, each of which is two for the posterior.
    assert result["curves"]["phi_C"]["mean"][0] == pytest.approx(0.75, abs=0.03)
    assert result["num_points"] == pytest.approx(np.exp(np.log(16) + 12 / 16 * np.log(2)))


@pytest.mark.parametrize(
    ("shape", "symmetry", "message"),
    [
        ((6, 5), "mirror", "there is no symmetry 'mirror'; choose from flip, dihedral, transl"),
        ((6, 5), "dihedral", "changes the shape of images of 6 x 5 pixels: quarter turns need"),
        ((30,), "translations", "these are rows of 30 values, as flattened images are"),
        ((30,), "flip", "these are rows of 30 values, as flattened images are"),
    ],
)
def test_symmetries_that_images_do_not_have(
    shape, symmetry, message, tmp_path, monkeypatch, capsys
):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((9, *shape), np.float32))
    words = ("--data", tmp_path / "a.npy", "--out", tmp_path / "o", "--symmetry", symmetry)
    assert run(monkeypatch, *words) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert error.count("error:") == 1
    assert not (tmp_path / "o").exists()
