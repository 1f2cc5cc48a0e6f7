"""The train step compiled for GPUs that are not there; needs the extra gpu-report."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion_jax.config import ModelConfig, TrainingConfig
from diffusion_jax.runtime.devices import AXIS
from experiments.tools.gpu.flops import model_flops
from experiments.tools.gpu.program import lower_step
from experiments.tools.gpu.target import cudnn_answers, load_target
from experiments.tools.gpu_report import Options, broken_bounds, report_row

pytest.importorskip("jax_plugins.xla_cuda12", reason="the extra gpu-report is not installed")

CONFIG = TrainingConfig(batch_size=16)
MESH = Mesh(np.array(jax.devices()[:8]), (AXIS,))
SMALL = Options(
    image_size=16,
    model=ModelConfig(
        base_channels=16,
        multiples=(1, 2),
        attention_levels=(2,),
        num_res_blocks=1,
        dtype="bfloat16",
    ),
)


def test_the_papers_model_keeps_its_bounds():
    """Batch 64, 64 pixels, bfloat16, an H100: memory, and everything that `broken_bounds` names."""
    row = report_row(Options(), load_target("h100"), 64, 1)
    assert broken_bounds(Options(), row) == []
    assert row["convolutions"] == {
        "cuDNN filter-gradient": 66,
        "cuDNN forward": 80,
        "cuDNN input-gradient": 51,
    }
    assert row["fused_attentions"] == {"forward": 11, "backward": 11}
    # A bound is seen to be broken.
    heavy = row["memory"] | {"temporary": 2**32}
    assert len(broken_bounds(Options(), row | {"memory": heavy})) == 1


def test_a_rematerialized_small_model_on_eight_a100s():
    """With all gradients in one all-reduce; what is computed again is not the model's FLOPs."""
    target, remat = load_target("a100"), dataclasses.replace(SMALL.model, remat=True)
    options = dataclasses.replace(SMALL, target="a100", model=remat)
    row = report_row(options, target, 16, 8)
    assert broken_bounds(options, row) == []
    assert row["collectives"]["all-reduce"][0] == 1
    with cudnn_answers(target.cudnn):
        model = dataclasses.replace(SMALL.model.build(3), fused_attention=True)
        plain, again = (
            model_flops(lower_step(dataclasses.replace(model, remat=remat), CONFIG, 16, MESH))
            for remat in (False, True)
        )
    assert row["model_flops"] == 8 * plain < 8 * again
