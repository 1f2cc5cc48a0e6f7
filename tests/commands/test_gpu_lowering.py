"""The train step lowered for a GPU, and the functions that read such programs."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion_jax.config import TrainingConfig
from diffusion_jax.errors import UserError
from diffusion_jax.nn import kernels as nn_kernels
from diffusion_jax.nn.unet import UNet
from diffusion_jax.runtime.devices import AXIS
from experiments.tools.gpu import hlo, hlo_counts
from experiments.tools.gpu.flops import model_flops
from experiments.tools.gpu.program import (
    lower_sampler,
    lower_step,
    lower_weights,
    parameter_shapes,
)
from experiments.tools.gpu.target import as_if_on, cuda_version, gpu_mesh, load_target
from experiments.tools.gpu_report import Options, check

SIZE, BATCH, DEVICES = 16, 4, 2
MODEL = UNet(
    base_channels=16,
    multiples=(1, 2),
    attention_levels=(2,),
    num_res_blocks=1,
    dtype=jnp.bfloat16,
    kernels=nn_kernels.FUSED,
)
ATTENTIONS = 4  # one in the encoder, two in the decoder, one in the bottleneck
CONFIG = TrainingConfig(batch_size=BATCH)
TARGET = load_target("h100")


def lower(function, *arguments, platform="cuda"):
    """A function's program for one device."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))


def read(lowered):
    return hlo.instructions(lowered.as_text(dialect="hlo", debug_info=True))


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(scope="module")
def lowered():
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), (AXIS,))
    with as_if_on(TARGET):
        return lower_step(MODEL, CONFIG, SIZE, mesh)


@pytest.fixture(scope="module")
def program(lowered):
    return read(lowered)


@pytest.fixture(scope="module")
def kernels(lowered):
    arguments = jax.tree.leaves(lowered.in_avals)
    return {a.shape for a in arguments if jnp.issubdtype(a.dtype, jnp.floating)}


def test_every_convolution_is_nhwc(program):
    assert sum(hlo_counts.convolutions(program).values()) > 3 * 10
    assert hlo_counts.other_layouts(program) == {}


def test_only_the_fused_attention_names_its_heads_otherwise(program, kernels):
    """Its results' axes, one forward and three backward, which is a choice of layout, no move."""
    found = hlo_counts.transposes(program, kernels)
    assert sum(found.values()) == 4 * ATTENTIONS
    assert all("dot_product_attention" in origin for _, origin in found)


def test_attention_is_fused_forward_and_backward(program):
    assert hlo_counts.fused_attentions(program) == {"forward": ATTENTIONS, "backward": ATTENTIONS}


def test_sums_are_in_float32_under_bfloat16(program):
    """Statistics of norms, loss, norm of the gradients, and the gradients of every bias."""
    assert hlo_counts.narrow_sums(program) == {}
    wide = [i for i in program if i.opcode == "dot" and i.operands[0].dtype == "f32"]
    assert all("dense" in i.origin for i in wide)  # the time, which is few numbers
    assert hlo_counts.products(program).keys() == {"bf16", "f32"}


def test_the_state_is_donated_and_the_host_left_alone(lowered, program):
    arrays = len(jax.tree.leaves(lowered.in_avals)) - 1  # the images are not
    assert hlo.donated(lowered.as_text(dialect="hlo")) == arrays
    assert hlo_counts.host_calls(program) == {}


def test_the_gradients_and_the_loss_are_what_is_reduced(program):
    image, step = jnp.zeros((1, SIZE, SIZE, 3)), jnp.zeros(1, jnp.int32)
    with as_if_on(TARGET):
        parameters = jax.eval_shape(MODEL.init, jax.random.key(0), image, step)
    size = 4 * (1 + sum(leaf.size for leaf in jax.tree.leaves(parameters)))
    found = hlo_counts.collectives(program)
    assert found.keys() == {"all-reduce"}
    assert found["all-reduce"][1] == size


def test_several_updates_are_the_loop_of_one(lowered, program):
    """The same products and convolutions, once, in a loop."""
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), (AXIS,))
    with as_if_on(TARGET):
        scan = lower_step(MODEL, CONFIG, SIZE, mesh, updates=3)
    assert scan.in_avals[0][1].shape == (DEVICES, 3, BATCH // DEVICES, SIZE, SIZE, 3)
    assert model_flops(scan) == model_flops(lowered)
    found = read(scan)
    assert hlo_counts.convolutions(found) == hlo_counts.convolutions(program)
    assert hlo_counts.collectives(found) == hlo_counts.collectives(program)


def test_the_sampler_is_the_forward_pass_with_no_collectives(program):
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), (AXIS,))
    with as_if_on(TARGET):
        found = read(lower_sampler(MODEL, BATCH, SIZE, mesh))
    # The compiler splits cuDNN's attention over the devices, and only then names it.
    assert sum(i.target == "CustomSPMDPartitioning" for i in found) == ATTENTIONS
    assert hlo_counts.other_layouts(found) == hlo_counts.collectives(found) == {}
    forward, trained = (sum(hlo_counts.convolutions(each).values()) for each in (found, program))
    assert trained == 3 * forward - 1  # each with two gradients, but for the images'


def test_the_initial_weights_are_drawn_by_kernels():
    """One for each that is drawn: threefry's rounds are not written out."""
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
    with as_if_on(TARGET):
        found = read(lower_weights(MODEL, CONFIG, SIZE, mesh))
        parameters = parameter_shapes(MODEL, SIZE)
    drawn = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(parameters))
    kernels = sum(i.times for i in found if "threefry" in i.target)
    # A kernel's two words are put together by one "xor", where threefry has twenty rounds of them.
    assert sum(i.times for i in found if i.opcode == "xor") <= kernels
    assert kernels >= drawn


def test_a_program_that_breaks_every_rule():
    """What the tests above look for is seen where it is."""

    def wrong(x, kernel, bias):
        out = jax.lax.conv(x, kernel, (1, 1), "SAME")  # NCHW
        out = jnp.swapaxes(jnp.swapaxes(out, 1, 2), 2, 3)
        jax.debug.callback(lambda value: None, out[0, 0, 0, 0])
        return jnp.sum(jax.nn.silu(out + bias[None, None, None]).astype(jnp.float32))

    def both(x, kernel, bias):
        return jax.grad(wrong, (1, 2))(x, kernel, bias)

    b16 = jnp.bfloat16
    arguments = array(2, 8, 16, 16, dtype=b16), array(8, 8, 3, 3, dtype=b16), array(8, dtype=b16)
    lowered = lower(both, *arguments, platform="cpu")  # JAX lowers a call back for what is there
    program = read(lowered)
    assert hlo_counts.other_layouts(program)
    assert sum(hlo_counts.host_calls(program).values()) == 1
    assert [sum for sum, _ in hlo_counts.narrow_sums(program)] == ["bf16[2,16,16,8] -> bf16[8]"]
    assert sum(hlo_counts.transposes(program, [(8, 8, 3, 3)]).values()) >= 2
    assert hlo.donated(lowered.as_text(dialect="hlo")) == 0
    assert hlo_counts.fused_attentions(program) == {"forward": 0, "backward": 0}


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, "SAME", 1), (2, [(1, 1)] * 2, 1), (1, "VALID", 2)]
)
def test_flops_of_a_convolution_and_its_gradients(stride, padding, dilation):
    """Against XLA's own count; both leave out what meets padding or a hole."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    x, kernel = array(3, 12, 10, 5), array(3, 3, 5, 7)
    pull = array(*jax.eval_shape(convolve, x, kernel).shape)
    for function in (
        convolve,
        lambda x, kernel, pull: jax.vjp(convolve, x, kernel)[1](pull),
    ):
        arguments = (x, kernel) if function is convolve else (x, kernel, pull)
        lowered = lower(function, *arguments)
        assert model_flops(lowered) == lowered.cost_analysis()["flops"]
    if padding == "VALID":  # in closed form: 8 x 6 places, 9 taps, all of them real
        assert model_flops(lower(convolve, x, kernel)) == 2 * 3 * 8 * 6 * 9 * 5 * 7


def test_flops_of_products_count_every_call():
    """A function that is called twice, as XLA writes it once, and a product over a batch."""
    square = jax.jit(lambda a: a @ a)
    lowered = lower(lambda a: square(square(a)), array(6, 6))
    assert model_flops(lowered) == 2 * 2 * 6**3
    lowered = lower(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), array(5, 2, 3), array(5, 4, 3))
    assert model_flops(lowered) == 2 * 5 * 2 * 3 * 4


def test_flops_of_fused_attention_are_those_of_its_products():
    """Two forward; four more backward, where the plain form has as many."""
    q = array(2, 64, 4, 32, dtype=jnp.bfloat16)
    one = 2 * 2 * 4 * 64 * 64 * 32

    def attend(implementation):
        def loss(q, k, v):
            out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
            return jnp.sum(out.astype(jnp.float32) ** 2)

        return loss

    with as_if_on(TARGET), jax.numpy_dtype_promotion("standard"):
        for implementation in ("cudnn", "xla"):
            function = attend(implementation)
            assert model_flops(lower(function, q, q, q)) == 2 * one
            assert model_flops(lower(jax.grad(function, (0, 1, 2)), q, q, q)) == 6 * one


def test_what_cannot_be_compiled_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no target 'h9000': give one of a100, h100, or a file"):
        load_target("h9000")
    wrong = tmp_path / "wrong.txtpb"
    wrong.write_text("gpu_device_info {}")
    with pytest.raises(UserError, match="is no target specification"):
        load_target(str(wrong))
    with pytest.raises(UserError, match="a batch of 64 can't be shared evenly by 3 device"):
        check(Options(devices=(1, 3)))


@pytest.mark.parametrize(
    ("installed", "words"),
    [((), "install it with EXTRAS=gpu-report"), ((12, 13), "both installed"), ((13,), "")],
)
def test_the_compiler_is_found_or_said_to_be_missing(installed, words, monkeypatch):
    names = ["jax_plugins"] * bool(installed) + [f"jax_plugins.xla_cuda{n}" for n in installed]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in names else None)
    if words:
        with pytest.raises(UserError, match=words):
            gpu_mesh(load_target("a100"), 1)
    else:
        assert cuda_version() == installed[0]
