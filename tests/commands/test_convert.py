"""The conversion commands, and parity through them: torch to a run, samples, and back."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="torch is not installed")

from diffusion_jax.data import load  # noqa: E402
from diffusion_jax.errors import UserError  # noqa: E402
from diffusion_jax.runtime import lock  # noqa: E402
from diffusion_jax.sampling import START, keys_of_step, normal, sample  # noqa: E402
from diffusion_jax.training import loop, run  # noqa: E402
from diffusion_jax.training.checkpoint import Checkpoints  # noqa: E402
from diffusion_jax.training.outputs import which_parameters  # noqa: E402
from experiments import convert  # noqa: E402
from experiments.train_lsun import parse  # noqa: E402
from torch_ref import bridge, compare  # noqa: E402
from torch_ref import process as torch_process  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

OPTIONS = [
    *("--preset", "mnist", "--image-size", "28", "--images-per-class", "20", "--seed", "3"),
    *("--diffusion-steps", "25", "--batch-size", "8", "--num-samples", "4", "--log-every", "1"),
    *("--steps", "2"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small model in the original's format, and the run made of it.

    Its time table was made elsewhere, as the last digits tell.
    """
    folder = tmp_path_factory.mktemp("convert")
    model = compare.perturbed(
        channels=1, base_channels=8, multiples=(1, 2), attention_levels=(), num_res_blocks=1
    )
    with torch.no_grad():  # a gentle denoiser: the chain of a perturbed one explodes
        for name, parameter in model.final_block.conv.named_parameters():
            parameter *= 0.1 if name == "weight" else 0.0
        table = model.time_embeddings.time_mlp[0].weight
        table += 4e-6 * torch.cos(torch.arange(table.numel())).reshape(table.shape)
    bridge.save(folder / "original.pt", model.state_dict())
    from_torch(folder / "original.pt", *OPTIONS, "--run-dir", folder / "run")
    return folder, model


def from_torch(*words):
    """The command, but for its settings of JAX; the configuration that it was given."""
    options = convert.parse(["from-torch", *map(str, words)])
    convert.from_torch(options.checkpoint, options.mean, options.config, options.weights)
    return options.config


def printed_command(capsys):
    """What the last line that was printed says to train further with."""
    words = shlex.split(capsys.readouterr().out.strip().split("\n")[-1])
    return words[words.index("experiments.train_lsun") + 1 :]


def test_a_converted_checkpoint_samples_as_the_original(original):
    """Same start and noise in both; the run is faithful and knows its shape and mean."""
    folder, model = original
    trained = run.load_model(folder / "run")
    assert trained.step == 0
    assert trained.shape == (28, 28, 1)
    assert trained.sampler.faithful
    digits = np.asarray(trained.mean)
    assert 0.1 < digits[0] < 0.2
    key = jax.random.key(7)
    got = sample(trained.sampler, trained.denoiser, key, 3, trained.shape)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))
    noise = [
        compare.nchw(normal(keys_of_step(keys, s), trained.shape)) for s in (*range(25), START)
    ]
    tables = torch_process.linear_schedule(25)
    want = torch_process.ancestral_chain(
        tables, model, noise[25], torch.stack(noise[:25]), faithful=True
    )
    assert compare.relative_error(got, compare.nhwc(want)) < 1e-4
    assert np.abs(got).max() > 0.5


@pytest.mark.parametrize("name", ["Model_1", "back.safetensors"])
def test_converted_and_converted_back_is_bit_equal(original, name):
    folder, model = original
    convert.to_torch(folder / "run", folder / name)
    back, want = bridge.load(folder / name), model.state_dict()
    if name == "Model_1":
        assert torch.load(folder / name, weights_only=True).keys() == want.keys()
    assert set(back) == set(want)
    for name, tensor in want.items():
        assert torch.equal(back[name], tensor), name
    model.load_state_dict(back)


@pytest.mark.slow
def test_a_converted_run_trains_on(original, capsys):
    folder, _ = original
    with pytest.raises(UserError, match="holds a run already"):
        from_torch(folder / "original.pt", "--mean", 0.1, *OPTIONS, "--run-dir", folder / "run")
    copy = folder / "and further"
    mean = run.load_model(folder / "run").mean + np.float32(3e-7)  # as it may have been typed
    words = ("--mean", mean[0], *OPTIONS, "--run-dir", copy)
    from_torch(folder / "original.pt", *words)
    config = parse(printed_command(capsys))
    assert config.model.multiples == (1, 2)
    assert config.training.faithful
    before = run.load_model(copy).denoiser.params
    loop.train(config)
    after = run.load_model(copy)
    assert after.step == 2
    assert (after.mean == mean).all()
    assert after.fingerprint is not None  # of the data, which were not at hand before
    convert.to_torch(copy, copy / "trained.pt")
    trained, first = bridge.load(copy / "trained.pt"), bridge.load(folder / "original.pt")
    assert torch.equal(trained[bridge.TIME_TABLE], first[bridge.TIME_TABLE])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after.denoiser.params)
    assert 0 < max(jax.tree.leaves(moved)) < 1e-3
    # Where it began stays known.
    converted = {"file": str(folder / "original.pt"), "weights": "the only ones", "prefix": ""}
    assert summary_of(copy)["converted"] == converted
    assert "spectrum" in summary_of(copy)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ([], "average", "the average of the weights, under 'ema'; --weights raw takes those under"),
        (["--weights", "raw"], "raw", "the raw weights, under 'model'; the average is under 'ema'"),
    ],
)
def test_which_weights_were_taken_is_said_and_kept(original, tmp_path, capsys, words, kind, said):
    _, model = original
    raw = model.state_dict()
    average = raw | {"init_conv.bias": raw["init_conv.bias"] + 1}
    path, run_dir = tmp_path / "Model_350000", tmp_path / "run"
    torch.save({"step": 350000, "model": raw, "ema": average}, path)
    from_torch(path, *words, "--mean", 0.1, *OPTIONS, "--classes", 1, 8, "--run-dir", run_dir)
    assert f"Took {said}" in capsys.readouterr().out
    prefix, want = ("ema", average) if kind == "average" else ("model", raw)
    converted = {"file": str(path), "weights": kind, "prefix": prefix}
    assert json.loads((run_dir / "converted.json").read_text()) == converted
    parameters = sum(v.numel() for n, v in raw.items() if n != bridge.TIME_TABLE)
    assert summary_of(run_dir) == {
        "parameters": parameters,
        "data": "mnist",
        "images": 40,
        "shape": [28, 28, 1],
        "classes": ["1", "8"],
        "mean": [pytest.approx(0.1)],
        "fingerprint": None,
        "converted": converted,
    }
    got = run.load_model(run_dir).denoiser.params["init_conv"]["bias"]
    np.testing.assert_array_equal(got, want["init_conv.bias"].numpy())


def test_what_was_noticed_of_the_data_is_kept_as_training_keeps_it(original, tmp_path, capsys):
    folder, _ = original
    clear = np.zeros((16, 16, 2), np.uint8)
    clear[:8] = 200
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(clear).save(tmp_path / "pictures" / f"{i}.png")
    run_dir = tmp_path / "run"
    words = ("--data", tmp_path / "pictures", "--diffusion-steps", 25, "--batch-size", 4)
    from_torch(folder / "original.pt", *words, "--run-dir", run_dir)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [f"note: {note}" for note in summary_of(run_dir)["notes"]] == said
    assert "transparen" in said[0]


GREY = np.random.default_rng(0).integers(0, 256, (24, 28, 28, 1), np.uint8)
NAMES = np.array(["cats", "dogs"])[np.arange(24) % 2]


def images_in(kind, folder):
    """The same images in a path of each kind that there is."""
    if kind == "folder":
        for i, (pixels, name) in enumerate(zip(GREY, NAMES, strict=True)):
            path = folder / "pictures" / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[..., 0]).save(path)
        return folder / "pictures"
    path = folder / f"pictures.{kind[-3:]}"
    labels = {} if kind == "bare npz" else {"labels": NAMES}
    np.save(path, GREY) if kind == "npy" else np.savez(path, images=GREY, **labels)
    return path


@pytest.mark.parametrize(
    ("kind", "mean"),
    [
        *((kind, "computed") for kind in ("folder", "npz", "bare npz", "npy")),
        *((kind, "typed") for kind in ("folder", "npy")),
    ],
)
def test_ones_own_data_go_on_by_the_command_printed(
    original, tmp_path, capsys, monkeypatch, kind, mean
):
    """Its classes and its fingerprint are known from the start, whether the mean is typed or not.

    The runs themselves are tried above.
    """
    folder, _ = original
    path = images_in(kind, tmp_path)
    value = np.float32(GREY.mean(dtype=float) / 255)
    typed = ("--mean", f"{value:.7f}") if mean == "typed" else ()
    words = ("--data", path, "--diffusion-steps", 25, "--batch-size", 8, "--steps", 1)
    from_torch(folder / "original.pt", *typed, *words, "--run-dir", tmp_path / "run")
    config = parse(printed_command(capsys))
    prepared = loop._Run.prepare(config)
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints.metadata(0)
    prepared.structure_of(saved)
    assert saved["fingerprint"] == prepared.metadata["fingerprint"]
    assert saved["num_images"] == 24
    assert saved["classes"] == ([] if kind in ("bare npz", "npy") else ["cats", "dogs"])
    again = prepared.with_mean(saved["mean"])
    assert again.metadata["mean"] == saved["mean"] == pytest.approx([value], abs=1e-7)
    np.testing.assert_array_equal(again.images.mean, np.float32(saved["mean"]))
    lock.release(tmp_path / "run")


def test_a_mean_off_by_more_than_rounding_is_refused_and_may_be_to_blame(original, tmp_path):
    folder, _ = original
    path, value = images_in("npy", tmp_path), GREY.mean(dtype=float) / 255
    for off, refused in ((4e-7, False), (5e-6, True)):
        run_dir = tmp_path / f"{off}"
        words = ("--data", path, "--batch-size", 8, "--diffusion-steps", 25, "--run-dir", run_dir)
        config = from_torch(folder / "original.pt", "--mean", value + off, *words)
        model = run.load_model(run_dir)
        assert model.mean == np.float32(value + off)
        if not refused:
            np.testing.assert_array_equal(model.own_images(load(config.data)).mean, model.mean)
            continue
        with pytest.raises(UserError, match=r"the data changed since.*if a --mean given to"):
            loop.train(parse(["--resume", str(run_dir)]))


def test_a_run_whose_data_are_not_at_hand_is_known_by_number_and_classes(original, tmp_path):
    folder, _ = original
    words = (*OPTIONS, "--data", tmp_path / "gone", "--classes", "cats", "dogs")
    from_torch(folder / "original.pt", "--mean", 0.5, *words, "--run-dir", tmp_path / "run")
    model = run.load_model(tmp_path / "run")
    assert (model.class_names, model.shape) == (("cats", "dogs"), (28, 28, 1))
    assert model.fingerprint is None


@pytest.mark.parametrize("options", [("--preset", "lsun"), ("--data", "mnist_full")])
def test_without_its_data_the_mean_is_asked_for(original, tmp_path, options):
    folder, _ = original
    place = ("--data-dir", tmp_path / "LSUN", "--run-dir", tmp_path / "run")
    text = "it does not exist; .*; without these data, give --mean of the images that the model"
    with pytest.raises(UserError, match=text) as error:
        from_torch(folder / "original.pt", *options, *place)
    assert "--preset" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_whose_mean_was_taken_is_said(original, tmp_path, capsys):
    folder, _ = original
    words = (*OPTIONS, "--classes", 1, 8)
    from_torch(folder / "original.pt", *words, "--run-dir", tmp_path / "run")
    mean = run.load_model(tmp_path / "run").mean[0]
    assert f"\nmean {mean:.4g} of 40 images (mnist)\n" in capsys.readouterr().out
    from_torch(folder / "original.pt", "--mean", mean, *words, "--run-dir", tmp_path / "typed")
    assert "images (mnist)" not in capsys.readouterr().out


def test_the_parameters_of_no_update_are_called_those_of_their_file(original, tmp_path, capsys):
    folder, _ = original
    convert.to_torch(folder / "run", tmp_path / "back.pt")
    of = "the parameters of the converted checkpoint original.pt (no update here yet); mean"
    assert of in capsys.readouterr().out
    assert which_parameters(folder / "run", 3) == "step 3"
    assert which_parameters(tmp_path, 0) == "step 0"


def test_the_order_of_checkpoint_and_options_is_free(tmp_path):
    for words in (["x.pt", "--mean", "0.1", "--no-faithful"], ["--no-faithful", "x.pt"]):
        options = convert.parse(["from-torch", *words])
        assert options.checkpoint == Path("x.pt")
        assert not options.config.training.faithful
    old = convert.parse(["from-torch", "~/x.pt", "--faithful", "False", "--preset", "mnist"])
    assert (old.checkpoint, old.config.training.faithful) == (Path.home() / "x.pt", False)
    assert old.config.training.batch_size == 128


def test_a_damaged_time_table_is_refused(original, tmp_path):
    """Or one of another model; and without one it is ours."""
    folder, _ = original
    copy = tmp_path / "run"
    shutil.copytree(folder / "run", copy)
    table, out = copy / convert.TIME_TABLE, tmp_path / "out.pt"
    whole = table.read_bytes()
    for content, message in [
        (whole[:-1], "time_table.npy cannot be read: .*; restore it, or remove it"),
        (b"", "time_table.npy cannot be read"),
        (whole.replace(b"(1000, 8)", b"(500, 16)"), r"of shape \(500, 16\), not \(1000, 8\)"),
    ]:
        table.write_bytes(content)
        with pytest.raises(UserError, match=message):
            convert.to_torch(copy, out)
    np.save(table, 2e-4 + np.load(folder / "run" / convert.TIME_TABLE))
    with pytest.raises(UserError, match=r"the time table is not .* up to 0\.0002 off"):
        convert.to_torch(copy, out)
    assert not out.exists()
    table.unlink()
    convert.to_torch(copy, out)
    ours = bridge.sinusoidal_table(8, torch.float32)
    assert torch.equal(bridge.load(out)[bridge.TIME_TABLE], ours)


def test_bad_input_leaves_nothing_behind(original, tmp_path, monkeypatch, capsys):
    folder, model = original
    broken = {name: value for name, value in model.state_dict().items() if "init_conv" not in name}
    bridge.save(tmp_path / "broken.pt", broken)
    arguments = ("--run-dir", str(tmp_path / "run"), *OPTIONS)
    words = ["convert", "from-torch", str(tmp_path / "broken.pt"), "--mean", "0.1", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "missing: init_conv.bias, init_conv.weight" in message
    assert not (tmp_path / "run").exists()

    with pytest.raises(UserError, match="the mean has 3"):
        from_torch(folder / "original.pt", "--mean", 0.1, 0.2, 0.3, *arguments)
    with pytest.raises(UserError, match="is not the folder of a run"):
        convert.to_torch(tmp_path / "nowhere", tmp_path / "out.pt")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out.pt").exists()
