"""The reference as fast as PyTorch runs it: what `experiments.tools.benchmark` times against.

Same model, loss, optimizer and sampler as in `torch_ref`, with what a careful user turns
on: no gradients where none are needed, Adam and the moving average in their quickest forms, no wait
for the device between steps.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from torch_ref import process, training
from torch_ref.unet import UNet

Call = Callable[[], Any]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
OPTIMIZERS: dict[str, dict[str, bool]] = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@dataclass(frozen=True)
class Setting:
    """How the reference runs.

    Attributes:
      device: "cpu" or "cuda".
      layout: memory layout of weights and features, a key of `LAYOUTS`.
      optimizer: form of Adam, a key of `OPTIMIZERS`; the same mathematics.
      bfloat16: run under autocast to bfloat16.
    """

    device: str = "cpu"
    layout: str = "contiguous"
    optimizer: str = "default"
    bfloat16: bool = False

    def place(self, images: Tensor) -> Tensor:
        """A batch (batch, channels, height, width) on the device, in the layout."""
        return images.to(self.device, memory_format=LAYOUTS[self.layout])

    def model(self, model: UNet) -> UNet:
        """A copy of a model on the device, in the layout."""
        copied: Any = copy.deepcopy(model)
        return copied.to(self.device, memory_format=LAYOUTS[self.layout])

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Autocast where asked."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            yield

    def schedule(self) -> process.Schedule:
        """The linear schedule of 1000 steps, on the device."""
        tables = process.linear_schedule()
        moved = (tables.beta, tables.alpha_bar, tables.noise_variance)
        return process.Schedule(*(table.to(self.device) for table in moved))


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of a model, in its default mode."""
    torch._dynamo.reset()
    return torch.compile(call)


def forward(setting: Setting, model: UNet, x: Tensor, step: Tensor, compile: bool = False) -> Call:
    """A prediction without gradients: a function of nothing that returns it.

    Args:
      setting: how it runs.
      model: the noise predictor; a copy is taken.
      x: noisy images (batch, channels, height, width).
      step: integer steps (batch,).
      compile: through `torch.compile`.
    """
    network: Any = setting.model(model).eval()
    x, step = setting.place(x), step.to(setting.device)
    network = compiled(network) if compile else network

    @torch.inference_mode()
    def call() -> Tensor:
        with setting.precision():
            return network(x, step)

    return call


def train_step(
    setting: Setting,
    model: UNet,
    images: Tensor,
    mean: Tensor,
    clip_norm: float,
    ema_decay: float,
    compile: bool = False,
) -> Call:
    """One whole update of a run: a function of nothing that returns the loss.

    Counted: images to floats, noise and steps drawn, diffusion, forward and backward pass with
    dropout, clipping, Adam, moving average of the parameters.

    Args:
      setting: how it runs.
      model: the noise predictor; a copy is taken.
      images: uint8 (batch, channels, height, width).
      mean: per-channel mean (channels,).
      clip_norm: global norm to which larger gradients are scaled down.
      ema_decay: decay of the moving average.
      compile: the model through `torch.compile`.
    """
    original = setting.model(model).train()
    network: Any = compiled(original) if compile else original
    parameters: list[Tensor] = [p for p in original.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizer = make_adam(setting, original)
    schedule = setting.schedule()
    images = setting.place(images)
    mean = mean.to(setting.device)[:, None, None]

    def call() -> Tensor:
        x_0 = images.float().div_(255).sub_(mean)
        step = torch.randint(len(schedule.beta), (len(images),), device=setting.device)
        noise = torch.randn_like(x_0)
        optimizer.zero_grad(set_to_none=True)
        with setting.precision():
            loss = training.noise_loss(network, schedule, x_0, step, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - ema_decay)
        return loss.detach()

    return call


def make_adam(setting: Setting, model: UNet) -> torch.optim.Adam:
    """`training.make_optimizer`'s Adam, in the form that the setting names."""
    settings = training.make_optimizer(model).defaults | OPTIMIZERS[setting.optimizer]
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], **settings)


def sampling(
    setting: Setting, model: UNet, x: Tensor, num_steps: int, compile: bool = False
) -> Call:
    """The first steps of ancestral sampling from pure noise: a function of nothing.

    Args:
      setting: how it runs.
      model: the noise predictor; a copy is taken.
      x: pure noise (batch, channels, height, width).
      num_steps: steps that are run, out of 1000.
      compile: the model through `torch.compile`.
    """
    network: Any = setting.model(model).eval()
    network = compiled(network) if compile else network
    # On the host: a value read for each step would wait for the device.
    schedule, start = process.linear_schedule(), setting.place(x)

    def denoiser(x: Tensor, step: Tensor) -> Tensor:
        with setting.precision():
            return network(x, step.to(x.device)).to(x.dtype)

    @torch.inference_mode()
    def call() -> Tensor:
        state = start
        for step in range(999, 999 - num_steps, -1):
            noise = torch.randn_like(state)
            state = process.ancestral_step(schedule, denoiser, state, step, noise)
        return state

    return call


def prepare_gpu() -> None:
    """Products in TF32, as JAX has them by default, and the convolution that is the fastest."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def synchronize(setting: Setting) -> None:
    """Waits until the device has done what it was given."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


def _seconds(setting: Setting, call: Call, repeats: int) -> float:
    call()
    record = []
    for _ in range(repeats):
        synchronize(setting)
        start = time.perf_counter()
        call()
        synchronize(setting)
        record.append(time.perf_counter() - start)
    return median(record)


def faster_layout(
    device: str, make: Callable[[Setting], Call], repeats: int = 2, bfloat16: bool = False
) -> tuple[str, dict[str, float]]:
    """The memory layout in which a call is faster, and the seconds of both.

    Args:
      device: "cpu" or "cuda".
      make: makes the call from a setting.
      repeats: timed calls of each, after one that is not.
      bfloat16: run under autocast.
    """
    seconds = {}
    for layout in LAYOUTS:
        setting = Setting(device, layout, bfloat16=bfloat16)
        seconds[layout] = _seconds(setting, make(setting), repeats)
    return min(seconds, key=seconds.__getitem__), seconds


def optimizer_seconds(device: str, model: UNet, repeats: int = 5) -> dict[str, float]:
    """Seconds of one step of Adam in each form, on gradients of ones."""
    seconds = {}
    for name in OPTIMIZERS:
        setting = Setting(device, optimizer=name)
        copied = setting.model(model)
        for parameter in copied.parameters():
            parameter.grad = torch.ones_like(parameter)
        seconds[name] = _seconds(setting, make_adam(setting, copied).step, repeats)
    return seconds
