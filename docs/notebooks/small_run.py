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
# # A small run: sample it, fork it, and ask what it computes
#
# The folder `docs/runs/digits` holds a trained network: a small UNet that draws ones and eights of 16 x 16 pixels. `docs/runs/README.md` says how it was trained. Here we open it and ask three questions.
#
# 1. What does it draw?
# 2. When, on the way from noise to a digit, does it choose between a one and an eight?
# 3. Which simple formula comes closest to what the network computes?

# %%
import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np

import diffusion_jax as dj
from diffusion_jax import data

model = dj.load_model("../runs/digits").with_data(data="../runs/digits.npz")
images = model.own_images(data.load(model.config.data))  # refuses any other training set
points = images.centred()  # pixels in [0, 1], the mean removed: what the network knows
schedule = model.sampler.schedule
print(f"{model.step} updates on {len(points)} images of {model.shape}, {model.class_names}")


def show(rows, labels=None, width=8):
    """Images (rows, columns, height, width, 1) as a grid."""
    rows = np.asarray(rows)
    size = width / rows.shape[1]
    figure, axes = plt.subplots(
        *rows.shape[:2], figsize=(width, size * rows.shape[0] + 0.3 * bool(labels)), squeeze=False
    )
    figure.subplots_adjust(0, 0, 1, 1 - 0.3 * bool(labels) / figure.get_figheight(), 0.05, 0.05)
    for axis, image in zip(axes.flat, rows.reshape(-1, *rows.shape[2:]), strict=True):
        axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
    for axis, label in zip(axes[0], labels or [], strict=False):
        axis.set_title(label, fontsize=9)


# %% [markdown]
# ## What it draws
#
# `model.backward` is the backward process: a sampler, the network, and a start. With `calls=100` it takes 100 steps of the 1 000 that the network was trained with.

# %%
key = jax.random.key(0)
samples = model.backward("ancestral", calls=100).sample(key, 32, model.shape)
show((model.mean + samples).clip(0, 1).reshape(2, 16, *model.shape))

# %% [markdown]
# Most are digits, and some are between a one and an eight. Are they copies of training images? A sample counts as a copy if its nearest training image is three times nearer than the second nearest.

# %%
near = dj.nearest(samples, points)
print(f"copies: {near.memorised.sum()} of {len(samples)} samples")
print(f"median distance to the nearest training image: {np.median(near.distance):.2f}")
gap = dj.nearest(points, points).second
print(f"median distance of a training image to the next one: {np.median(gap):.2f}")
show((model.mean + np.stack([samples[:16], points[near.index[:16]]])).clip(0, 1))

# %% [markdown]
# Above are samples, below the training image that is nearest to each.
#
# ## When does it choose?
#
# Stop the process at time $t$, and let several *clones* go on from the same noisy image, each with noise of its own. If all become the same digit, the choice had been made before. `dj.fork` does that at many times at once. Time is that of the forward process, $x_t = e^{-t} a + \sqrt{1 - e^{-2t}}\, z$: small $t$ is late on the way back.

# %%
process = model.backward("ancestral", calls=50)  # half of the steps: there are many clones
times = np.asarray(process.sampler.schedule.time)
asked = [2.0, 1.0, 0.5, 0.25, 0.12, 0.06]
steps = sorted({int(np.abs(times - t).argmin()) + 1 for t in asked}, reverse=True)
trunks = 32
found = dj.fork(
    *(process.sampler, process.denoiser, key, steps, model.shape, 0, trunks), start=process.start
)
fork_times = times[found.steps - 1]
grid = np.concatenate([found.trunk[:6, None], found.clones[:6, ::-1, 0]], axis=1)
show((model.mean + grid).clip(0, 1), ["original", *(f"t = {t:.2f}" for t in fork_times[::-1])])

# %% [markdown]
# Each row is one sample, the *original*, and its clones. A clone made at small $t$ is nearly the same picture. At larger $t$ it is another digit, mostly of the same kind. At the largest $t$ the kind is open too.
#
# To count, we need to tell ones from eights. The label of the nearest training image will do here. (`experiments.cloning` trains a small classifier for that.) The fraction of pairs that agree is $\phi(t)$. Beside it we draw $\phi$ of the *exact score* of the training images, which `dj.analyse` computes without any network.


# %%
def label(x):
    return images.labels[dj.nearest(x.reshape(-1, *model.shape), points).index]


one, other = (label(ends).reshape(trunks, -1) for ends in found.pairs())
phi = (one == other).mean(axis=0)
error = np.sqrt(phi * (1 - phi) / trunks)
study = dj.analyse(images, accuracy=2e-2)
exact = study.analysis.overall.curves["phi"]
expected = np.interp(fork_times, exact.times, exact.mean)
print("   t   network  exact score")
for row in zip(fork_times, phi, expected, strict=True):
    print("{:.2f}    {:.3f}    {:.3f}".format(*row))
t_S, t_C = study.times["t_S_phi"].value, study.times["t_C_phi"].value
print(f"of the exact score: t_S_phi = {t_S:.2f}, t_C_phi = {t_C:.2f}")

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.semilogx(exact.times, exact.mean, label="exact score of the training set")
axis.errorbar(fork_times, phi, 2 * error, fmt="o", label="the network's clones")
axis.axvline(t_S, color="black", linestyle="--", label="$t_S$ of the exact score")
axis.set(xlabel="time of the fork $t$", ylabel=r"$\phi(t)$", xlim=(0.03, 4))
axis.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2], [0.05, 0.1, 0.2, 0.5, 1, 2])
axis.legend()
plt.show()
# %% [markdown]
# Both curves say the same: at large $t$ nothing is decided, and the choice between one and eight falls around $t = 0.4$. It is the data, above all, that set this time. (With 32 pairs at each time the bars, two standard errors, are wide.)
#
# At small $t$ the network's clones agree a little less often: 0.906 at $t = 0.06$, where those of the exact score always agree. There the exact score has one training image left ($t$ is below $t_C = 0.12$) and can only return it. The network has no image by heart: none of its samples is a copy. Besides, some of its digits lie between a one and an eight, and the nearest training image of such a digit may be either.
#
# ## What does the network compute?
#
# A denoiser looks at a noisy image $x_t$ and answers with the image that it believes is behind it, $D(x_t)$. Several theories say what a network's $D$ is like. Each is a formula of the training images, and each is a denoiser of this library:
#
# - **exact**: the mean of the training images, each weighed by how well it agrees with $x_t$. This is what a network is trained to be. Following it backwards gives training images and nothing else.
# - **gaussian**: as if the images were one normal cloud, with their mean and covariance.
# - **classes**: one such cloud for each class.
# - **local**: each pixel looks only at a patch around it (here 5 x 5), and compares that with the same place in the training images.
# - **equivariant**: the same, and the pixel does not know where in the image it is: it compares its patch with all places.
#
# We take images that the network has never seen (the next hundred of each class), add noise, and compare. How much of the network's answer does a theory explain? $R^2$ is 1 where both answer the same, and 0 where the theory is no better than the network's mean answer.

# %%
from diffusion_jax.process import noise_to_x_0
from diffusion_jax.regimes.resemblance import closest, summarize, sums
from diffusion_jax.regimes.theories import theories_of

held_out = data.load(
    dataclasses.replace(model.config.data, images_per_class=100, skip_per_class=400)
)
unseen = held_out.images[::10] / np.float32(255) - model.mean
noise = jax.random.normal(jax.random.key(1), unseen.shape)
names = ["exact", "gaussian", "classes", "local", "equivariant"]
theories = {
    theory.name: theory.make(schedule, jax.numpy.asarray(points), images.labels)
    for theory in theories_of(names, (5,), (5,), model.shape)
}


@jax.jit
def denoised(denoiser, x, step):
    step = jax.numpy.full(len(x), step)
    return noise_to_x_0(schedule, denoiser(x, step), x, step)


asked = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
compared, pictures = [], []
for step in np.rint(schedule.step_of_time(asked)).astype(np.int32):
    x_t = dj.diffuse(schedule, unseen, np.full(len(unseen), step), noise)
    network = np.asarray(denoised(model.denoiser, x_t, step))
    answers = {name: np.asarray(denoised(each, x_t, step)) for name, each in theories.items()}
    middle = network.mean(axis=0)
    compared.append({name: sums(network, D, middle, len(network)) for name, D in answers.items()})
    pictures.append((np.asarray(x_t), network, answers))

print("   t   " + "".join(f"{name:>15}" for name in theories) + "   closest")
for t, table in zip(asked, compared, strict=True):
    values = [summarize(each).r_squared.value for each in table.values()]
    print(f"{t:5.2f}  " + "".join(f"{v:15.2f}" for v in values) + f"   {closest(table).name}")

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for name in theories:
    found_r = [summarize(table[name]).r_squared for table in compared]
    value, low, high = (
        np.array([getattr(r, f) for r in found_r]) for f in ("value", "low", "high")
    )
    axis.errorbar(asked, value, (value - low, high - value), marker="o", capsize=2, label=name)
axis.axvline(t_S, color="black", linestyle="--", linewidth=0.8)
axis.axvline(t_C, color="black", linestyle=":", linewidth=0.8)
axis.set(
    xscale="log", ylim=(-0.5, 1.02), xlabel="time $t$ (dashed $t_S$, dotted $t_C$)", ylabel="$R^2$"
)
axis.set_xticks(asked, asked)
axis.minorticks_off()
axis.legend(fontsize=8)
plt.show()
# %%
for place in (1, 3):
    x_t, network, answers = pictures[place]
    rows = [[x_t[i], network[i], *(D[i] for D in answers.values())] for i in (1, 16)]
    show((model.mean + np.array(rows)).clip(0, 1), ["$x_t$", "network", *answers])

# %% [markdown]
# From the left: the noisy image, the network's answer, and those of the theories; above at $t = 0.05$, below at $t = 0.2$.
#
# - The **exact** score, towards which the network was trained, explains 0.60 to 0.65 of its answers and is never the closest. The network does something else, and this is why it can draw digits that were not in its training set.
# - **One Gaussian for each class** comes close at every time (0.93 to 0.74), and is the closest from $t = 0.1$ on (there with the local theory, 0.84 both). What this small network has learnt is, to a large part, the mean and the covariance of the ones and of the eights.
# - The **equivariant** theory is as close or closer at small $t$ (0.93 and 0.90), where the pixels around tell enough. At $t = 0.4$ it is worse than no theory at all ($-0.89$): much noise hides the neighbours, and the network, unlike the theory, knows where in the image it is.
# - No theory reaches 1. What is left is the network's own.
#
# The bars are 95 % intervals over the 20 images. They do not say what another training would give.
#
# ## What to try
#
# - Compare on images that the network *has* seen: put `points[::40]` in place of `unseen`.
# - Train longer in a copy of the folder (`python -m experiments.train_lsun --resume COPY --steps 20000`) and see whether the exact score gains: that is memorisation, and `docs/memorisation.md` tells how to see it early.
# - `python -m experiments.cloning` and `python -m experiments.theories` do all of this with more images, more times and a report. `docs/theories.md` has the theories' formulas.
