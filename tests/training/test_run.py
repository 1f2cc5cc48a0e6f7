"""Runs end to end: in processes of their own where that is the point, here on eight devices."""

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import two_convolutions
from jax.flatten_util import ravel_pytree
from PIL import Image

from diffusion_jax.config import Config, ModelConfig
from diffusion_jax.errors import UserError
from diffusion_jax.presets import PRESETS
from diffusion_jax.runtime import backend, patience
from diffusion_jax.training import loop, run
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.metrics import read_metrics
from diffusion_jax.training.saved_config import differences, from_dict, to_dict
from diffusion_jax.training.saved_state import FORMAT, structure_of
from diffusion_jax.training.step import init_state, make_optimizer
from experiments import train_lsun
from experiments.train_lsun import parse

pytestmark = pytest.mark.usefixtures("compiled_for_few_calls")

TINY = [
    *("--data", "mnist", "--images-per-class", "20", "--image-size", "28", "--seed", "3"),
    *("--base-channels", "8", "--num-res-blocks", "1", "--multiples", "1", "1"),
    "--attention-levels",
    *("--batch-size", "8", "--diffusion-steps", "25", "--warmup-steps", "5", "--log-every", "1"),
    *("--checkpoint-every", "10", "--num-samples", "8", "--sample-every", "1000000"),
]


# Two convolutions, which compile at once, in place of the UNet: the run is the point.
SMALL = (*TINY, "--learning-rate", "0.005")


def command(run_dir, *options, devices=8):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    words = [sys.executable, two_convolutions.__file__, *SMALL, "--run-dir", run_dir, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, words)], env=env, text=True, stdout=pipe, stderr=pipe)


def finish(process, timeout=300):
    """What it prints, after it has ended well."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out


def train(run_dir, *options):
    """The same in this process: what it prints."""
    words = [*SMALL, "--run-dir", run_dir, *options]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(ModelConfig, "build", two_convolutions.build)
        loop.train(parse([*map(str, words)]))
    return printed.getvalue()


@pytest.fixture
def here(monkeypatch, capsys):
    """The command in this process, on its eight devices: its status, stdout and stderr."""
    monkeypatch.setattr(backend, "keep_freed_memory", lambda: None)  # this process goes on

    def main(run_dir, *options, setting=TINY):
        words = [*setting, "--run-dir", run_dir, *options]
        monkeypatch.setattr(sys, "argv", ["train_lsun", *map(str, words)])
        code = 0
        try:
            train_lsun.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return main


def losses(run_dir):
    records = [r for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return np.array([record["loss"] for record in records])


def evaluations(run_dir):
    records = read_metrics(run_dir / "metrics.jsonl")
    return [
        {name: value for name, value in record.items() if name != "time"}
        for record in records
        if "memorised_fraction" in record
    ]


def saved_state(run_dir, step):
    config = from_dict(json.loads((run_dir / "config.json").read_text()))
    model, optimizer = config.model.build(1), make_optimizer(config.training)
    like = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), (28, 28, 1)))
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        metadata = checkpoints.metadata(step)
        return checkpoints.restore(step, structure_of(like, metadata)), metadata


def saved(run_dir, step):
    state, _ = saved_state(run_dir, step)
    return jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))


def kill_after(step, run_dir, *options):
    """Starts a run and kills it once the checkpoint of a step is there; the last one's step."""
    process = command(run_dir, "--steps", 1_000_000, *options)
    deadline = time.monotonic() + 300
    while not (run_dir / "checkpoints" / str(step)).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        return checkpoints.latest


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "short"
    out = train(run_dir, "--steps", 20, "--checkpoint-every", 5)
    return run_dir, out


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "small"
    train(run_dir, "--steps", 60)
    return run_dir


def test_a_run_writes_what_it_says(short_run, monkeypatch):
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)
    run_dir, out = short_run
    for line in ("Devices: 8 x cpu", "Data: 40 images 28 x 28 x 1, mnist (1, 8)", "t_S = "):
        assert line in out
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(run.load_model(run_dir).denoiser.params)
    )
    first = summary["spectrum"]["first_channel"]
    assert first["t_S"] == pytest.approx(0.5 * np.log(first["Lambda"]))
    records = read_metrics(run_dir / "metrics.jsonl")
    assert len(records) == 20
    for name in ("loss", "grad_norm", "learning_rate", "images_per_second", "host_memory_gib"):
        assert all(np.isfinite(record[name]) for record in records), name
    assert losses(run_dir)[-10:].mean() < 0.8 * losses(run_dir)[:3].mean()
    assert any((run_dir / "tensorboard").iterdir())
    for name in ("training_images", "step_00000020"):
        image = np.asarray(Image.open(run_dir / "samples" / f"{name}.png"))
        assert image.shape == (3 * 116 + 4, 3 * 116 + 4)
        assert image.min() == 0
        assert image.max() == 255
    assert Image.open(run_dir / "loss.png").size[0] > 500
    assert not (run_dir / "memorisation.png").exists()  # nothing was evaluated
    model = run.load_model(run_dir)
    assert (model.step, model.shape, model.class_names) == (20, (28, 28, 1), ("1", "8"))
    np.testing.assert_allclose(model.mean, summary["mean"])


def test_a_checkpoint_of_an_earlier_version_goes_on(short_run, tmp_path, monkeypatch):
    """Its optimizer's arrays were trees like the parameters', and it did not say so."""
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)
    run_dir, folder = tmp_path / "earlier", tmp_path / "earlier" / "checkpoints"
    shutil.copytree(short_run[0], run_dir)
    state, metadata = saved_state(run_dir, 15)
    shutil.rmtree(folder)
    _, as_params = ravel_pytree(state.params)
    tree = jax.tree.map(lambda a: as_params(a) if a.ndim == 1 else a, state.opt_state)
    assert len(jax.tree.leaves(tree)) == 2 * len(jax.tree.leaves(state.params)) + 2
    assert metadata.pop("format") == FORMAT
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(15, state.replace(opt_state=tree), metadata)
    opened = run.load_model(run_dir)
    assert opened.step == 15
    jax.tree.map(np.testing.assert_array_equal, opened.denoiser.params, state.ema_params)
    assert "Resuming after step 15" in train(run_dir, "--steps", 20, "--checkpoint-every", 5)
    np.testing.assert_array_equal(losses(run_dir), losses(short_run[0]))
    for a, b in zip(saved(run_dir, 20), saved(short_run[0], 20), strict=True):
        np.testing.assert_array_equal(a, b)


BANDS = ("t_0_0.05", "t_0.05_0.2", "t_0.2_0.5", "t_0.5_1", "t_1_2", "t_2_inf")
NATS = ("information_time", "training_nats", "held_out_nats", "nats_per_image", "memory_share")
EVALUATED = [
    *("--evaluate-every", 15, "--evaluate-samples", 8, "--evaluate-calls", 5),
    *("--held-out-per-class", 6),
]


@pytest.fixture(scope="module")
def evaluated_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "evaluated"
    return run_dir, train(run_dir, "--steps", 60, *EVALUATED)


@pytest.mark.slow
def test_evaluations_change_nothing_and_survive_a_kill(
    small_run, evaluated_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)
    whole, out = evaluated_run
    expected = evaluations(whole)
    assert [record["step"] for record in expected] == [15, 30, 45, 60]
    assert out.count("memorised") == 4
    names = [f"{a}_loss/{t}" for a in ("training", "held_out") for t in BANDS]
    for record in expected:
        assert list(record) == ["step", "memorised_fraction", "neighbour_ratio", *names, *NATS]
        assert 0 <= record["memorised_fraction"] <= record["neighbour_ratio"] + 1 / 3 < 1.34
        assert all(np.isfinite(record[name]) and record[name] > 0 for name in names)
    for name in names[1:4]:
        assert expected[-1][name] < 0.9 * expected[0][name]  # it learns, from and for both
    assert Image.open(whole / "memorisation.png").size[0] > 500
    assert Image.open(whole / "loss.png").size[0] > 500
    np.testing.assert_array_equal(losses(whole), losses(small_run))

    killed = tmp_path / "killed"
    killed_at = kill_after(30, killed, *EVALUATED)
    assert 30 <= killed_at < 60
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "loss"')  # a line that the kill tore
    out = train(killed, "--steps", 60, *EVALUATED)
    assert f"Resuming after step {killed_at}" in out
    np.testing.assert_array_equal(losses(killed), losses(small_run))
    assert evaluations(killed) == expected
    for run_dir in (whole, killed):
        for a, b in zip(saved(run_dir, 60), saved(small_run, 60), strict=True):
            np.testing.assert_array_equal(a, b)
    grid = killed / "samples" / "step_00000060.png"
    grid.unlink()  # as after a kill while it was drawn
    assert "All 60 steps are done" in train(killed, "--steps", 60, *EVALUATED)
    assert grid.exists()


@pytest.fixture(scope="module")
def run_on_one(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    assert "Devices: 1 x cpu" in finish(command(run_dir, "--steps", 20, devices=1))
    return run_dir


@pytest.fixture(scope="module")
def run_of_eight(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "eight"
    assert "Devices: 8 x cpu" in train(run_dir, "--steps", 10)
    return run_dir


@pytest.mark.slow
def test_a_run_on_eight_devices_goes_on_with_fewer(run_on_one, run_of_eight, tmp_path):
    """As the whole run on one: losses to rounding, learning rates exactly."""
    run_dir = tmp_path / "run"
    shutil.copytree(run_of_eight, run_dir)
    out = finish(command(run_dir, "--steps", 20, devices=2))
    assert "Devices: 2 x cpu" in out
    assert "Resuming after step 10" in out
    np.testing.assert_allclose(losses(run_dir), losses(run_on_one), rtol=1e-5)
    rates, expected = (
        [record["learning_rate"] for record in read_metrics(folder / "metrics.jsonl")]
        for folder in (run_dir, run_on_one)
    )
    assert rates == expected


def test_several_steps_a_dispatch_change_nothing(small_run, tmp_path):
    """Neither do a resume off the multiples of a dispatch or a profile."""
    run_dir = tmp_path / "run"
    train(run_dir, "--steps", 13, "--steps-per-dispatch", 4, "--profile", 6)
    np.testing.assert_allclose(losses(run_dir), losses(small_run)[:13], rtol=1e-5)
    (trace,) = run_dir.glob("profile/plugins/profile/*/*.trace.json.gz")
    (space,) = run_dir.glob("profile/plugins/profile/*/*.xplane.pb")
    assert space.stat().st_size > 1000
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    marks = [event for event in events if event.get("name") == "train"]
    # Dispatches of 4, 4, 1 and 1 up to the checkpoint after 10, then singly to the end.
    assert [mark["args"]["step_num"] for mark in marks] == ["10", "11", "12", "13"]
    assert all(mark["dur"] > 0 for mark in marks)
    modules = {event.get("args", {}).get("hlo_module") for event in events}
    assert "jit_share" in modules  # the train step
    # The programs of the first run, from the cache.
    out = train(run_dir, "--steps", 25, "--steps-per-dispatch", 4)
    assert "Resuming after step 13" in out
    np.testing.assert_allclose(losses(run_dir), losses(small_run)[:25], rtol=1e-5)


def test_another_configuration_in_the_same_folder_is_refused(short_run, here):
    run_dir, _ = short_run
    before = (run_dir / "config.json").read_text()
    code, _, err = here(run_dir, "--learning-rate", 0.5, "--multiples", 1, 3, "--seed", 4)
    assert code == 1
    assert err.count("\n") == 1
    for part in ("learning_rate: 0.005 -> 0.5", "multiples: [1, 1] -> [1, 3]", "seed: 3 -> 4"):
        assert part in err
    assert (run_dir / "config.json").read_text() == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, here):
    monkeypatch.setattr(ModelConfig, "build", two_convolutions.build)
    run_dir = tmp_path / "diverging"
    options = ("--learning-rate", 1e30, "--warmup-steps", 0, "--checkpoint-every", 1)
    code, _, err = here(run_dir, *options, "--steps", 50)
    assert code == 1
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        good = checkpoints.latest
    assert f"at step {good + 1}; the last good checkpoint is" in err
    assert str(run_dir / "checkpoints" / str(good)) in err
    assert "--learning-rate" in err
    assert np.all(np.isfinite(losses(run_dir)))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--batch-size", 6), "a batch of 6 can't be shared evenly by 8 device(s)"),
        (("--image-size", 30, "--multiples", 1, 2, 2), "divisible by 4"),
        (("--images-per-class", 501), "holds 500 images of 1, fewer than images_per_class = 501"),
        (("--classes", "1", "x"), "must be digits"),
        (("--data", "imagenet"), "imagenet"),
        (("--diffusion-steps", 20), "more than 20 steps"),
        (("--diffusion-steps", 1001), "between 1 and 1000"),
        (("--steps", 0), "steps = 0 must be at least 1"),
        (("--log-every", 0), "log_every = 0 must be at least 1"),
        (("--learning-rate", -1), "learning_rate = -1.0 must be positive"),
        (("--seed", -1), "seed = -1 must lie between"),
        (("--steps-per-dispatch", 0), "steps_per_dispatch = 0 must be positive"),
        (("--profile", 0), "profile = 0 must be at least 1"),
        (("--evaluate-every", 0), "evaluate_every = 0 must be at least 1"),
        (("--evaluate-every", 5, "--evaluate-calls", 26), "between 2 and diffusion_steps = 25"),
        (("--evaluate-every", 5, "--evaluate-calls", 1), "evaluate_calls = 1 must lie between 2"),
        (("--held-out-per-class", 2), "is for evaluations: give evaluate_every or evaluate_at too"),
        ((*EVALUATED, "--held-out-per-class", -1), "= -1 must not be negative"),
        ((*EVALUATED, "--images-per-class", 496), "mnist holds 500 images of 1, fewer than"),
    ],
)
def test_a_bad_value_is_one_clear_sentence(tmp_path, options, part):
    config = parse([*TINY, "--run-dir", str(tmp_path / "run"), *map(str, options)])
    with pytest.raises(UserError, match=part.replace("(", r"\(").replace(")", r"\)")):
        loop.train(config)


def test_missing_lsun_is_one_sentence_and_status_1(tmp_path, here):
    setting = ("--preset", "lsun_small")
    code, _, err = here(tmp_path / "run", "--data-dir", tmp_path, setting=setting)
    assert code == 1
    assert err.startswith("error: LSUN's church_outdoor was not found")
    assert err.endswith("run: python -m experiments.train_lsun --preset sample\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "prepared").exists()


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = parse([*TINY, "--run-dir", str(tmp_path / "file" / "run")])
    with pytest.raises(UserError, match="cannot write to the run's folder"):
        loop.train(config)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--preset", "no_such"], "no_such"),
        (["--no-such-field", "1"], "no-such-field"),
        (["--steps", "many"], "many"),
    ],
)
def test_what_the_command_line_does_not_know(arguments, part, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert part in capsys.readouterr().err


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in (
        "--preset",
        "--resume",
        *PRESETS,
        "--faithful, --no-faithful",
        "--run-dir",
        "--steps",
        "--seed",
        "--data",
        "--data-dir",
        "--learning-rate",
        "--base-channels",
        "--schedule",
        "--log-every",
        "--evaluate-every",
        "--held-out-per-class",
    ):
        assert name in text


def test_presets_and_options_combine():
    config = parse([])
    assert (config.data.data, config.data.image_size, config.training.batch_size) == (
        "lsun",
        64,
        64,
    )
    assert (config.training.learning_rate, config.steps) == (1e-4, 350_000)
    assert parse(["--preset", "lsun_small"]).data.images_per_class == 100
    changed = parse(["--preset", "lsun", "--data", "mnist", "--learning-rate", "0.5"])
    assert changed.data.classes == ("1", "8")
    assert str(changed.output.run_dir) == "runs/lsun_mnist"  # not among the runs on LSUN
    assert str(parse(["--data", "mnist", "--run-dir", "x"]).output.run_dir) == "x"
    assert (changed.training.learning_rate, changed.training.batch_size) == (0.5, 64)


def test_data_without_a_preset_take_their_own():
    variants = {"lsun_small": "lsun", "celeba32_gray": "celeba"}
    for name, preset in PRESETS.items():
        assert parse(["--data", preset.data.data]) == PRESETS[variants.get(name, name)]
    assert parse(["--data", "no_such"]).training == PRESETS["lsun"].training


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("set_v1.0", "set_v1.0"),
        ("some/set_v1.1/", "set_v1.1"),
        ("set_v1.1.npz", "set_v1.1"),
        ("a.b.NPY", "a.b"),
        ("../photos.old/../photos.new", "photos.new"),
        ("~/photos.png", "photos.png"),
        ("/", "data"),
    ],
)
def test_the_folder_of_a_run_keeps_the_dots_of_its_data(data, name):
    assert parse(["--data", data]).output.run_dir == Path("runs") / f"lsun_{name}"
    assert parse(["--preset", "sample", "--data", data]).output.run_dir.name == f"sample_{name}"


def test_configuration_survives_json():
    for arguments in ([], ["--preset", "sample", "--data-dir", "x", "--multiples", "1", "3"]):
        config = parse(arguments)
        assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(UserError, match="unknown field"):
        from_dict(to_dict(Config()) | {"colour": 1})


def test_evaluations_may_change_when_a_run_is_resumed():
    assert differences(parse(TINY), parse([*TINY, *map(str, EVALUATED)])) == []


def test_a_failed_first_start_binds_nobody(tmp_path):
    with pytest.raises(UserError, match="holds 500"):
        loop.train(parse([*TINY, "--run-dir", str(tmp_path), "--images-per-class", "501"]))
    with pytest.raises(UserError, match="divisible by 8"):  # past the check of the configuration
        loop.train(parse([*TINY, "--run-dir", str(tmp_path), "--multiples", "1", "1", "1", "1"]))


def test_what_a_first_start_says_of_data_that_the_system_refuses(tmp_path):
    """It is about the data, not about the run's folder, in which nothing is yet."""
    data = tmp_path / "images.npy"
    data.symlink_to("/proc/self/mem")  # whoever reads it is told EIO
    with pytest.raises(UserError, match=r"images\.npy cannot be read .* Input/output error$"):
        loop.train(parse(["--data", str(data), "--run-dir", str(tmp_path / "run")]))


def test_a_damaged_configuration_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"steps": 5')
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        run.load_model(tmp_path)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        loop.train(parse([*TINY, "--run-dir", str(tmp_path)]))
    assert (tmp_path / "config.json").read_text() == '{"steps": 5'
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is damaged: it holds no JSON object"):
        run.load_model(tmp_path)
    monkeypatch.setattr(patience, "PAUSES", ())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/proc/self/mem")  # whoever reads it is told EIO
    for use in (
        run.load_model,
        lambda folder: loop.train(parse([*TINY, "--run-dir", str(folder)])),
    ):
        with pytest.raises(UserError, match=r"cannot read .*config\.json: Input/output error"):
            use(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        run.load_model(tmp_path)
