"""The side of `benchmark` that JAX is compared with: the model of `torch_ref`, on its device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from diffusion_jax.config import TrainingConfig
from diffusion_jax.nn import kernels
from diffusion_jax.nn.unet import UNet
from experiments.tools.speed import timing, torch_speed
from experiments.tools.speed.notes import note
from torch_ref import bridge
from torch_ref.unet import UNet as TorchUNet

Call = Callable[[], Any]
# Makes a call from a `torch_speed.Setting`, and `compile`.
MakeCall = Callable[..., Call]


@dataclass(frozen=True)
class Reference:
    """The PyTorch model.

    Attributes:
      model: with weights that are JAX's too.
      device: "cpu" or "cuda".
    """

    model: TorchUNet
    device: str

    @property
    def version(self) -> str:
        """Of torch."""
        return torch.__version__

    def weights(self) -> tuple[UNet, Any]:
        """The Flax model, with the device's kernels, and its parameters."""
        model, params = bridge.from_torch(self.model.state_dict())
        return model.copy(kernels=kernels.best()), params

    def forward(self, x: np.ndarray, step: np.ndarray) -> MakeCall:
        """See `torch_speed.forward`; all arrays are JAX's, images NHWC."""
        noisy, steps = tensors(x, step)
        return partial(torch_speed.forward, model=self.model, x=noisy, step=steps)

    def train_step(self, images: np.ndarray, mean: np.ndarray, config: TrainingConfig) -> MakeCall:
        """See `torch_speed.train_step`."""
        pixels, channel_mean = tensors(images, mean)
        return partial(
            torch_speed.train_step,
            model=self.model,
            images=pixels,
            mean=channel_mean,
            clip_norm=config.clip_norm,
            ema_decay=config.ema_decay,
        )

    def sampling(self, x: np.ndarray, num_steps: int) -> MakeCall:
        """See `torch_speed.sampling`."""
        (start,) = tensors(x)
        return partial(torch_speed.sampling, model=self.model, x=start, num_steps=num_steps)

    def setting(
        self, layout: str = "contiguous", bfloat16: bool = False, optimizer: str = "default"
    ) -> torch_speed.Setting:
        """See `torch_speed.Setting`."""
        return torch_speed.Setting(self.device, layout, optimizer, bfloat16)

    def call(
        self,
        make: MakeCall,
        setting: torch_speed.Setting,
        compile: bool = False,
    ) -> Callable[[int], Call]:
        """Makes the call: from a number, a function that does it so often and waits once.

        Args:
          make: makes the call.
          setting: how it runs.
          compile: the model through `torch.compile`.
        """
        made = make(setting, compile=compile)
        return partial(timing.in_a_row, made, lambda _: torch_speed.synchronize(setting))

    def peak_memory(self) -> int | None:
        """The most bytes of a GPU that torch's tensors took since the last question."""
        if self.device != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak

    def faster_layout(self, make: MakeCall, bfloat16: bool) -> tuple[str, dict[str, float]]:
        """See `torch_speed.faster_layout`."""
        return torch_speed.faster_layout(self.device, make, bfloat16=bfloat16)

    def optimizer_seconds(self) -> dict[str, float]:
        """See `torch_speed.optimizer_seconds`."""
        return torch_speed.optimizer_seconds(self.device, self.model)


def make_reference(gpu: bool, threads: int, fields: Mapping[str, Any]) -> Reference | None:
    """The reference with fresh weights, or None where this torch does not know the GPU.

    Args:
      gpu: whether it runs on one.
      threads: that it takes on a CPU.
      fields: the UNet's.
    """
    if gpu and not torch.cuda.is_available():
        note("this torch has no GPU support, so JAX is measured alone and there are no ratios")
        return None
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if gpu:
        torch_speed.prepare_gpu()
    elif not torch.backends.mkldnn.is_available():
        note("this torch has no oneDNN: the reference is slower than it is elsewhere")
    return Reference(TorchUNet(**fields), "cuda" if gpu else "cpu")


def tensors(*arrays: np.ndarray) -> list[Any]:
    """Images (batch, height, width, channels) as NCHW tensors; other arrays as they are."""
    return [
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1) if a.ndim == 4 else a))
        for a in arrays
    ]
