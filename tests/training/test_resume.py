"""A run that goes on by its folder's name: from elsewhere, on moved data, after another version."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from two_convolutions import build

from diffusion_jax import forking
from diffusion_jax.config import Config, ModelConfig
from diffusion_jax.errors import UserError
from diffusion_jax.training import loop, moments, outputs, run, saved_config
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.saved_state import FORMAT, upgrade
from experiments import likelihood
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
LABELS = np.array(["cats", "dogs"])[np.arange(24) % 2]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two updates on an .npz beside it, named by relative paths."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(ModelConfig, "build", build)
        np.savez("images_v1.0.npz", images=IMAGES, labels=LABELS)
        words = ("--data", "images_v1.0.npz", "--batch-size", 8, "--log-every", 1, "--steps", 2)
        more = ("--diffusion-steps", 25, "--num-samples", 1, "--learning-rate", 0.01)
        loop.train(parse([*map(str, (*words, *more, "--run-dir", "run"))]))
    return folder


@pytest.fixture
def place(begun, tmp_path, monkeypatch):
    """A copy of the run and its data, the current folder."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelConfig, "build", build)
    return tmp_path


def resume(*words):
    loop.train(parse(["--resume", *map(str, words)]))


def steps(run_dir):
    return [record["step"] for record in read_metrics(Path(run_dir) / "metrics.jsonl")]


def change(run_dir, **values):
    """Sets fields of config.json, `training__faithful` for one of `training`."""
    path = Path(run_dir) / "config.json"
    config = json.loads(path.read_text())
    for name, value in values.items():
        room, _, field = name.rpartition("__")
        target = config[room] if room else config
        if value is None:
            del target[field]
        else:
            target[field] = value
    path.write_text(json.dumps(config))


def test_nothing_is_typed_again(place):
    began = saved_config.read(place / "run")
    resume("run", "--steps", 4)
    assert steps("run") == [1, 2, 3, 4]
    now = saved_config.read(place / "run")
    assert now == dataclasses.replace(began, steps=4)


def test_it_goes_on_in_the_folder_where_it_is_now(place, monkeypatch):
    (place / "elsewhere").mkdir()
    (place / "run").rename(place / "elsewhere" / "moved")
    monkeypatch.chdir(place / "elsewhere")
    with pytest.raises(UserError, match=r"images_v1\.0\.npz does not exist.*--data and --data-dir"):
        resume("moved", "--steps", 4)
    before = (place / "elsewhere" / "moved" / "config.json").read_text()
    assert "images_v1.0.npz" in before
    resume("moved", "--steps", 4, "--data", "../images_v1.0.npz")
    assert steps("moved") == [1, 2, 3, 4]
    resume("moved", "--steps", 5)  # it knows where they are
    assert saved_config.read(Path("moved")).output.run_dir == Path("moved")
    assert not (place / "run").exists()


def as_folder():
    for i, (pixels, name) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = Path("pictures") / name / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    order = np.argsort(LABELS, kind="stable")
    np.savez("sorted.npz", images=IMAGES[order], labels=LABELS[order])
    return "pictures", "sorted.npz"


def test_data_are_known_by_their_images_not_by_their_path(place):
    np.savez("again.npz", x=IMAGES, y=LABELS)
    resume("run", "--steps", 3, "--data", "again.npz")
    for others, message in (
        ({"images": IMAGES[::-1], "labels": LABELS[::-1]}, "not all pixels and labels in their"),
        ({"images": IMAGES, "labels": LABELS[::-1]}, "not all pixels and labels in their order"),
        ({"images": IMAGES[:-1], "labels": LABELS[:-1]}, "its num_images was 24 and is 23"),
        ({"images": IMAGES}, r"its classes was \['cats', 'dogs'\] and is \[\]"),
        ({"images": IMAGES // 2, "labels": LABELS}, "its mean was"),
    ):
        np.savez("others.npz", **others)
        kept = {path: path.read_bytes() for path in (place / "run").glob("*.*")}
        with pytest.raises(UserError, match=f"the data changed since.*{message}"):
            resume("run", "--steps", 4, "--data", "others.npz")
        assert {path: path.read_bytes() for path in (place / "run").glob("*.*")} == kept
    resume("run", "--steps", 4)


def test_the_same_images_of_a_folder_and_of_an_archive(place):
    pictures, archive = as_folder()
    words = ["--data", pictures, "--batch-size", 8, "--steps", 1, "--num-samples", 1]
    words += ["--diffusion-steps", 25, "--run-dir", "of_folder"]
    loop.train(parse([*map(str, words)]))
    resume("of_folder", "--data", archive, "--steps", 2)
    assert saved_config.read(Path("of_folder")).data.data == archive


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--learning-rate", 0.5), ("--learning-rate: 0.01 -> 0.5",)),
        (("--faithful",), ("--faithful: False -> True",)),
        (("--seed", 1, "--dropout", 0.3), ("--seed: 0 -> 1", "--dropout: 0.1 -> 0.3")),
        (("--schedule", "cosine"), ("--schedule: linear -> cosine",)),
        (("--schedule-parameters", "last", 0.01), ("--schedule-parameters: {} -> {'last': 0.01}",)),
        (("--multiples", 1, 3), ("--multiples: [1, 2, 4, 4] -> [1, 3]",)),
    ],
)
def test_what_is_not_free_is_refused_by_name(place, words, parts):
    with pytest.raises(UserError) as refused:
        parse(["--resume", "run", *map(str, words)])
    message = str(refused.value)
    assert "\n" not in message
    for part in (*parts, "--steps", "--data,", "--data-dir", "--accumulation", "--remat"):
        assert part in message
    assert "--run-dir" not in message


def test_what_contradicts_resume(place):
    with pytest.raises(UserError, match="--preset mnist does not go with --resume"):
        parse(["--resume", "run", "--preset", "mnist"])
    with pytest.raises(UserError, match="--run-dir other another"):
        parse(["--resume", "run", "--run-dir", "other"])
    with pytest.raises(UserError, match="gone is not the folder of a run"):
        parse(["--resume", "gone"])
    same = parse(["--resume", "run", "--run-dir", "run", "--learning-rate", "0.01"])
    assert same == saved_config.read(place / "run")


def test_every_free_option_may_change(place):
    """Accumulation among them, for the mathematics stay the same."""
    words = ("--accumulation", 1, "--remat", "--steps-per-dispatch", 2, "--log-every", 1)
    words += ("--keep-checkpoints", 5, "--memory-gib", 2, "--checkpoint-every", 7)
    resume("run", "--steps", 4, *words)
    assert saved_config.read(place / "run").model.remat
    change("run", training__accumulation=4)
    resume("run", "--accumulation", 1, "--steps", 5)
    assert steps("run") == [1, 2, 3, 4, 5]
    assert {"accumulation", "steps", "data", "remat"} <= set(saved_config.free_fields())
    assert not {"seed", "batch_size", "run_dir"} & set(saved_config.free_fields())


def fields_of(cls, prefix=""):
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from fields_of(field.type, f"{field.name}__")
        else:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("field", list(fields_of(Config)))
def test_a_field_that_the_run_does_not_know_yet_refuses_nothing(place, field):
    """As in the config.json and the checkpoint of a version from before the field was there."""
    default = saved_config._flat(Config())[field.replace("__", ".")]
    config = saved_config._flat(saved_config.read(place / "run"))
    change("run", **{field: None})
    asked = saved_config.from_dict(json.loads((place / "run" / "config.json").read_text()))
    saved_config.settle(
        dataclasses.replace(asked, output=dataclasses.replace(asked.output, run_dir=Path("run"))),
        binding=True,
    )
    if config[field.replace("__", ".")] == default:
        with Checkpoints(place / "run" / "checkpoints", read_only=True) as checkpoints:
            saved = checkpoints.metadata(2)["config"]
        room, _, name = field.rpartition("__")
        del (saved[room] if room else saved)[name]
        whole = saved_config.read(place / "run")
        saved_config.require_same_model(place / "run", whole, saved)


def test_a_field_of_a_newer_version_is_named(place):
    change("run", training__colour=3)
    with pytest.raises(UserError, match=r"config\.json cannot be read.*colour.*the version that"):
        parse(["--resume", "run"])


def resave(run_dir, edit):
    """Saves the run's checkpoint again with other metadata."""
    folder = Path(run_dir) / "checkpoints"
    with Checkpoints(folder, read_only=True) as checkpoints:
        metadata = checkpoints.metadata(2)
    config = saved_config.read(Path(run_dir))
    prepared = loop._Run.prepare(config)
    with Checkpoints(folder, read_only=True) as checkpoints:
        _, state, _ = checkpoints.restore_newest(prepared.structure_of)
    shutil.rmtree(folder)
    edit(metadata)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, state, metadata)


def test_a_checkpoint_of_the_format_before(place):
    def edit(metadata):
        assert metadata.pop("format") == FORMAT
        metadata["optimizer_state"] = "vectors"
        del metadata["fingerprint"], metadata["config"]["training"]["faithful"]

    resave("run", edit)
    assert run.load_model("run").fingerprint is None
    np.savez("others.npz", images=IMAGES // 2, labels=LABELS)
    with pytest.raises(UserError, match="its mean was"):
        resume("run", "--steps", 3, "--data", "others.npz")
    resume("run", "--steps", 3)
    assert run.load_model("run").fingerprint is not None  # from now on
    assert steps("run") == [1, 2, 3]


def test_a_checkpoint_of_a_newer_version_is_refused_and_kept(place):
    resave("run", lambda metadata: metadata.update(format=FORMAT + 1))
    for use in (lambda: resume("run", "--steps", 3), lambda: run.load_model("run")):
        with pytest.raises(UserError, match="was made by a newer version") as refused:
            use()
        assert "\n" not in str(refused.value)
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["2"]


def test_metadata_are_upgraded_from_every_format():
    assert upgrade({"a": 1}) == {"format": 0, "fingerprint": None, "network": None, "a": 1}
    assert upgrade({"optimizer_state": "vectors"})["format"] == 1
    today = {"format": FORMAT, "fingerprint": "f", "network": "Mine"}
    assert upgrade(today) == today
    old = {"optimizer_state": "vectors", "fingerprint": "g", "network": None}
    assert upgrade(upgrade(old)) == upgrade(old) == old | {"format": 1}


def test_the_spectrum_is_computed_once_for_the_same_images(place, monkeypatch, capsys):
    summary = json.loads(Path("run/summary.json").read_text())
    kept = moments.load(Path("run"))
    assert kept.fingerprint == summary["fingerprint"]
    assert summary["spectrum"]["all_channels"]["Lambda"] == kept.eigenvalue

    def never(*arguments, **named):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "largest_eigenvalue", never)
        patch.setattr(moments.Moments, "of", never)
        resume("run", "--steps", 3)
    assert json.loads(Path("run/summary.json").read_text())["spectrum"] == summary["spectrum"]
    assert f"Lambda = {kept.eigenvalue:.3f}" in capsys.readouterr().out
    for name in ("summary.json", "moments.npz"):  # an earlier version's run, or damage
        for damage in (Path.unlink, lambda path: path.write_bytes(b"PK half")):
            damage(Path("run") / name)
            resume("run", "--steps", 3)
            assert json.loads(Path("run/summary.json").read_text()) == summary
            assert moments.load(Path("run")).eigenvalue == kept.eigenvalue


def test_where_the_data_of_a_trained_run_are_now(place):
    """As experiments.cloning and experiments.likelihood are told."""
    Path("images_v1.0.npz").rename("moved.npz")
    model = run.load_model("run")
    with pytest.raises(UserError, match=r"cannot be read: images.*--data and --data-dir say where"):
        forking.training_images(model)
    images = forking.training_images(model.with_data("moved.npz"))
    np.testing.assert_array_equal(images.images, IMAGES)
    np.testing.assert_array_equal(images.mean, model.mean)
    np.savez("others.npz", images=IMAGES[::-1], labels=LABELS[::-1])
    with pytest.raises(UserError, match="the training images changed since the run: their shape"):
        forking.training_images(model.with_data("others.npz"))
    options = likelihood.Options(Path("run"))
    with pytest.raises(UserError, match="cannot be read: images"):
        likelihood.load_images(options, model)
    moved = dataclasses.replace(options, data=Path("moved.npz"))
    np.testing.assert_array_equal(likelihood.load_images(moved, model).images, IMAGES)
    there = model.with_data(data_dir=Path("there"))
    assert there.config.data == dataclasses.replace(model.config.data, data_dir=Path("there"))
    assert model.with_data().config == model.config


def test_fewer_steps_than_are_done_change_nothing(place):
    before = Path("run/config.json").read_text()
    with pytest.raises(UserError, match="has done 2 updates, more than steps = 1"):
        resume("run", "--steps", 1)
    assert Path("run/config.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sampler", "euler"), "no sampler 'euler'; choose from ancestral"),
        (("--evaluate-every", 1, "--evaluate-calls", 26), "evaluate_calls = 26"),
    ],
)
def test_what_a_grid_could_not_be_drawn_with_is_refused_at_once(tmp_path, words, message):
    config = parse([*map(str, (*words, "--run-dir", tmp_path / "run", "--diffusion-steps", 25))])
    with pytest.raises(UserError, match=message):
        loop.train(config)
    assert not (tmp_path / "run").exists()


def test_what_is_drawn_may_change_when_a_run_goes_on(place):
    """Clipping and the sampler of grids are no mathematics of the training."""
    grids = []
    for words in (("--no-clip",), ("--clip", "--sampler", "ddim")):
        Path("run/samples/step_00000002.png").unlink(missing_ok=True)
        resume("run", "--steps", 2, *words)
        grids.append(Path("run/samples/step_00000002.png").read_bytes())
    assert grids[0] != grids[1]
