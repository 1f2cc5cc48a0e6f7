# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]

# %% [markdown]
# # Port a PyTorch checkpoint
#
# You have a diffusion model that was trained in PyTorch, with the code of the paper *Dynamical regimes of diffusion models* or one like it, and you want to fork it, measure it, or train it further here. This notebook takes such a checkpoint, converts it with one command, and shows that both models are the same: the same answer to the same image, and the same samples from the same noise.
#
# PyTorch must be installed: `EXTRAS=torch ./launch.sh ...` does that.
#
# ## A checkpoint
#
# In place of your checkpoint we make one. It has the weights of the run that the documentation ships (`docs/runs/digits`), so that there is something to see. `torch_ref.unet.UNet` is the model of the paper in PyTorch. Training scripts often wrap the weights in a dictionary, with an epoch or an optimizer beside them; so do we.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import diffusion_jax as dj
from torch_ref import bridge
from torch_ref.unet import UNet

torch.set_num_threads(1)  # so small a model gains nothing from more
runs = Path("../runs").resolve()
temporary = tempfile.TemporaryDirectory()
work = Path(temporary.name)

shipped = dj.load_model(runs / "digits")
shape = shipped.config.model  # widths, levels and so on
original = UNet(
    channels=1,
    base_channels=shape.base_channels,
    multiples=shape.multiples,
    attention_levels=shape.attention_levels,
    num_res_blocks=shape.num_res_blocks,
    dropout=shape.dropout,
).eval()
weights = bridge.to_torch(shape.build(1), shipped.denoiser.params)
original.load_state_dict(weights)
torch.save({"epoch": 12, "model_state_dict": original.state_dict()}, work / "original.pt")
print(
    f"{sum(each.numel() for each in weights.values())} numbers in {len(weights)} tensors, such as"
)
for name in list(weights)[:5]:
    print(f"  {name:40} {tuple(weights[name].shape)}")

# %% [markdown]
# ## One command
#
# `from-torch` finds the weights in the file, whatever lies around them, and reads the model's shape from them. What it cannot read from the file you tell it: which images the model was trained on. From these it takes the mean, which is removed from every image. (Without the images at hand, `--mean` gives it.)

# %%
command = ["from-torch", "original.pt", "--run-dir", "ported"]
command += ["--data", str(runs / "digits.npz"), "--images-per-class", "400"]
done = subprocess.run(
    [sys.executable, "-m", "experiments.convert", *command],
    cwd=work,
    capture_output=True,
    text=True,
)
print(done.stdout or done.stderr)

# %% [markdown]
# Only tensors are read from the file: a checkpoint can hold code, and nothing of it is run. A file whose names or shapes do not fit is refused with a sentence that says which.
#
# ## The same answer
#
# `ported` is now a run like any other. We ask both models for the noise in the same noisy images, at many steps of the schedule. PyTorch has the channels before height and width, JAX behind them; that is all there is to translate.

# %%
import jax

ported = dj.load_model(work / "ported")


@torch.no_grad()
def in_torch(x, step):
    """The original's answer to images (batch, height, width, channels)."""
    x = torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())
    return np.moveaxis(original(x, torch.from_numpy(np.asarray(step))).numpy(), 1, -1)


rng = np.random.default_rng(0)
x = rng.standard_normal((32, *ported.shape)).astype(np.float32)
step = np.linspace(0, 999, 32).astype(np.int32)
predict = jax.jit(lambda denoiser, x, step: denoiser(x, step))
ours, theirs = np.asarray(predict(ported.denoiser, x, step)), in_torch(x, step)
error = np.abs(ours - theirs).max() / np.abs(theirs).max()
print(f"largest relative error of the predicted noise: {error:.0e}")

# %% [markdown]
# The two differ by the rounding of 32-bit numbers, and by nothing else.
#
# ## The same samples
#
# Now both run the whole way back from the same noise. We take a sampler that adds none on its way (DDIM), in 50 steps. At each step it computes the image that the network believes in, and goes to the next noise level:
#
# $$D = \frac{x - \sqrt{\Delta}\, \varepsilon(x)}{\sqrt{1 - \Delta}}, \qquad x \leftarrow \sqrt{1 - \Delta'}\, D + \sqrt{\Delta'}\, \varepsilon(x),$$
#
# where $\varepsilon(x)$ is the noise that the network predicts, and $\Delta$ the variance of the noise in $x$, here and, with a prime, at the next level. In JAX that is one call. For PyTorch we write it out.

# %%
from diffusion_jax.sampling import sampling_loop

count = 16
backward = ported.backward("ddim", calls=50)
start = rng.standard_normal((count, *ported.shape)).astype(np.float32)
keys = jax.random.split(jax.random.key(0), count)  # that a sampler with noise would use
ours = np.asarray(jax.jit(sampling_loop)(backward.sampler, backward.denoiser, start, keys))

taken = np.asarray(backward.denoiser.steps)  # of the 1 000, increasing
levels = np.append(0, np.asarray(backward.sampler.schedule.noise_variance)).astype(np.float32)
theirs = start
for place in range(len(taken), 0, -1):
    noise = in_torch(theirs, np.full(count, taken[place - 1]))
    here, there = levels[place], levels[place - 1]
    believed = (theirs - np.sqrt(here) * noise) / np.sqrt(1 - here)
    theirs = np.sqrt(1 - there) * believed + np.sqrt(there) * noise
error = np.abs(ours - theirs).max() / np.abs(theirs).max()
print(f"largest relative error of a pixel after {len(taken)} steps: {error:.0e}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, count, figsize=(8, 1.2), layout="constrained")
for row, samples, name in zip(axes, (theirs, ours), ("PyTorch", "JAX"), strict=True):
    for axis, sample in zip(row, samples, strict=True):
        axis.imshow((ported.mean + sample)[..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=8)

# %% [markdown]
# Above PyTorch, below JAX: the same digits, pixel by pixel.
#
# ## And back
#
# `python -m experiments.convert to-torch RUN_DIR FILE` writes a run's weights as a state dict for the original. What went through both ways is what it was, bit for bit.

# %%
there = bridge.to_torch(ported.config.model.build(1), ported.denoiser.params)
same = all(torch.equal(there[name], weights[name]) for name in weights)
print(f"all {len(weights)} tensors are equal: {same}")
temporary.cleanup()

# %% [markdown]
# ## What to change for your own checkpoint
#
# - Put its path in place of `original.pt`, and your images after `--data` (or `--preset lsun` and its like, where they are those of the paper).
# - Where a file holds both raw and averaged weights (EMA), the average is taken. `--weights raw` takes the others.
# - A model of another kind than the paper's UNet cannot be converted. It can still be used: any function that predicts the noise in $x_t$ is a denoiser, as `docs/python.md` shows.
# - The next steps are those of the notebook *A small run*: sample it, fork it, and ask what it computes.
