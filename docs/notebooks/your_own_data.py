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
# # The regimes of your own data
#
# A diffusion model makes an image out of noise, step by step. On its way it makes two decisions: which *class* of image it makes (*speciation*, at time $t_S$); and, if it has learnt its training set by heart, which *training image* it returns (*collapse*, at time $t_C$). Both times are properties of the data. They can be measured before any network is trained.
#
# Here the data are small digits that come with scikit-learn. For images of your own you change one line.
#
# ## A folder of images
#
# The library reads a folder with one subfolder for each class. We write such a folder: ones and eights of 8 x 8 pixels. For your own data leave this cell out, and set `folder` to the path of yours.

# %%
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name) / "digits"
digits = load_digits()
for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
    if digit in (1, 8):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        grey = np.rint(pixels * 255 / 16).astype(np.uint8)
        Image.fromarray(grey).save(folder / str(digit) / f"{number}.png")

# %%
import matplotlib.pyplot as plt

import diffusion_jax as dj

data = dj.load_images(folder)
print(data.images.shape, data.images.dtype, data.class_names)

figure, axes = plt.subplots(2, 10, figsize=(6, 1.4), layout="constrained")
for label, row in enumerate(axes):
    for axis, image in zip(row, data.images[data.labels == label], strict=False):
        axis.imshow(image[..., 0], cmap="gray")
        axis.axis("off")

# %% [markdown]
# `dj.load_images` also reads a table of file names and labels, Parquet files, an `.npy` or an `.npz`; `image_size=32` resizes, and `flat=True` takes all images as one class. Arrays that you have in memory need no folder at all: `dj.analyse(images, labels)`.
#
# ## One call
#
# Let $a$ be an image of the set, its pixels from 0 to 1, and $z$ standard normal noise. The noisy image at time $t$ is $x_t = e^{-t} a + \sqrt{1 - e^{-2t}}\, z$: the image at $t = 0$, pure noise at large $t$. `dj.analyse` asks what one can still tell from $x_t$. `accuracy` is the standard error that you allow; half of it takes four times as long.

# %%
study = dj.analyse(data, accuracy=1e-2, name="ones and eights")
print(study)

# %% [markdown]
# ## To read the table
#
# Each line is a time, or a number from which one follows, with a 95 % interval. The last columns count only the images of one class.
#
# - **Lambda** is the largest variance that the images have along any direction. The theory of two clouds (the notebook *The Gaussian mixture by hand*) says that the class is decided at $t_S = \frac12\log\Lambda$. Here $\Lambda < 1$, the logarithm is negative, and there is no such time. A warning above the table says so.
# - **t_S_phi** needs no theory. Take $x_t$, and draw twice an image that it may have come from: $\phi(t)$ is the probability that both are of one class. It is 1 at small $t$. At large $t$ it falls to its *floor*, one half for two classes of equal size. `t_S_phi` is the time at which $\phi$ lies 55 % of the way above the floor, as it does for two clouds at their $t_S$. **This is the speciation time to trust.**
# - **t_S_rate** is where $x_t$ loses what it knows of its class fastest.
# - **t_C_phi** is the same for single images: $\phi_C(t)$ is the probability that both draws are the *same image*, and `t_C_phi` is where it is one half. The other t_C are other definitions, and they differ by more than their intervals. Name the definition whenever you give the number.
#
# The second table says what $x_t$ knows at these times: $I(c; x_t)$ of its class $c$, $I(a; x_t)$ of its image $a$, both in nats. The *effective points* are how many images $x_t$ may have come from.
#
# ## The three regimes

# %%
study.plot()

# %% [markdown]
# Read it from the right, as the model runs. Right of $t_S$ both classes are possible. Between $t_S$ and $t_C$ the class is decided and the image is not: this is where new images are made. Left of $t_C$ only one training image is left; a model that follows the exact score ends there, in a copy. A good model leaves the exact score before.
#
# ## The figures, one by one
#
# `study.save(FOLDER)` writes all figures, `result.json` with every number, and `report.html`, one page with everything.

# %%
from IPython.display import Image as Shown

paths = {path.stem: path for path in study.save(Path(temporary.name) / "regimes")}
print(", ".join(paths))

# %%
Shown(paths["spectrum"].read_bytes(), width=600)

# %% [markdown]
# The *spectrum*: along how many directions the images vary, and by how much. Each direction drowns in the noise at a time of its own. The pictures below are the first directions. Is the first one the difference of your classes? Then $\frac12\log\Lambda$ may be close to `t_S_phi`. Is it something else, such as brightness or position? Then it is not.

# %%
Shown(paths["speciation"].read_bytes(), width=600)

# %% [markdown]
# *Speciation*: $\phi(t)$ of all images, and of each class. The horizontal line is the level that defines `t_S_phi`. Where the curves of two classes differ much, one class is decided earlier than the other.

# %%
Shown(paths["collapse"].read_bytes(), width=600)

# %% [markdown]
# *Collapse*: above, what is left open about the image (1 where nothing is known, 0 where only one image is possible) and $\phi_C$; below, the effective number of images.

# %%
Shown(paths["samples"].read_bytes(), width=600)

# %% [markdown]
# *Samples*: images with the noise of the named times. Look at them: at $t_S$ an ideal observer could guess the class and no more; the eye often cannot.
#
# ## Fewer images, mirrored images
#
# Two questions about your data come up again and again. Do I have enough images? And may I add their mirror images? Ask both by measuring again. First with every second image, then with the law made symmetric under left for right (`"dihedral"` and `"translations"` are there too). No copy is stored for that.

# %%
half = dj.analyse(data.images[::2], np.array(data.class_names)[data.labels[::2]], accuracy=1e-2)
mirrored = dj.analyse(data, accuracy=1e-2, symmetry="flip")
for name, each in (("all images", study), ("every second", half), ("with mirror", mirrored)):
    t_S, t_C = each.times["t_S_phi"], each.times["t_C_phi"]
    print(
        f"{name:13} t_S_phi {t_S.value:.3f} [{t_S.low:.3f}, {t_S.high:.3f}]"
        f"   t_C_phi {t_C.value:.3f} [{t_C.low:.3f}, {t_C.high:.3f}]"
    )

# %% [markdown]
# - **The number of images** does not move $t_S$ as long as $t_C$ is well below it: 0.237 and 0.232, well within the intervals. It moves $t_C$, from 0.096 to 0.077 with twice as many: the more images, the longer a model makes something new before it must choose one of them.
# - **The mirror images** act on $t_C$ as more images do (0.070). They also move $t_S$ down, to 0.216: a mirrored one or eight is not quite a one or an eight, so each class has become broader. Add mirror images where a mirrored image could have been in your data, and not otherwise.
#
# ## What the warnings mean
#
# - *The classes differ in size*: $\phi$ then has another floor than one over the number of classes. The level of `t_S_phi` takes that into account, so this is for your information.
# - *Lambda is at most 1*: there is no $\frac12\log\Lambda$. That is common for small or dark images. Use `t_S_phi`.
# - *Lambda is too large by more than its interval*: no direction stands out, or the images are too few. Use `t_S_phi`.
# - *t_S_phi lies at or below t_C_phi*: it then tells single images apart and not classes. More images would help.
# - *No labels*: without classes there is no $\phi$, and no `t_S_phi`; the collapse needs none.
# - *Images that occur more than once*: two copies count as two images, and $\phi_C$ cannot reach 1 for them. Remove copies first.
#
# ## What to change for your own data
#
# - Start with a few hundred images of each class and `accuracy=1e-2`. Ask for more digits once you know what you look for.
# - Images of different sizes need `image_size`. The times belong to that size: in larger images the noise of more pixels averages out, and the times are larger.
# - From a terminal the same is `python -m experiments.regimes --data FOLDER`; with `--symmetry flip` it is the last measurement.
# - `docs/regimes.md` has the definitions, and how well each one finds the times where they are known.

# %%
temporary.cleanup()
