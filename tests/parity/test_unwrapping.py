"""Weights as trainers wrap them: what is found is the right set, bit for bit."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.optim.swa_utils import AveragedModel  # noqa: E402

from diffusion_jax.errors import UserError  # noqa: E402
from torch_ref import bridge, unwrapping  # noqa: E402
from torch_ref.unet import UNet  # noqa: E402

SMALL = {"base_channels": 8, "multiples": (1,), "attention_levels": (), "num_res_blocks": 1}
TABLE = unwrapping.TIME_TABLE


def trained(seed):
    torch.manual_seed(seed)
    return UNet(**SMALL)


MODEL = trained(1)
RAW = MODEL.state_dict()
AVERAGE = trained(2).state_dict()
TRAINED = [name for name, parameter in MODEL.named_parameters() if parameter.requires_grad]


def under(prefix, state_dict):
    return {prefix + name: value for name, value in state_dict.items()}


def assert_same(got, want):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def averaged_model(updates=5):
    model = AveragedModel(trained(3))
    model.module.load_state_dict(AVERAGE)
    model.n_averaged += updates
    return model.state_dict()


class Lightning(torch.nn.Module):
    """What a LightningModule holds beside the network."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, trained(1))
        self.register_buffer("betas", torch.linspace(1e-4, 0.02, 1000))
        self.perceptual_loss = torch.nn.Conv2d(3, 4, 3)
        self.batch_norm = torch.nn.BatchNorm1d(4)  # with num_batches_tracked


def lightning(name="model", **more):
    state_dict = Lightning(name).state_dict()
    optimizer = {"state": {0: {"exp_avg": torch.ones(8, 3, 3, 3)}}, "param_groups": [{"lr": 1e-4}]}
    about = {"epoch": 3, "global_step": 900, "callbacks": {}, "hyper_parameters": {"lr": 1e-4}}
    return about | {"state_dict": state_dict, "optimizer_states": [optimizer]} | more


@pytest.mark.parametrize(
    "wrapped",
    [
        *(under(prefix, RAW) for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.")),
        *(under(prefix, RAW) for prefix in ("_orig_mod.module.", "net.denoiser.", "a.module.b.")),
        *(lightning(name) for name in ("model", "net", "unet", "denoiser", "anything")),
        {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in RAW.items()},
        {("module." if "init" in name else "") + name: value for name, value in RAW.items()},
        RAW | {"num_batches_tracked": torch.tensor(7), "epoch": 3},
        under("model.", RAW) | under("diffusion.model.", RAW),  # one module under two names
        {"model": RAW, "optimizer": {"exp_avg": AVERAGE, "exp_avg_sq": AVERAGE}, "ema_decay": 0.99},
        {"net": RAW, "classifier": {"init_conv.weight": torch.zeros(3)}},
        [3, RAW, {"lr": 1e-4}],
        {"model": {"state_dict": under("module.", RAW)}, "ema": None},
        {"online_model": RAW},
        *({word: RAW} for word in ("cinema", "schema", "plasma", "avgpool", "pre_ema", "w/o_ema")),
        *(under(prefix, RAW) for prefix in ("my.ema_free.net.", "noEMA.", "model_before_ema.")),
        {"net": RAW, "optimizer": {"state": {0: {"ema_grad": torch.ones(8, 1, 3, 3)}}}},
        {"net": RAW, "codes": {"embed_avg": torch.ones(7, 2)}, "loss": {"ema": torch.ones(3)}},
        {"net": RAW, "optimizer": {"state": {"init_conv.weight": {"exp_avg_sq": torch.ones(9)}}}},
    ],
)
@pytest.mark.parametrize("weights", ["average", "raw"])
def test_a_single_set_of_weights_is_found_whatever_is_asked_for(wrapped, weights):
    found = unwrapping.choose(wrapped, weights)
    assert_same(found.state_dict, RAW)
    assert (found.kind, found.others) == ("the only ones", ())
    assert "the only weights there are" in str(found)


SHADOWS = {name: AVERAGE[name] for name in TRAINED}
EMA_PYTORCH = (
    under("online_model.", RAW)
    | under("ema_model.", AVERAGE)
    | {"initted": torch.tensor([True]), "step": torch.tensor([5])}
)
# As MMEngine's EMAHook saves it: the average and the raw weights are swapped.
MMENGINE = {
    "meta": {"epoch": 3},
    "state_dict": AVERAGE,
    "ema_state_dict": {"steps": torch.tensor(9)} | under("module.", RAW),
}
# LitEma cannot have dots in the names of its buffers.
WITHOUT_DOTS = {
    f"model_ema.model{name.replace('.', '')}": SHADOWS[name] for name in reversed(TRAINED)
}


def per_parameter(keys):
    """What an optimizer that averages keeps, held in another order than its numbers'."""
    states = [
        (key, {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(value), "ema": value})
        for key, value in zip(keys, SHADOWS.values(), strict=True)
    ]
    return dict(reversed(states))


@pytest.mark.parametrize(
    ("wrapped", "average", "raw"),
    [
        ({"model": RAW, "ema": AVERAGE}, "ema", "model"),
        ({"ema": AVERAGE, "model": RAW}, "ema", "model"),
        (EMA_PYTORCH, "ema_model", "online_model"),
        ({"step": 1, "model": RAW, "opt": {}, "ema": EMA_PYTORCH}, "ema.ema_model", "model"),
        ({"state_dict": under("ema.", EMA_PYTORCH)}, "state_dict.ema.ema_model", None),
        ({"state_dict": RAW, "state_dict_ema": AVERAGE}, "state_dict_ema", "state_dict"),
        ({"model": RAW, "model_ema": {"module": AVERAGE}}, "model_ema.module", "model"),
        ({"params": RAW, "params_ema": AVERAGE}, "params_ema", "params"),
        ({"net": RAW, "netEMA": AVERAGE}, "netEMA", "net"),
        ({"non_ema": RAW, "ema": AVERAGE}, "ema", "non_ema"),
        ({"pre_ema": RAW, "ema": AVERAGE}, "ema", "pre_ema"),
        ({"model_before_ema": RAW, "averaged": AVERAGE}, "averaged", "model_before_ema"),
        ({"model": RAW, "raw_model_ema": AVERAGE}, "raw_model_ema", "model"),
        ({"current_ema": AVERAGE, "current": RAW}, "current_ema", "current"),
        ({"cinema": RAW, "cinemaEMA": AVERAGE}, "cinemaEMA", "cinema"),
        ({"unet": RAW, "emaunet": AVERAGE}, "emaunet", "unet"),
        ({"ema": {"shadow": AVERAGE, "backup": RAW}}, "ema.shadow", "ema.backup"),
        (MMENGINE, "state_dict", "ema_state_dict.module"),
        (
            {"state_dict": under("module.", RAW), "ema_state_dict": under("module.", AVERAGE)},
            "ema_state_dict.module",
            "state_dict.module",
        ),
        (
            lightning(optimizer_states=[{"opt": {"state": {}}, "ema": (*SHADOWS.values(),)}])
            | {"state_dict": under("model.", RAW)},
            "optimizer_states.0.ema",
            "state_dict.model",
        ),
        (
            {"net": RAW, "optimizer": {"state": per_parameter(range(len(TRAINED)))}},
            "optimizer.state.ema",
            "net",
        ),
        (
            {"net": RAW, "optimizer": {"state": per_parameter(TRAINED)}},
            "optimizer.state.ema",
            "net",
        ),
        ({"net": RAW, "optimizer": {"ema": SHADOWS}}, "optimizer.ema", "net"),
        ({"net": RAW, "ema": {"num_updates": 2} | SHADOWS}, "ema", "net"),
        ({"model": RAW, "swa": averaged_model()}, "swa.module", "model"),
        ({"model": RAW, "other": averaged_model()}, "other.module", "model"),
        (RAW | averaged_model(), "module", ""),
        (
            lightning(current_model_state=under("model.", RAW))
            | {"state_dict": under("model.", AVERAGE)},
            "state_dict.model",
            "current_model_state.model",
        ),
        ({"model": RAW, "ema": {"shadow": SHADOWS, "decay": 0.9}}, "ema.shadow", "model"),
        (
            {"model": under("module.", RAW), "ema": {"shadow_params": list(SHADOWS.values())}},
            "ema.shadow_params",
            "model.module",
        ),
        (
            {"unet": RAW, "ema": {"decay": 0.9, "shadow_params": [*AVERAGE.values()]}},
            "ema.shadow_params",
            "unet",
        ),
        (
            {"state_dict": under("model.model.", RAW) | WITHOUT_DOTS},
            "state_dict.model_ema",
            "state_dict.model.model",
        ),
    ],
)
def test_of_an_average_and_raw_weights_the_one_asked_for_is_taken(wrapped, average, raw):
    found = unwrapping.choose(wrapped)
    fixed = {TABLE: RAW[TABLE]}
    assert_same(found.state_dict, fixed | {name: AVERAGE[name] for name in RAW if name != TABLE})
    assert (found.kind, found.place) == ("average", average)
    assert f"under '{average}'; --weights raw takes those " in str(found)
    found = unwrapping.choose(wrapped, "raw")
    assert_same(found.state_dict, RAW)
    assert found.kind == "raw"
    assert average in found.others
    assert found.place == (raw if raw is not None else "state_dict.ema.online_model")


@pytest.mark.parametrize(
    ("wrapped", "place", "idle"),
    [
        ({"model": RAW, "swa": averaged_model(0)}, "model", "swa.module"),
        (under("model.", RAW) | under("swa.", averaged_model(0)), "model", "swa.module"),
        (
            {"model": RAW, "ema": EMA_PYTORCH | {"initted": torch.tensor([False])}},
            "model",
            "ema.ema_model",
        ),
        (
            {"model": RAW, "ema": {"optimization_step": 0, "shadow_params": [*SHADOWS.values()]}},
            "model",
            "ema.shadow_params",
        ),
        (
            {"model": RAW, "callbacks": {"SWA": {"n_averaged": 0, "average_model_state": AVERAGE}}},
            "model",
            "callbacks.SWA.average_model_state",
        ),
        (
            {"model": RAW}
            | under("model_ema.", {"num_updates": torch.tensor(0, dtype=torch.int)} | AVERAGE),
            "model",
            "model_ema",
        ),
    ],
)
@pytest.mark.parametrize("weights", ["average", "raw"])
def test_an_average_never_begun_is_not_taken_for_one(wrapped, place, idle, weights):
    found = unwrapping.choose(wrapped, weights)
    assert_same(found.state_dict, RAW)
    assert str(found) == (
        f"the raw weights, under '{place}'; the average, under '{idle}', was never begun"
    )
    assert (found.kind, found.place, found.idle) == ("raw", place, (idle,))


@pytest.mark.parametrize("weights", ["average", "raw"])
def test_an_average_never_begun_is_taken_where_there_is_nothing_else(weights):
    found = unwrapping.choose(averaged_model(0), weights)
    assert_same(found.state_dict, AVERAGE)
    assert str(found) == (
        "the only weights there are, under 'module', of an average that was never begun"
    )
    assert found.kind == "the only ones"


@pytest.mark.parametrize(
    "wrapped", [averaged_model(), {"ema": AVERAGE}, {"G_ema": AVERAGE, "x": 3}]
)
def test_an_average_alone_is_taken_as_such_and_not_as_raw_weights(wrapped):
    found = unwrapping.choose(wrapped)
    assert_same(found.state_dict, AVERAGE)
    assert found.kind == "average"
    assert "there are no others" in str(found)
    with pytest.raises(UserError, match=r"holds an average alone, under '\w+', and no raw weights"):
        unwrapping.choose(wrapped, "raw")


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (
            {"teacher": RAW, "student": AVERAGE},
            "several sets of weights, under 'teacher', 'student'",
        ),
        (
            RAW | under("module.", AVERAGE),
            "several sets of weights, without a prefix and under 'module'",
        ),
        ({"model": RAW, "ema": [AVERAGE, RAW]}, r"several sets of weights, under 'ema.0', 'ema.1'"),
        (
            {"model": RAW, "ema": {"shadow_params": list(SHADOWS.values())[1:]}},
            "an average, under 'ema.shadow_params', that is not whole, or whose entries have no "
            "names and do not fit raw weights that have: .* by --weights raw$",
        ),
        *(
            (
                {"model": RAW, **more},
                f"an average, under '{place}', that is not whole, or .* by --weights raw$",
            )
            for more, place in [
                ({"optimizer": {"state": {0: {"ema": torch.ones(9000)}}}}, "optimizer.state.ema"),
                ({"optimizer_states": [{"ema": (torch.ones(9, 9),)}]}, "optimizer_states.0.ema"),
                ({"ema_flat": torch.ones(9000)}, "ema_flat"),
                ({"ema": {"flat": torch.ones(9000)}}, "ema"),
            ]
        ),
        ({"model": RAW, "pre_ema": AVERAGE}, "several sets of weights, under 'model', 'pre_ema'"),
        (
            {"ema": {"initted": False, "shadow_params": list(SHADOWS.values())}},
            "an average, .* do not fit .* state dict$",
        ),
        (
            {"ema": {"shadow_params": list(SHADOWS.values())}},
            "an average, .* do not fit .* state dict$",
        ),
        (
            {"model": RAW, "ema": {n: t for n, t in AVERAGE.items() if "init" in n}},
            "an average, under 'ema', that is not whole",
        ),
        ({"epoch": 3}, "a dictionary of epoch, and nowhere weights"),
        ({}, "a dictionary of nothing, and nowhere weights"),
        (list(MODEL.parameters()), "an object of type list, and nowhere weights that have names"),
        (torch.zeros(3), "an object of type Tensor"),
        ({"optimizer": {"exp_avg": RAW}}, "a dictionary of optimizer, and nowhere weights"),
    ],
)
def test_what_cannot_be_told_is_refused_in_a_short_sentence(wrapped, message):
    with pytest.raises(UserError, match=f"^the file holds {message}") as caught:
        unwrapping.choose(wrapped, what="the file")
    assert len(str(caught.value)) < 500


def test_the_raw_weights_beside_an_average_that_cannot_be_read_are_taken_where_asked_for():
    found = unwrapping.choose({"model": RAW, "ema": {"shadow_params": [torch.ones(2, 2)]}}, "raw")
    assert_same(found.state_dict, RAW)
    assert (found.kind, found.others) == ("raw", ("ema.shadow_params",))


def test_strange_entries_of_the_same_module_are_kept_and_those_of_others_left_out():
    extra = {"model.head.weight": torch.ones(3), "model.scale": torch.ones(1)}
    found = unwrapping.choose(under("model.", RAW) | extra | {"head.weight": torch.ones(3)})
    assert found.state_dict.keys() - RAW.keys() == {"head.weight", "scale"}
    with pytest.raises(UserError, match=r"unexpected: head\.weight, scale$"):
        bridge.from_torch(found.state_dict)


def test_another_models_weights_come_back_without_wrappers():
    other = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}
    average = {name: 2 * value for name, value in other.items()}
    assert_same(unwrapping.choose(under("module.", other)).state_dict, other)
    assert_same(unwrapping.choose({"model": other, "ema": average}).state_dict, average)
    assert_same(unwrapping.choose({"model": other, "ema": average}, "raw").state_dict, other)


def test_endless_containers_are_refused():
    """A few bytes of pickle make lists that hold themselves, or each other a billion times."""
    itself = []
    itself.append(itself)
    laughs = []
    for _ in range(40):
        laughs = [laughs] * 10
    for content in (itself, laughs, {"a." * 60: RAW[TABLE]}):
        with pytest.raises(UserError, match="holds more than 100,000 objects, or names of more"):
            unwrapping.choose(content)


def test_a_list_of_names_is_cut_and_fit_to_be_printed():
    assert unwrapping.listed(["a", "b"]) == "a, b"
    assert unwrapping.listed(list("abcdefg")) == "a, b, c, d, e, ... (7 in all)"
    assert unwrapping.listed(["x" * 1000]) == "x" * 117 + "..."
    assert unwrapping.listed(["\x1b[2J"]) == r"'\x1b[2J'"


def test_wrapped_state_dicts_are_taken_from_python_too():
    model = trained(1)
    wrapped = torch.nn.DataParallel(copy.deepcopy(model)).state_dict()
    for given in (wrapped, under("_orig_mod.", wrapped), averaged_model()):
        taken, params = bridge.from_torch(given)
        want = AVERAGE if "n_averaged" in given else RAW
        assert_same(bridge.to_torch(taken, params, bridge.time_table(given)), want)
