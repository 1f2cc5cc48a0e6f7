import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_ref import process, training  # noqa: E402
from torch_ref.unet import UNet, sinusoidal_table  # noqa: E402

DATA = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def small():
    with np.load(DATA / "unet_small.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


@pytest.fixture
def model(small):
    model = UNet(3, 16, (1, 2, 2), (2,), 2, dropout=0.0)
    weights = {k.removeprefix("weights/"): v for k, v in small.items() if k.startswith("weights/")}
    model.load_state_dict(weights)
    return model


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def test_state_dict_has_the_originals_names_and_shapes():
    shapes = {name: list(value.shape) for name, value in UNet().state_dict().items()}
    assert shapes == json.loads((DATA / "unet_state_dict_shapes.json").read_text())


def test_time_table_is_the_originals_and_is_not_trained(small):
    original = small["weights/time_embeddings.time_mlp.0.weight"]
    # Two sines that are each rounded to float32 may differ in the last digit.
    assert (sinusoidal_table(16, torch.float32) - original).abs().max() <= 2**-23
    assert not UNet(base_channels=16).time_embeddings.time_mlp[0].weight.requires_grad


def test_schedule_is_the_originals():
    with np.load(DATA / "schedule.npz") as arrays:
        for num_steps in (1000, 250, 50):
            schedule = process.linear_schedule(num_steps)
            np.testing.assert_allclose(schedule.beta, arrays[f"beta_{num_steps}"], rtol=1e-6)
            # The original multiplied up to 1000 factors in float32.
            alpha_bar = arrays[f"alpha_bar_{num_steps}"]
            np.testing.assert_allclose(schedule.alpha_bar, alpha_bar, rtol=1e-4)
            np.testing.assert_allclose(
                schedule.noise_variance, 1 - alpha_bar.astype(np.float64), rtol=1e-3
            )


def test_diffused_images_output_loss_and_gradients_are_the_originals(small, model):
    schedule = process.linear_schedule()
    x_t = process.diffuse(schedule, small["x0"], small["t"], small["noise"])
    assert relative(x_t, small["x_t"]) < 1e-6
    assert relative(model(small["x_t"], small["t"]), small["output"]) < 1e-5
    loss = training.noise_loss(model, schedule, small["x0"], small["t"], small["noise"])
    assert abs(loss.item() / small["loss"].item() - 1) < 1e-6
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == sum(name.startswith("grads/") for name in small)
    for name, grad in grads.items():
        assert relative(grad, small[f"grads/{name}"]) < 1e-4, name


def test_training_is_the_originals(small, model):
    schedule = process.linear_schedule()
    optimizer = training.make_optimizer(model)
    batches = zip(small["train/x0"], small["train/t"], small["train/noise"], strict=True)
    losses = [training.train_step(model, optimizer, schedule, *batch) for batch in batches]
    np.testing.assert_allclose(losses, small["train/losses"], rtol=1e-5)


def test_sampling_is_the_originals(small, model):
    schedule = process.linear_schedule(50)
    final = process.ancestral_chain(
        schedule, model, small["chain/x_init"], small["chain/z"], faithful=True
    )
    assert relative(final, small["chain/final"]) < 1e-4


@pytest.mark.parametrize("faithful", [False, True])
def test_noise_is_off_in_the_last_step_or_the_last_two(faithful):
    schedule = process.linear_schedule(50)
    x = torch.ones(2, 1, 2, 2)
    for step in range(4):
        noisy, quiet = (
            process.ancestral_step(schedule, lambda x, step: x, x, step, noise, faithful)
            for noise in (torch.ones_like(x), torch.zeros_like(x))
        )
        assert torch.equal(noisy, quiet) == (step < (2 if faithful else 1))


def test_gradients_are_clipped_by_their_global_norm(small, model):
    batch = (small["x0"], small["t"], small["noise"])
    for clip_norm in (1e-3, 1e3):
        before = [p.detach().clone() for p in model.parameters()]
        descent = torch.optim.SGD(model.parameters(), lr=1.0)
        training.train_step(model, descent, process.linear_schedule(), *batch, clip_norm)
        moved = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
        norm = torch.stack([d.double().square().sum() for d in moved]).sum().sqrt().item()
        if clip_norm == 1e-3:
            assert abs(norm / clip_norm - 1) < 1e-2  # the moves are rounded to float32 weights
        else:
            assert 1e-2 < norm < clip_norm


def test_dropout_drops_whole_channels_of_a_residual_blocks_second_half_in_training(model):
    block = UNet(3, 16, (1,), (), 1, dropout=0.3).encoder_blocks[0]
    assert block.block1.dropout.p == 0
    assert block.block2.dropout.p == 0.3
    torch.manual_seed(0)
    out = block.block2.dropout(torch.ones(64, 256, 2, 2))
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    dropped = (out[:, :, 0, 0] == 0).double().mean().item()
    assert abs(dropped - 0.3) < 4 * np.sqrt(0.3 * 0.7 / (64 * 256))
    assert torch.equal(
        block.eval().block2.dropout(torch.ones(4, 16, 2, 2)), torch.ones(4, 16, 2, 2)
    )
