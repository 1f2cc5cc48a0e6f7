import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import random_params

torch = pytest.importorskip("torch", reason="torch is not installed")

from diffusion_jax.errors import UserError  # noqa: E402
from diffusion_jax.nn import unet  # noqa: E402
from torch_ref import bridge  # noqa: E402
from torch_ref.unet import UNet  # noqa: E402

SMALL = {"base_channels": 8, "multiples": (1, 2), "attention_levels": (2,), "num_res_blocks": 1}
TABLE = "time_embeddings.time_mlp.0.weight"
CONV = "encoder_blocks.0.block1.conv.weight"


def random_state_dict(dtype=torch.float32, **fields):
    """Every entry but the time table at random: a fresh model's norms are all alike."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        state_dict = UNet(**fields).state_dict()
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator().manual_seed(0)
    return {
        name: value if name == TABLE else torch.randn(value.shape, generator=generator, dtype=dtype)
        for name, value in state_dict.items()
    }


@pytest.fixture
def state_dict():
    return random_state_dict(**SMALL)


def assert_bit_equal(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        assert got[name].numpy().tobytes() == value.numpy().tobytes(), name


@st.composite
def configurations(draw):
    multiples = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    levels = draw(st.sets(st.integers(1, len(multiples))))
    return {
        "channels": draw(st.integers(1, 4)),
        "base_channels": draw(st.sampled_from([8, 16, 24])),
        "multiples": multiples,
        "attention_levels": tuple(sorted(levels)),
        "num_res_blocks": draw(st.integers(1, 3)),
    }


@settings(max_examples=4, deadline=None, derandomize=True)
@given(configurations(), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_any_configuration_is_told_from_its_state_dict_and_comes_back_bit_equal(
    fields, dtype, parallel
):
    state_dict = random_state_dict(dtype, **fields)
    prefix = "module." if parallel else ""
    model, params = bridge.from_torch({prefix + name: v for name, v in state_dict.items()})
    flax_dtype = jnp.float64 if dtype == torch.float64 else jnp.float32
    assert model == unet.UNet(**fields, dtype=flax_dtype)
    assert_bit_equal(bridge.to_torch(model, params), state_dict)
    # A table made elsewhere is taken, and comes back where it is given.
    elsewhere = state_dict | {TABLE: state_dict[TABLE] + 9e-6}
    named = {prefix + name: value for name, value in elsewhere.items()}
    _, params = bridge.from_torch(named)
    assert_bit_equal(bridge.to_torch(model, params, bridge.time_table(named)), elsewhere)
    assert_bit_equal(bridge.to_torch(model, params), state_dict)

    side = 2 ** (len(fields["multiples"]) - 1)
    # Flax's norms promote float64 with float32 by themselves.
    with jax.enable_x64(dtype == torch.float64), jax.numpy_dtype_promotion("standard"):
        image, step = jnp.zeros((1, side, side, model.channels)), jnp.zeros(1, jnp.int32)
        expected = jax.eval_shape(model.init, jax.random.key(0), image, step)["params"]
    got = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert got == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected)


def test_trained_parameters_come_back_bit_equal_from_a_state_dict():
    model = unet.UNet(**SMALL, dropout=0.3)
    params = random_params(model, (4, 4, 3))
    state_dict = bridge.to_torch(model, params)
    UNet(**SMALL).load_state_dict(state_dict)
    back, again = bridge.from_torch(state_dict)
    assert back == model.copy(dropout=0.1)
    for value, want in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert value.tobytes() == np.asarray(want).tobytes()
    assert jax.tree.structure(again) == jax.tree.structure(params)


def without(state_dict, *names):
    return {name: value for name, value in state_dict.items() if name not in names}


def test_every_missing_unexpected_and_misshapen_entry_is_named(state_dict):
    wrong = without(state_dict, "init_conv.bias", "decoder_blocks.2.upsample.1.weight")
    wrong |= {"classifier.weight": torch.zeros(3), CONV: torch.zeros(8, 8, 1, 1)}
    wrong["encoder_blocks.2.dense.bias"] = torch.zeros(24)
    with pytest.raises(UserError) as caught:
        bridge.from_torch(wrong)
    message = str(caught.value)
    assert "multiples = (1, 2), attention_levels = (2,), num_res_blocks = 1" in message
    assert message.split("; ")[1:] == [
        "missing: decoder_blocks.2.upsample.1.weight, init_conv.bias",
        "unexpected: classifier.weight",
        f"of another shape: {CONV} (8, 8, 1, 1) for (8, 8, 3, 3), "
        "encoder_blocks.2.dense.bias (24,) for (16,)",
    ]


@pytest.mark.parametrize(
    "block",
    ["init_conv", "encoder_blocks.0", "encoder_blocks.1", "encoder_blocks.4", "final_block"],
)
def test_a_missing_block_does_not_hide_the_rest(block):
    fields = SMALL | {"multiples": (1, 2, 1), "attention_levels": (1,)}
    state_dict = random_state_dict(**fields)
    gone = {name for name in state_dict if name.startswith(block + ".")}
    assert gone
    with pytest.raises(UserError) as caught:
        bridge.from_torch(without(state_dict, *gone))
    (fault,) = str(caught.value).split("; ")[1:]
    names, cut, number = fault.removeprefix("missing: ").partition(", ... ")
    shown = names.split(", ")
    assert len(shown) == min(len(gone), 5)
    assert set(shown) <= gone
    assert number == (f"({len(gone)} in all)" if cut else "")


def test_every_single_missing_entry_is_named(state_dict):
    for name in state_dict:
        with pytest.raises(UserError, match=rf"num_res_blocks = 1; missing: {name}$"):
            bridge.from_torch(without(state_dict, name))


def test_every_single_misshapen_entry_is_named(state_dict):
    for name, value in state_dict.items():
        wrong = state_dict | {name: torch.zeros(value.shape[0] + 8, *value.shape[1:])}
        with pytest.raises(
            UserError, match=rf"num_res_blocks = 1; of another shape: {name} [^:]*$"
        ):
            bridge.from_torch(wrong)


def test_another_architecture_is_refused():
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    with pytest.raises(UserError) as caught:
        bridge.from_torch(other)
    message = str(caught.value)
    assert "none has a name of its entries (time_embeddings.time_mlp.0.weight, " in message
    assert message.endswith(
        "they are 0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean, ... (7 in all)"
    )
    assert len(message) < 500
    with pytest.raises(UserError, match="holds a dictionary of nothing"):
        bridge.from_torch({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda sd: {k: v.half() for k, v in sd.items()},
            rf"convert {TABLE} float16, .* float16, \.\.\. \(129 in all\) to float32$",
        ),
        (lambda sd: {k: v.bfloat16() for k, v in sd.items()}, "bfloat16"),
        (lambda sd: sd | {CONV: sd[CONV].double()}, f"convert {CONV} float64 to float32"),
        (lambda sd: {k: v.int() for k, v in sd.items()}, "int32"),
        (lambda sd: sd | {"epoch": 3}, "these are none: 'epoch'"),
        (lambda sd: {"module." + k: v for k, v in (sd | {"x": sd[CONV]}).items()}, "unexpected: x"),
        (lambda sd: {k: v.to("meta") for k, v in sd.items()}, "float32 without values"),
        (lambda sd: sd | {CONV: sd[CONV].to_sparse()}, f"{CONV} float32 torch.sparse_coo to float"),
        (lambda sd: sd | {f"encoder_blocks.{'9' * 5000}.x": sd[CONV]}, "unexpected: encoder_b"),
        (lambda sd: sd | {"decoder_blocks.9999.x": sd[CONV]}, "unexpected: decoder_blocks.9999.x"),
        (lambda sd: sd | {TABLE: sd[TABLE][:999]}, rf"{TABLE} \(999, 8\) for \(1000, 8\)"),
        (lambda sd: sd | {TABLE: sd[TABLE].roll(4, 1)}, f"{TABLE} is not the table"),
        (lambda sd: sd | {TABLE: sd[TABLE].roll(1, 0)}, f"{TABLE} is not the table"),
        (lambda sd: sd | {TABLE: sd[TABLE] + 2e-4}, r"up to 0\.0002 off"),
        (lambda sd: sd | {TABLE: sd[TABLE] * torch.nan}, "up to nan off"),
    ],
)
def test_other_types_prefixes_and_time_tables_are_refused(state_dict, change, message):
    with pytest.raises(UserError, match=message):
        bridge.from_torch(change(state_dict))


def test_a_time_table_of_another_convention_is_refused():
    """Frequencies exp(-log(10000) i/(C/2)): the closest of the usual ones."""
    state_dict = random_state_dict(base_channels=64, multiples=(1,), attention_levels=())
    frequency = 10000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    angle = torch.arange(1000)[:, None] * frequency
    table = torch.cat([angle.sin(), angle.cos()], dim=1).float()
    with pytest.raises(UserError, match="another time embedding"):
        bridge.from_torch(state_dict | {TABLE: table})


def test_parameters_of_another_model_are_refused(state_dict):
    model, params = bridge.from_torch(state_dict)
    init_conv = params["init_conv"]
    for wrong, message in [
        (without(params, "init_conv"), r"missing: init_conv\.bias, init_conv\.kernel$"),
        (params | {"extra": init_conv}, r"unexpected: extra\.\w+, extra\.\w+$"),
        (
            params | {"init_conv": init_conv | {"bias": np.zeros(3, np.float32)}},
            r"of another shape: init_conv\.bias \(3,\) for \(8,\)$",
        ),
        (jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params), "bfloat16"),
    ]:
        with pytest.raises(UserError, match=message):
            bridge.to_torch(model, wrong)
    for table, message in [
        (np.zeros((1000, 16), np.float32), r"the time table is of shape \(1000, 16\)"),
        (bridge.time_table(state_dict) + np.float32(2e-4), "the time table is not the table"),
    ]:
        with pytest.raises(UserError, match=message):
            bridge.to_torch(model, params, table)
    with pytest.raises(UserError, match=r"unexpected: .*attention"):
        bridge.to_torch(model.copy(attention_levels=()), params)
