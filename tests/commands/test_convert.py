"""The conversion commands, and parity through them: torch to a run, samples, and back."""

import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from diffusion_jax.errors import UserError  # noqa: E402
from diffusion_jax.sampling import START, normal, sample  # noqa: E402
from diffusion_jax.training import loop, run  # noqa: E402
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
    arguments = [*OPTIONS, "--run-dir", str(folder / "run")]
    convert.from_torch(folder / "original.pt", None, arguments)
    return folder, model, arguments


def test_a_converted_checkpoint_samples_as_the_original(original):
    """Same start and noise in both; the run is faithful and knows its shape and mean."""
    folder, model, _ = original
    trained = run.load_model(folder / "run")
    assert trained.step == 0
    assert trained.shape == (28, 28, 1)
    assert trained.sampler.faithful
    digits = np.asarray(trained.mean)
    assert 0.1 < digits[0] < 0.2
    key = jax.random.key(7)
    got = sample(trained.sampler, trained.denoiser, key, 3, trained.shape)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))
    noise = [compare.nchw(normal(keys, jnp.int32(s), trained.shape)) for s in (*range(25), START)]
    tables = torch_process.linear_schedule(25)
    want = torch_process.ancestral_chain(
        tables, model, noise[25], torch.stack(noise[:25]), faithful=True
    )
    assert compare.relative_error(got, compare.nhwc(want)) < 1e-4
    assert np.abs(got).max() > 0.5


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_converted_and_converted_back_is_bit_equal(original, suffix):
    folder, model, _ = original
    convert.to_torch(folder / "run", folder / f"back{suffix}")
    back, want = bridge.load(folder / f"back{suffix}"), model.state_dict()
    assert set(back) == set(want)
    for name, tensor in want.items():
        assert torch.equal(back[name], tensor), name
    model.load_state_dict(back)


def test_a_converted_run_trains_on(original, capsys):
    folder, _, arguments = original
    with pytest.raises(UserError, match="holds a run already"):
        convert.from_torch(folder / "original.pt", [0.1], arguments)
    copy = folder / "further"
    convert.from_torch(folder / "original.pt", None, [*arguments[:-1], str(copy)])
    command = capsys.readouterr().out.strip().split("\n")[-1].split()
    config = parse(command[command.index("experiments.train_lsun") + 1 :])
    assert config.model.multiples == (1, 2)
    before = run.load_model(copy).denoiser.params
    loop.train(config)
    after = run.load_model(copy)
    assert after.step == 2
    convert.to_torch(copy, copy / "trained.pt")
    trained, first = bridge.load(copy / "trained.pt"), bridge.load(folder / "original.pt")
    assert torch.equal(trained[bridge.TIME_TABLE], first[bridge.TIME_TABLE])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after.denoiser.params)
    assert 0 < max(jax.tree.leaves(moved)) < 1e-3


def test_a_damaged_time_table_is_refused(original, tmp_path):
    """Or one of another model; and without one it is ours."""
    folder, _, _ = original
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
    folder, model, _ = original
    broken = {name: value for name, value in model.state_dict().items() if "init_conv" not in name}
    bridge.save(tmp_path / "broken.pt", broken)
    arguments = ["--run-dir", str(tmp_path / "run"), *OPTIONS]
    words = ["convert", "from-torch", str(tmp_path / "broken.pt"), "--mean", "0.1", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "missing: init_conv.bias, init_conv.weight" in message
    assert not (tmp_path / "run").exists()

    with pytest.raises(UserError, match="the mean has 3"):
        convert.from_torch(folder / "original.pt", [0.1, 0.2, 0.3], arguments)
    with pytest.raises(UserError, match="is not the folder of a run"):
        convert.to_torch(tmp_path / "nowhere", tmp_path / "out.pt")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out.pt").exists()
