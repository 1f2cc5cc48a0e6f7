"""The side of `benchmark` that JAX is held against: the model of `torch_ref`, on its device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from diffusion_jax.config import TrainingConfig
from diffusion_jax.nn.unet import UNet
from experiments.tools.speed import torch_speed
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
        """The Flax model, and its parameters."""
        return bridge.from_torch(self.model.state_dict())

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

    def call(
        self,
        make: MakeCall,
        layout: str = "contiguous",
        bfloat16: bool = False,
        compile: bool = False,
    ) -> Call:
        """A call that ends when the device has done its work.

        Args:
          make: makes the call.
          layout: see `torch_speed.Setting`.
          bfloat16: see there.
          compile: the model through `torch.compile`.
        """
        setting = torch_speed.Setting(self.device, layout, bfloat16=bfloat16)
        made = make(setting, compile=compile)

        def waited() -> Any:
            result = made()
            torch_speed.synchronize(setting)
            return result

        return waited

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
    if gpu:  # as JAX does by default
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    elif not torch.backends.mkldnn.is_available():
        note("this torch has no oneDNN: the reference is slower than it is elsewhere")
    return Reference(TorchUNet(**fields), "cuda" if gpu else "cpu")


def tensors(*arrays: np.ndarray) -> list[Any]:
    """Images (batch, height, width, channels) as NCHW tensors; other arrays as they are."""
    return [
        torch.from_numpy(np.ascontiguousarray(np.moveaxis(a, -1, 1) if a.ndim == 4 else a))
        for a in arrays
    ]
