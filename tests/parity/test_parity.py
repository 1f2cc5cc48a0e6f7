"""The Flax model against the PyTorch reference, through the bridge.

Errors are relative to the largest absolute value of the whole tensor. float64 shows that the two
are one model; what is left in float32 is rounding.
"""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit
from scipy import stats

torch = pytest.importorskip("torch", reason="torch is not installed")

from diffusion_jax import process, schedule  # noqa: E402
from diffusion_jax.config import TrainingConfig  # noqa: E402
from diffusion_jax.denoisers import TrainedDenoiser  # noqa: E402
from diffusion_jax.nn import unet  # noqa: E402
from diffusion_jax.nn.kernels import CPU  # noqa: E402
from diffusion_jax.nn.plain import PLAIN  # noqa: E402
from diffusion_jax.sampling import AncestralSampler  # noqa: E402
from diffusion_jax.training.step import make_optimizer, noise_loss  # noqa: E402
from torch_ref import bridge, compare  # noqa: E402
from torch_ref import process as torch_process  # noqa: E402
from torch_ref import training as torch_training  # noqa: E402
from torch_ref import unet as torch_unet  # noqa: E402
from torch_ref.compare import (  # noqa: E402
    BOUNDS,
    batch,
    nchw,
    nhwc,
    perturbed,
    precision,
    relative_error,
    to_torch,
)

TINY = {"base_channels": 16, "multiples": (1, 2), "attention_levels": (2,), "num_res_blocks": 1}
# For whole trainings, whose model is the point no more.
ONE_LEVEL = TINY | {"multiples": (1,), "attention_levels": (1,)}


def assert_within(errors, dtype):
    for kind, error in errors.items():
        assert error <= BOUNDS[dtype][kind], kind


def assert_trees_close(got, want, bound):
    errors = jax.tree.map(relative_error, got, want)
    for path, worst in jax.tree_util.tree_leaves_with_path(errors):
        assert worst < bound, jax.tree_util.keystr(path)


def test_a_nan_is_not_overlooked():
    good, bad = np.ones(2), np.full(2, np.nan)
    assert np.isnan(compare.worst_error([good, bad, good], [good, good, good]))


# One block of each kind within the model TINY: place in Flax and in the reference, input channels.
BLOCKS = {
    "block": ("final_block", "final_block", 16),
    "residual block": ("encoder0", "encoder_blocks.0", 16),
    "residual block of another width with attention": ("encoder2", "encoder_blocks.2", 16),
    "attention": ("bottleneck0.attention", "bottleneck_blocks.0.attention", 32),
    "down-sampling": ("encoder1", "encoder_blocks.1", 16),
    "up-sampling": ("decoder2", "decoder_blocks.2", 32),
}


# The kernels to float32's rounding, the plain model to float64's: the one model is held against
# the other, in float64, in tests/nn/test_plain.py.
TYPED = [("float32", CPU), ("float64", PLAIN)]


@pytest.mark.parametrize(("dtype", "kernels"), TYPED, ids=["float32-CPU", "float64-plain"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_block(kind, dtype, kernels):
    flax_name, torch_name, channels = BLOCKS[kind]
    with precision(dtype):
        model = perturbed(**TINY)
        _, params = bridge.from_torch(model.state_dict())
        shape = (2, 16, 24, channels)
        errors = compare.compare_block(
            model, params, flax_name, torch_name, shape, quick_jit, kernels
        )
    assert_within(errors, dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_time_embedding_of_every_step(dtype):
    with precision(dtype):
        torch_model = perturbed(**TINY)
        model, params = bridge.from_torch(torch_model.state_dict())

        @quick_jit
        def run(step):
            x = jnp.zeros((1000, 2, 2, 3), dtype)
            _, state = model.apply({"params": params}, x, step, capture_intermediates=True)
            return state["intermediates"]["time_dense2"]["__call__"][0]

        want = torch_model.time_embeddings(torch.arange(1000)).detach().numpy()
        assert relative_error(run(jnp.arange(1000)), want) < BOUNDS[dtype]["output"]


def configuration(seed):
    """Fields of a UNet and (height, width) of images, at random."""
    rng = np.random.default_rng(seed)
    num_levels = int(rng.integers(1, 4))
    levels = [level for level in range(1, num_levels + 1) if rng.random() < 0.5]
    fields = {
        "channels": int(rng.integers(1, 4)),
        # With 8 channels, a norm of 8 groups takes out what a bias before it adds, and that bias's
        # gradient is rounding error alone.
        "base_channels": int(rng.choice([16, 24])),
        "multiples": tuple(int(m) for m in rng.integers(1, 4, num_levels)),
        "attention_levels": tuple(levels),
        "num_res_blocks": int(rng.integers(1, 4)) if num_levels < 3 else 1,
    }
    height, width = (int(side) for side in rng.choice([4, 8, 12], 2, replace=False))
    return fields, (height, width)


SEEDS = (0, 11, 28)


def test_configurations_reach_the_corners():
    drawn = [configuration(seed) for seed in SEEDS]
    assert {1, 2, 3} == {fields["channels"] for fields, _ in drawn}
    assert {16, 24} == {fields["base_channels"] for fields, _ in drawn}
    assert {1, 2, 3} == {len(fields["multiples"]) for fields, _ in drawn}
    assert {1, 3} <= {fields["num_res_blocks"] for fields, _ in drawn}
    assert {0, 1, 3} == {len(fields["attention_levels"]) for fields, _ in drawn}
    assert any(fields["multiples"][0] > 1 for fields, _ in drawn)
    assert all(height != width for _, (height, width) in drawn)


@pytest.mark.parametrize(
    ("seed", "dtype", "kernels"),
    [
        *(pytest.param(seed, "float64", PLAIN, marks=pytest.mark.slow) for seed in SEEDS[:-1]),
        (SEEDS[-1], "float64", PLAIN),
        (SEEDS[-1], "float32", CPU),
    ],
)
def test_whole_model_of_any_configuration(seed, dtype, kernels):
    fields, size = configuration(seed)
    with precision(dtype):
        arrays = batch(seed, fields["channels"], *size)
        errors = compare.compare_model(perturbed(**fields), arrays, quick_jit, kernels)
    assert_within(errors, dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_output_at_the_papers_configuration(dtype):
    """By the kernels, which choose their algorithms by the number of channels."""
    with precision(dtype):
        torch_model = perturbed()
        model, params = bridge.from_torch(torch_model.state_dict())
        assert model.copy(dtype=jnp.float32) == unet.UNet()
        x, step, _ = batch(0, 3, 16, 16, num=1)
        want = nhwc(torch_model(nchw(x), torch.from_numpy(step)))
        got = quick_jit(model.copy(kernels=CPU).apply)({"params": params}, x, step)
        assert relative_error(got, want) < BOUNDS[dtype]["output"]


def make_update(model, config):
    """The optimizer and one jitted update: loss and gradients before it, and the new state."""
    optimizer = make_optimizer(config)

    @quick_jit
    def update(params, opt_state, x_0, step, noise):
        loss_of = partial(noise_loss, model, schedule.linear_schedule())
        loss, grads = jax.value_and_grad(loss_of)(params, x_0, step, noise)
        with jax.numpy_dtype_promotion("standard"):  # Optax counts its updates in integers
            updates, opt_state = optimizer.update(grads, opt_state, params)
        return loss, grads, optax.apply_updates(params, updates), opt_state

    return optimizer, update


def test_training_with_clipping_in_float64():
    clip_norm = 1.0
    with precision("float64"):
        torch_model = perturbed(**ONE_LEVEL)
        model, params = bridge.from_torch(torch_model.state_dict())
        optimizer, update = make_update(model, TrainingConfig(warmup_steps=0, clip_norm=clip_norm))
        opt_state = quick_jit(optimizer.init)(params)
        torch_optimizer = torch_training.make_optimizer(torch_model)
        tables = torch_process.linear_schedule()
        losses, norms = [], []
        for seed in range(10):
            arrays = batch(seed, 3, 4, 6)
            want = torch_training.train_step(
                torch_model, torch_optimizer, tables, *to_torch(*arrays), clip_norm
            )
            loss, grads, params, opt_state = update(params, opt_state, *arrays)
            losses.append(float(loss) / want - 1)
            squares = (np.square(grad).sum() for grad in map(np.asarray, jax.tree.leaves(grads)))
            norms.append(math.sqrt(sum(squares)))
        assert np.abs(losses).max() < 1e-8
        assert min(norms) > clip_norm


@pytest.fixture(scope="module")
def small():
    """The original's own numbers; images to NHWC."""
    with np.load(Path(__file__).parents[1] / "reference" / "unet_small.npz") as arrays:
        small = dict(arrays)
    for name in ("x0", "noise", "x_t", "output", "chain/x_init", "chain/final"):
        small[name] = np.moveaxis(small[name], 1, -1)
    for name in ("train/x0", "train/noise", "chain/z"):
        small[name] = np.moveaxis(small[name], 2, -1)
    return small


@pytest.fixture(scope="module")
def small_model(small):
    return bridge.from_torch(
        {
            name.removeprefix("weights/"): torch.from_numpy(value)
            for name, value in small.items()
            if name.startswith("weights/")
        }
    )


def test_training_is_the_originals(small, small_model):
    model, params = small_model
    optimizer, update = make_update(model, TrainingConfig(warmup_steps=0, clip_norm=1e6))

    state = quick_jit(optimizer.init)(params)
    x_0, step, noise = small["x0"], small["t"].astype(np.int32), small["noise"]
    loss, grads, _, _ = update(params, state, x_0, step, noise)
    assert abs(float(loss) / float(small["loss"]) - 1) < 1e-6
    want = {
        name.removeprefix("grads/"): torch.from_numpy(value)
        for name, value in small.items()
        if name.startswith("grads/")
    }
    table = torch.from_numpy(small[f"weights/{bridge.TIME_TABLE}"])
    assert_trees_close(grads, bridge.from_torch(want | {bridge.TIME_TABLE: table})[1], 1e-4)

    losses = []
    for arrays in zip(small["train/x0"], small["train/t"], small["train/noise"], strict=True):
        x_0, step, noise = arrays
        loss, _, params, state = update(params, state, x_0, step.astype(np.int32), noise)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, small["train/losses"], rtol=1e-5)


def test_output_and_sampling_are_the_originals(small, small_model):
    model, params = small_model
    denoiser = TrainedDenoiser(params, model)
    step = small["t"].astype(np.int32)
    x_t = process.diffuse(schedule.linear_schedule(), small["x0"], step, small["noise"])
    assert relative_error(x_t, small["x_t"]) < 1e-6
    output = quick_jit(lambda denoiser, x, step: denoiser(x, step))(denoiser, small["x_t"], step)
    assert relative_error(output, small["output"]) < 1e-5

    sampler = AncestralSampler(schedule.linear_schedule(50), faithful=True)
    backward = quick_jit(AncestralSampler.move)
    x = small["chain/x_init"]
    for step in reversed(range(50)):
        x = backward(sampler, denoiser, x, jnp.int32(step), small["chain/z"][step])
    assert relative_error(x, small["chain/final"]) < 1e-4


def test_training_in_float64():
    """A short form of what `experiments.parity` runs for 200 updates, and the chain after it."""
    with precision("float64"):
        torch.manual_seed(0)
        model = torch_unet.UNet(**ONE_LEVEL, dropout=0.0)
        batches = [batch(seed, 3, 4, 6) for seed in range(20)]
        losses, want = compare.compare_training(model, batches, quick_jit)
        assert np.abs(losses / want - 1).max() < 1e-12
        assert want[-5:].mean() < 0.98 * want[:5].mean()
        noise = np.random.default_rng(1).standard_normal((31, 2, 4, 6, 3))
        error = compare.compare_chain(model.eval(), noise[0], noise[1:], jit=quick_jit)
        assert error < BOUNDS["float64"]["chain"]


@pytest.mark.parametrize("faithful", [False, True])
def test_sampler_in_float64(faithful):
    """With a denoiser in closed form, so that only the sampler's own arithmetic is compared."""
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 3, 5, 2)), rng.standard_normal((50, 2, 3, 5, 2))
    with precision("float64"):
        want = torch_process.ancestral_chain(
            torch_process.linear_schedule(50),
            lambda x, step: torch.tanh(x) * (1 + step[:, None, None, None].to(x.dtype)),
            nchw(x),
            torch.stack([nchw(z) for z in noise]),
            faithful,
        )
        sampler = AncestralSampler(schedule.linear_schedule(50), faithful)
        for step in reversed(range(50)):
            x = sampler.move(
                lambda x, step: jnp.tanh(x) * (1 + step[:, None, None, None].astype(x.dtype)),
                jnp.asarray(x),
                jnp.int32(step),
                noise[step],
            )
        assert relative_error(x, nhwc(want)) < 1e-10


class Imposed(torch.nn.Module):
    """A dropout whose mask is given."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, h):
        return h * self.mask


def test_outputs_with_equal_dropout_masks_agree(monkeypatch):
    rate = 0.4
    torch_model = perturbed(**TINY, dropout=rate)
    model, params = bridge.from_torch(torch_model.state_dict())
    model = model.copy(dropout=rate)
    x, step, _ = batch(0, 3, 4, 8, num=3)
    keys = jax.random.split(jax.random.key(0), 3)
    masks = []
    channel_dropout = unet.channel_dropout

    def recorded(h, rate, keys):
        masks.append(channel_dropout(jnp.ones_like(h), rate, keys))
        return channel_dropout(h, rate, keys)

    monkeypatch.setattr(unet, "channel_dropout", recorded)
    got, masks = quick_jit(lambda p: (model.apply({"params": p}, x, step, keys), masks))(params)
    masks = [np.asarray(mask) for mask in masks]

    x, step = nchw(x), torch.from_numpy(step)
    without = nhwc(torch_model(x, step))
    # The modules are listed in the order of their calls.
    blocks = [m for m in torch_model.modules() if isinstance(m, torch_unet.ResidualBlock)]
    for block, mask in zip(blocks, masks, strict=True):
        assert block.block2.dropout.p == rate
        block.block2.dropout = Imposed(nchw(mask))
    assert relative_error(got, nhwc(torch_model(x, step))) < 1e-5
    assert relative_error(got, without) > 0.1

    # Whole channels, dropped at the stated rate, the rest scaled up.
    kept = []
    for mask in masks:
        np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1, :1], mask.shape))
        kept.append(mask[:, 0, 0].ravel())
    kept = np.concatenate(kept)
    np.testing.assert_allclose(kept[kept > 0], 1 / (1 - rate), rtol=1e-6)
    assert abs((kept > 0).mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / kept.size)


def layer_type(name, weight):
    """Kind of the layer that a weight or bias of the original belongs to."""
    kind = {4: f"{weight.shape[-1]}x{weight.shape[-1]} convolution", 2: "linear layer"}[weight.ndim]
    if "mhsa" in name:
        kind = "packed projection" if "in_proj" in name else "output projection"
    return f"{kind}, {'bias' if name.endswith('bias') else 'weight'}"


def test_fresh_models_have_the_same_law():
    """Layer type by layer type; what is pooled is scaled by sqrt(fan-in) in both alike."""
    fields = TINY | {"base_channels": 64}
    torch.manual_seed(1)
    torch_fresh = torch_unet.UNet(**fields).state_dict()
    model = unet.UNet(**fields)
    image, step = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, jnp.int32)
    flax_params = quick_jit(model.init)(jax.random.key(2), image, step)["params"]
    flax_fresh = bridge.to_torch(model, flax_params)
    assert set(flax_fresh) == set(torch_fresh)

    pooled, constants = {}, set()
    for name, tensor in torch_fresh.items():
        if name == bridge.TIME_TABLE or "norm" in name or bool((tensor == 0).all()):
            assert torch.equal(flax_fresh[name], tensor), name
            constants.add(name.rsplit(".", 1)[1])
            continue
        weight = torch_fresh[name.removesuffix("bias") + "weight" if "bias" in name else name]
        scale = weight[0].numel() ** 0.5
        pairs = pooled.setdefault(layer_type(name, weight), ([], []))
        for pair, fresh in zip(pairs, (torch_fresh, flax_fresh), strict=True):
            pair.append(scale * fresh[name].numpy().ravel())
    assert constants == {"weight", "bias", "in_proj_bias"}
    assert len(pooled) == 8

    for kind, (ours, theirs) in pooled.items():
        a, b = np.concatenate(ours), np.concatenate(theirs)
        n, bound = a.size, max(np.abs(a).max(), np.abs(b).max())
        assert n >= 500, kind
        assert stats.ks_2samp(a, b).pvalue > 1e-3, kind
        # Of n uniform draws the largest misses the bound by more than 20/n with probability e^-20.
        assert abs(np.abs(a).max() - np.abs(b).max()) < 20 / n * bound, kind
        # Var of u^2 for u ~ U(-1, 1) is 4/45.
        assert abs((a**2).mean() - (b**2).mean()) < 5 * np.sqrt(8 / 45 / n) * bound**2, kind
