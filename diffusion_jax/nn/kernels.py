"""The kernels of a device: what computes the same as `plain`, faster or in less memory there."""

from dataclasses import replace
from functools import partial

import jax

from diffusion_jax.nn import attention, linear, normalization, plain, upsampling, winograd
from diffusion_jax.nn.plain import Kernels
from diffusion_jax.runtime import backend

CPU = Kernels(
    conv3x3=winograd.conv3x3,
    upsample_conv=upsampling.upsample_conv,
    add=linear.add,
    linear=linear.linear,
    attention=partial(attention.attention, in_turns=True),
    group_norm=partial(normalization.group_norm, barriers=False),
)
# GPUs and TPUs have fast convolutions. Up-sampled features are made again in the backward pass.
ACCELERATOR = replace(
    CPU,
    conv3x3=jax.jit(plain.conv3x3),  # equal convolutions are traced and lowered once
    upsample_conv=jax.checkpoint(plain.upsample_conv),
    attention=partial(attention.attention, in_turns=False),
    group_norm=partial(normalization.group_norm, barriers=True),
)
FUSED = replace(ACCELERATOR, attention=attention.fused_attention)


def best() -> Kernels:
    """The kernels of the first device."""
    if backend.platform() == "cpu":
        return CPU
    return FUSED if backend.has_fused_attention() else ACCELERATOR
