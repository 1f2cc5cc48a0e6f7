"""What trains and samples, compiled for GPUs that are not there; needs the extra gpu-report."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion_jax.config import ModelConfig, TrainingConfig
from diffusion_jax.runtime.devices import AXIS
from experiments.tools.gpu.bounds import broken_bounds
from experiments.tools.gpu.flops import model_flops
from experiments.tools.gpu.program import lower_step
from experiments.tools.gpu.target import as_if_on, load_target
from experiments.tools.gpu_report import Options, report_row

if not importlib.util.find_spec("jax_plugins"):
    pytest.skip("the extra gpu-report is not installed", allow_module_level=True)

CONFIG = TrainingConfig(batch_size=16)
MESH = Mesh(np.array(jax.devices()[:8]), (AXIS,))
H100, A100 = load_target("h100"), load_target("a100")
SMALL = Options(
    image_size=16,
    model=ModelConfig(
        base_channels=32,
        multiples=(1, 2),
        attention_levels=(2,),
        num_res_blocks=1,
        dtype="bfloat16",
    ),
)


def paper(dtype):
    return Options(model=ModelConfig(dtype=dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_papers_step_keeps_its_bounds(dtype):
    """Batch 64, 64 pixels, an H100: costs, and everything else that `broken_bounds` names."""
    row = report_row(paper(dtype), H100, 64, 1)
    assert row["paper"]
    assert broken_bounds(row) == []
    assert row["convolutions"] == {
        "cuDNN filter-gradient": 66,
        "cuDNN forward": 80,
        "cuDNN input-gradient": 51,
    }
    assert row["fused_attentions"] == {"forward": 11, "backward": 11}
    # Every one of them is a launch, and the rest are kernels of XLA's own.
    assert row["launches"] > 1_000
    assert sum(number for number, _ in row["kinds"].values()) == row["launches"]
    assert row["graphs"] > 0


def test_the_papers_sampler_keeps_its_bounds():
    row = report_row(paper("bfloat16"), H100, 64, 1, "sample")
    assert broken_bounds(row) == []
    assert row["loops"] == [row["rounds"]] == [1_000]
    assert row["fused_attentions"] == {"forward": 11, "backward": 0}


def test_the_papers_initial_weights_are_compiled_in_time():
    row = report_row(paper("bfloat16"), H100, 64, 1, "weights")
    assert broken_bounds(row) == []


def test_several_updates_in_a_dispatch_cost_as_much_each():
    """In one loop of known length, with no copies of the state in it.

    Its body is fused a little differently, slices the images and counts its rounds.
    """
    one, many = (report_row(SMALL, A100, 16, 1, name) for name in ("train", "scan"))
    assert broken_bounds(one) == broken_bounds(many) == []
    assert (one["loops"], many["loops"]) == ([], [10])
    assert many["fused_attentions"] == one["fused_attentions"]
    assert abs(many["launches"] - one["launches"]) < 0.1 * one["launches"]
    vector = one["memory"]["arguments"] / 4  # parameters, their average and two moments
    assert abs(many["traffic"] - one["traffic"]) < vector


def test_a_rematerialized_small_model_on_eight_a100s():
    """With all gradients in one all-reduce; what is computed again is not the model's FLOPs."""
    remat = dataclasses.replace(SMALL.model, remat=True)
    options = dataclasses.replace(SMALL, target="a100", model=remat)
    row = report_row(options, A100, 16, 8)
    assert broken_bounds(row) == []
    assert row["collectives"]["all-reduce"][0] == 1
    with as_if_on(A100):
        model = SMALL.model.build(3)
        plain, again = (
            model_flops(lower_step(dataclasses.replace(model, remat=remat), CONFIG, 16, MESH))
            for remat in (False, True)
        )
    assert row["model_flops"] == 8 * plain < 8 * again


def test_sampling_on_eight_sends_nothing_between_them():
    row = report_row(dataclasses.replace(SMALL, target="a100"), A100, 16, 8, "sample")
    assert broken_bounds(row) == []
    assert row["collectives"] == {}
    assert row["fused_attentions"]["forward"] == row["attentions"]
