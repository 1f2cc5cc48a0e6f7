"""What the device computes, compared with float64 on the CPU: layers, the UNet, a training.

The device has its own kernels; what it is compared with is plain JAX.

Errors of arrays are relative: of outputs the largest difference over the largest value, of
gradients the norm of the difference over that of the gradient, all parameters as one vector.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from diffusion_jax.config import TrainingConfig
from diffusion_jax.nn import kernels, unet
from diffusion_jax.nn.plain import PLAIN, Kernels
from diffusion_jax.schedule import linear_schedule
from diffusion_jax.training.step import make_optimizer, noise_loss
from experiments.tools.check import device
from experiments.tools.check.task import Task
from experiments.tools.speed import programs

# The largest errors for each way of computing. float32 at "highest" rounds to 6e-8, TF32 to 5e-4,
# bfloat16 to 4e-3; some tens of roundings after one another add up to about ten of them in outputs
# and gradients, more where a sum cancels. A training carries the errors of its updates on.
BOUNDS = {
    "float32, highest": {"output": 1e-5, "gradient": 1e-5, "losses": 1e-4},
    "float32": {"output": 1e-2, "gradient": 1e-2, "losses": 1e-2},
    "bfloat16": {"output": 5e-2, "gradient": 5e-2, "losses": 5e-2},
}
# 16-bit inputs; the weights of the softmax are rounded to 4e-3 too.
ATTENTION = {"output": 1e-2, "gradient": 2e-2}
CHANNELS = 32

TYPES = {
    "float32, highest": (jnp.float32, "highest"),
    "float32": (jnp.float32, None),
    "bfloat16": (jnp.bfloat16, None),
}


@contextlib.contextmanager
def _in_float64() -> Iterator[None]:
    """On the CPU, in float64."""
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
        yield


def _modules(task: Task, dtype: Any, kernels: Kernels) -> dict[str, nn.Module]:
    """What is computed, in a type."""
    both: dict[str, Any] = {"dtype": dtype, "kernels": kernels}
    return {
        "block": unet.Block(CHANNELS, **both),
        "residual block": unet.ResidualBlock(CHANNELS, **both),
        "down-sampling": unet.Conv(CHANNELS, stride=2, **both),
        "up-sampling": unet.Conv(CHANNELS, upsample=True, **both),
        "attention": unet.SelfAttention(**both),
        "UNet": unet.UNet(**task.sizes.compared, **both),
    }


def _inputs(task: Task) -> dict[str, list[np.ndarray]]:
    """The inputs of each, drawn on the host: the same in every type."""
    batch, pixels = task.sizes.compared_images
    rng = np.random.default_rng(0)
    h = rng.standard_normal((batch, pixels, pixels, CHANNELS), np.float32)
    names = ("block", "residual block", "down-sampling", "up-sampling", "attention")
    found = {name: [h] for name in names}
    found["residual block"] = [h, rng.standard_normal((batch, 4 * CHANNELS), np.float32)]
    found["UNet"] = [h[..., :3], rng.integers(0, 1000, batch, np.int32)]
    return found


def _batches(task: Task) -> list[np.ndarray]:
    """Images, steps and noise of each update, drawn on the host."""
    updates, (batch, pixels) = task.sizes.updates, task.sizes.compared_images
    rng = np.random.default_rng(0)
    x_0, noise = rng.standard_normal((2, updates, batch, pixels, pixels, 3), np.float32)
    return [x_0, rng.integers(0, 1000, (updates, batch), np.int32), noise]


def _params(task: Task) -> dict[str, Any]:
    """Parameters of each, drawn on the host."""
    inputs = _inputs(task)
    return {
        name: programs.drawn_like(
            jax.eval_shape(module.init, jax.random.key(0), *inputs[name])["params"]
        )
        for name, module in _modules(task, jnp.float32, PLAIN).items()
    }


def _output_and_gradient(
    apply: Callable[..., Any], params: Any, inputs: Any, wide: Any
) -> dict[str, Any]:
    """An output, and the gradient of the mean of its square in all parameters."""

    def loss(params: Any) -> Any:
        output = apply(params, *inputs)
        return jnp.mean(jnp.square(output.astype(wide))), output

    grads, output = jax.grad(loss, has_aux=True)(params)
    return {"output": output, "gradient": ravel_pytree(grads)[0]}


def _losses(model: nn.Module, params: Any, batches: Any) -> Any:
    """The losses of some updates with clipping and Adam, at a high learning rate."""
    optimizer = make_optimizer(TrainingConfig(warmup_steps=0, learning_rate=1e-3))
    loss_of = partial(noise_loss, model, linear_schedule())

    def update(carry: Any, batch: Any) -> tuple[Any, Any]:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        changes, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), loss

    return jax.lax.scan(update, (params, optimizer.init(params)), batches)[1]


def _compute(task: Task, params: Any, dtype: Any, kernels: Kernels) -> dict[str, dict[str, Any]]:
    """Outputs and gradients, and the losses, in a type, where the context says: one program."""
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    modules = _modules(task, dtype, kernels)

    @jax.jit
    def compute(params: Any, inputs: Any, batches: Any) -> Any:
        found = {
            name: _output_and_gradient(partial(_apply, module), params[name], inputs[name], wide)
            for name, module in modules.items()
        }
        return found | {"training": {"losses": _losses(modules["UNet"], params["UNet"], batches)}}

    arguments = params, _inputs(task), _batches(task)
    return _in_float64_arrays(compute(*_cast(arguments, wide)))


def _apply(module: nn.Module, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


def _cast(tree: Any, dtype: Any) -> Any:
    """The floats of a pytree in another type."""
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float32 else a, tree)


def _in_float64_arrays(tree: Any) -> Any:
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def _error(name: str, got: np.ndarray, want: np.ndarray) -> float:
    """See the top; of losses the largest relative difference."""
    if name == "losses":
        return float(np.max(np.abs(got / want - 1)))
    size: Callable[[np.ndarray], Any] = np.linalg.norm if name == "gradient" else _largest
    return float(size(got - want) / size(want))


def _largest(array: np.ndarray) -> Any:
    return np.abs(array).max()


def measure(task: Task) -> None:
    """The item `correct`. The types take their turns side by side: compiling takes longest."""
    device.start()
    best, params = kernels.best(), _params(task)

    def computed(name: str) -> Any:
        dtype, precision = TYPES[name]
        with jax.default_matmul_precision(precision):
            return _compute(task, params, dtype, best)

    def reference() -> Any:
        with _in_float64():
            return _compute(task, params, jnp.float64, PLAIN)

    with ThreadPoolExecutor() as pool:
        want = pool.submit(reference)
        results = {name: pool.submit(computed, name) for name in TYPES}
        for name, result in results.items():
            for what, arrays in result.result().items():
                for kind, array in arrays.items():
                    error = _error(kind, array, want.result()[what][kind])
                    task.judge(f"{name}: {what}, {kind}", error, BOUNDS[name][kind])
    _measure_attention(task, best)


def _measure_attention(task: Task, best: Kernels) -> None:
    """The attention that bfloat16 takes on this device, from inputs that are bfloat16's own."""
    pixels = 64 if task.tiny else 1024
    numbers = np.random.default_rng(0).standard_normal((3, 2, pixels, 4, 64), np.float32)
    rounded = numbers.astype(jnp.bfloat16)

    def run(dtype: Any, wide: Any, kernels: Kernels) -> dict[str, np.ndarray]:
        def apply(arrays: tuple[Any, Any, Any]) -> Any:
            q, k, v = arrays
            return kernels.attention(q, k, v)

        @jax.jit
        def compute(arrays: Any) -> Any:
            return _output_and_gradient(apply, arrays, (), wide)

        return _in_float64_arrays(compute(tuple(rounded.astype(dtype))))

    got = run(jnp.bfloat16, jnp.float32, best)
    with _in_float64():
        want = run(jnp.float64, jnp.float64, PLAIN)
    fused = best is kernels.FUSED
    name = "fused attention" if fused else "plain attention (there is no fused one here)"
    for kind, most in ATTENTION.items():
        task.judge(f"bfloat16: {name}, {kind}", _error(kind, got[kind], want[kind]), most)
