"""The Flax model held against the PyTorch reference: what the tests and `experiments.parity` share.

An error is relative to the largest absolute value of the whole tensor, packed weights as one.
float64 shows that the two are one model; what is left in float32 is rounding. The Flax model has
the kernels that are given, or the device's, with which it trains.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import Array
from torch import Tensor

from diffusion_jax import process, schedule
from diffusion_jax.config import TrainingConfig
from diffusion_jax.denoisers import TrainedDenoiser
from diffusion_jax.nn import unet
from diffusion_jax.nn.kernels import best
from diffusion_jax.nn.plain import Kernels
from diffusion_jax.sampling import AncestralSampler
from diffusion_jax.training.step import make_optimizer, noise_loss
from torch_ref import bridge
from torch_ref import process as torch_process
from torch_ref import training as torch_training
from torch_ref.unet import UNet

Errors = dict[str, float]
Jit = Callable[..., Any]

BOUNDS = {
    "float32": {"output": 1e-5, "loss": 1e-6, "gradient": 1e-4, "training": 1e-3, "chain": 1e-4},
    "float64": {"output": 1e-10, "loss": 1e-12, "gradient": 1e-9, "training": 1e-8, "chain": 1e-9},
}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Makes "float32" or "float64" the default type of both frameworks, within a with block."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    # Flax's norms promote float64 with float32 by themselves.
    double = dtype == "float64"
    promotion = jax.numpy_dtype_promotion("standard") if double else contextlib.nullcontext()
    try:
        with jax.enable_x64(double), promotion:
            yield
    finally:
        torch.set_default_dtype(default)


def nchw(array: Any) -> Tensor:
    """A NHWC array as a torch tensor (batch, channels, height, width)."""
    return torch.from_numpy(np.array(np.moveaxis(np.asarray(array), -1, 1), order="C"))


def nhwc(tensor: Tensor) -> np.ndarray:
    """A NCHW tensor as an array (batch, height, width, channels)."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def relative_error(got: Any, want: Any) -> float:
    """Largest |got - want| over largest |want|.

    Raises:
      ValueError: the two differ in shape or type.
    """
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        raise ValueError(f"{got.shape} {got.dtype} is compared with {want.shape} {want.dtype}")
    return float(np.abs(got - want).max() / np.abs(want).max())


def worst_error(got: Any, want: Any) -> float:
    """The largest `relative_error` among the leaves of two pytrees; NaN if any is."""
    return float(np.max(jax.tree.leaves(jax.tree.map(relative_error, got, want))))


def perturbed(**fields: Any) -> UNet:
    """A torch model, seed 0, with every trained weight moved, so that no norm or bias hides."""
    torch.manual_seed(0)
    model = UNet(**fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def gradients(model: UNet) -> dict[str, Any]:
    """The torch model's gradients as Flax parameters; zeros where there are none."""
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    table = model.state_dict()[bridge.TIME_TABLE]
    return bridge.from_torch(grads | {bridge.TIME_TABLE: table})[1]


def batch(seed: int, channels: int, height: int, width: int, num: int = 2) -> tuple[Any, Any, Any]:
    """Random images and noise (num, height, width, channels) of torch's type, and steps (num,)."""
    rng = np.random.default_rng(seed)
    dtype = str(torch.get_default_dtype()).removeprefix("torch.")
    x_0, noise = rng.standard_normal((2, num, height, width, channels)).astype(dtype)
    return x_0, rng.integers(0, 1000, num), noise


def to_torch(x_0: Any, step: Any, noise: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A batch as the reference takes it."""
    return nchw(x_0), torch.from_numpy(np.asarray(step)), nchw(noise)


def flax_model(model: UNet, kernels: Kernels | None = None) -> tuple[unet.UNet, Any]:
    """The Flax model of a torch model, with its parameters."""
    made, params = bridge.from_torch(model.state_dict())
    return made.copy(kernels=kernels or best()), params


def flax_block(
    name: str, params: Mapping[str, Any], dtype: Any, kernels: Kernels
) -> Callable[..., Array]:
    """The Flax block that has these parameters, as a function of (params, *inputs).

    Args:
      name: its name in the model, such as encoder0 or bottleneck0.attention.
      params: its parameters.
      dtype: compute type.
      kernels: what computes it.
    """
    both: dict[str, Any] = {"dtype": dtype, "kernels": kernels}

    def applied(layer: Any) -> Callable[..., Array]:
        return lambda params, *inputs: cast(Array, layer.apply({"params": params}, *inputs))

    if "in_proj" in params:
        return applied(unet.SelfAttention(**both))
    if "dense" in params:
        features = params["dense"]["bias"].size
        return applied(unet.ResidualBlock(features, "attention" in params, **both))
    if "norm" in params:
        return applied(unet.Block(params["conv"]["bias"].size, **both))
    features = params["bias"].size
    if name.startswith("decoder"):
        return applied(unet.Conv(features, upsample=True, **both))
    return applied(unet.Conv(features, stride=2, **both))


def compare_block(
    model: UNet,
    params: Mapping[str, Any],
    flax_name: str,
    torch_name: str,
    shape: tuple[int, ...],
    jit: Jit = jax.jit,
    kernels: Kernels | None = None,
) -> Errors:
    """Errors of one block's output, loss (its mean squared error to noise) and gradients.

    Args:
      model: the reference.
      params: its parameters in Flax, from `bridge.from_torch`.
      flax_name: the block's place in the Flax model, dots between levels.
      torch_name: its place in the reference.
      shape: shape of its input (batch, height, width, channels).
      jit: compiles the Flax block.
      kernels: see the top.

    Returns:
      "output", "loss" and "gradient", the largest over parameters and inputs.
    """

    def of_block(tree: Any) -> Any:
        for name in flax_name.split("."):
            tree = tree[name]
        return tree

    block_params = of_block(params)
    dtype = jax.tree.leaves(block_params)[0].dtype
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(dtype)]
    torch_inputs = [nchw(inputs[0]).requires_grad_()]
    if "dense" in block_params:
        time_channels = len(block_params["dense"]["kernel"])
        inputs.append(rng.standard_normal((shape[0], time_channels)).astype(dtype))
        torch_inputs.append(torch.from_numpy(inputs[1]).requires_grad_())
    model.zero_grad()
    torch_output = model.get_submodule(torch_name)(*torch_inputs)
    target = rng.standard_normal(nhwc(torch_output).shape).astype(dtype)
    torch_loss = torch.nn.functional.mse_loss(torch_output, nchw(target))
    torch_loss.backward()
    block = flax_block(flax_name, block_params, dtype, kernels or best())

    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params: Any, inputs: list[Any]) -> tuple[Array, Array]:
        output = block(params, *inputs)
        return jnp.mean(jnp.square(output - target)), output

    (loss, output), (param_grads, input_grads) = jit(run)(block_params, inputs)
    torch_grads = [cast(Tensor, leaf.grad) for leaf in torch_inputs]
    want = [nhwc(torch_grads[0]), *(grad.numpy() for grad in torch_grads[1:])]
    return {
        "output": relative_error(output, nhwc(torch_output)),
        "loss": abs(float(loss) / torch_loss.item() - 1),
        "gradient": worst_error((param_grads, input_grads), (of_block(gradients(model)), want)),
    }


def compare_model(
    model: UNet,
    arrays: tuple[Any, Any, Any],
    jit: Jit = jax.jit,
    kernels: Kernels | None = None,
) -> Errors:
    """Errors of the whole model's output, its loss, and every parameter's gradient.

    Args:
      model: the reference.
      arrays: images, steps and noise, see `batch`.
      jit: compiles the Flax model.
      kernels: see the top.

    Returns:
      "output", "loss" and "gradient", the largest over the parameters.
    """
    ours, params = flax_model(model, kernels)

    def run(params: Any, x_0: Array, step: Array, noise: Array) -> tuple[Any, Array, Any]:
        tables = schedule.linear_schedule()
        loss_of = partial(noise_loss, ours, tables)
        loss, grads = jax.value_and_grad(loss_of)(params, x_0, step, noise)
        x_t = process.diffuse(tables, x_0, step, noise)
        return ours.apply({"params": params}, x_t, step), loss, grads

    output, loss, grads = jit(run)(params, *map(jnp.asarray, arrays))
    model.zero_grad()
    tables = torch_process.linear_schedule()
    x_0, step, noise = to_torch(*arrays)
    torch_output = model(torch_process.diffuse(tables, x_0, step, noise), step)
    torch_loss = torch_training.noise_loss(model, tables, x_0, step, noise)
    torch_loss.backward()
    return {
        "output": relative_error(output, nhwc(torch_output)),
        "loss": abs(float(loss) / torch_loss.item() - 1),
        "gradient": worst_error(grads, gradients(model)),
    }


def compare_training(
    model: UNet, batches: list[tuple[Any, Any, Any]], jit: Jit = jax.jit
) -> tuple[np.ndarray, np.ndarray]:
    """Trains both from the same weights, on the same images, steps and noise, with Adam.

    Args:
      model: the reference, which is trained in place.
      batches: images, steps and noise of each update.
      jit: compiles the Flax train step.

    Returns:
      The losses before each update, in Flax and in torch.
    """
    ours, params = flax_model(model)
    tables = schedule.linear_schedule()
    optimizer = make_optimizer(TrainingConfig(warmup_steps=0, clip_norm=math.inf))

    def train_step(params: Any, opt_state: Any, *arrays: Array) -> tuple[Any, Any, Array]:
        loss_of = partial(noise_loss, ours, tables)
        loss, grads = jax.value_and_grad(loss_of)(params, *arrays)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = jax.tree.map(jnp.asarray, params)
    compiled, opt_state, losses = jit(train_step), jit(optimizer.init)(params), []
    for arrays in batches:
        params, opt_state, loss = compiled(params, opt_state, *map(jnp.asarray, arrays))
        losses.append(float(loss))
    torch_tables, torch_optimizer = (
        torch_process.linear_schedule(),
        torch_training.make_optimizer(model),
    )
    torch_losses = [
        torch_training.train_step(model, torch_optimizer, torch_tables, *to_torch(*arrays))
        for arrays in batches
    ]
    return np.array(losses), np.array(torch_losses)


def compare_chain(
    model: UNet, x: Any, noise: Any, faithful: bool = False, jit: Jit = jax.jit
) -> float:
    """Error of the last state of an ancestral chain, with the same noise in both.

    Args:
      model: the reference.
      x: noise to start from (batch, height, width, channels).
      noise: that of each step (L, *x.shape), indexed by the step; L is the schedule's length.
      faithful: see `sampling.AncestralSampler`.
      jit: compiles the Flax step.
    """
    ours, params = flax_model(model)
    denoiser = TrainedDenoiser(params, ours)
    sampler = AncestralSampler(schedule.linear_schedule(len(noise)), faithful)
    want = torch_process.ancestral_chain(
        torch_process.linear_schedule(len(noise)),
        model,
        nchw(x),
        torch.stack([nchw(z) for z in noise]),
        faithful,
    )
    backward = jit(AncestralSampler.move)
    x = jnp.asarray(x)
    for step in reversed(range(len(noise))):
        x = backward(sampler, denoiser, x, jnp.int32(step), jnp.asarray(noise[step]))
    return relative_error(x, nhwc(want))
