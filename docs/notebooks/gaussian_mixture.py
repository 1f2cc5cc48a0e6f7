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
# # The Gaussian mixture by hand
#
# A diffusion model makes an image out of noise, step by step. When does it decide *which kind* of image it makes? This notebook answers for the simplest data that have two kinds: two round clouds of points. Everything is known in closed form there, so nothing is trained, and NumPy is enough. At the end the same experiment is one call of the library.
#
# You need no more than the normal distribution and a little NumPy.

# %%
import matplotlib.pyplot as plt
import numpy as np

rng = np.random.default_rng(0)

# %% [markdown]
# ## The data: two clouds
#
# A data point $a$ has $d$ numbers. With probability one half it is drawn around a centre $+m$, otherwise around $-m$, each time with normal noise of variance 1 along every axis. All entries of $m$ are 1, so the squared length of $m$ is $d\mu^2$ with $\mu = 1$. The two clouds are the two *classes*.
#
# In $d$ dimensions we cannot draw the clouds. We look at one number, the *projection* on the centre:
#
# $$q = \frac{m \cdot x}{\sqrt{d}}$$

# %%
d, mu = 64, 1.0
m = np.full(d, mu)


def project(x):
    return x @ m / np.sqrt(d)


classes = rng.choice([-1, 1], 4000)
a = classes[:, None] * m + rng.standard_normal((4000, d))
q = project(a)
print(f"class +: mean of q {q[classes > 0].mean():.2f}, deviation {q[classes > 0].std():.2f}")
print(f"class -: mean of q {q[classes < 0].mean():.2f}, deviation {q[classes < 0].std():.2f}")

# %% [markdown]
# The centres lie at $q = \pm\sqrt{d}\,\mu^2 = \pm 8$, eight deviations from zero: nobody can mistake one class for the other.
#
# ## Forward: data become noise
#
# The forward process shrinks a data point and adds noise. At *time* $t$ it is
#
# $$x_t = e^{-t} a + \sqrt{\Delta_t}\, z, \qquad \Delta_t = 1 - e^{-2t},$$
#
# where $z$ is standard normal noise. At $t = 0$ this is the data point. For large $t$ it is pure noise.

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.2), sharey=True, layout="constrained")
for axis, t in zip(axes, (0.0, 1.0, 2.0, 4.0), strict=True):
    x_t = np.exp(-t) * a + np.sqrt(-np.expm1(-2 * t)) * rng.standard_normal(a.shape)
    axis.hist(project(x_t), bins=np.linspace(-12, 12, 49), density=True)
    axis.set(title=f"$t = {t:g}$", xlabel="$q$", yticks=[])

# %% [markdown]
# Two peaks become one. Somewhere between $t = 1$ and $t = 4$ the noisy point stops telling which class it came from. We want to know where, and we want to know it *for the way back*.
#
# ## The score
#
# To go back one needs the *score*: the direction in which the density $P_t$ of the noisy points rises fastest, $\nabla \log P_t(x)$. Here $P_t$ is again two clouds, around $\pm e^{-t} m$. Each has variance $\Gamma_t = \Delta_t + e^{-2t} = 1$ along every axis, whatever $t$ is. So
#
# $$\log P_t(x) = -\frac{|x|^2}{2} + \log\cosh(e^{-t}\, m\cdot x) + \text{const}, \qquad \nabla \log P_t(x) = e^{-t} m \tanh(e^{-t}\, m\cdot x) - x.$$
#
# The first term pulls towards the centre of the class that $x$ seems to belong to. We check the formula against differences of $\log P_t$.


# %%
def score(x, t):
    return np.exp(-t) * np.tanh(np.exp(-t) * (x @ m))[..., None] * m - x


def log_density(x, t):
    y = np.exp(-t) * (x @ m)
    return -np.sum(x * x, axis=-1) / 2 + np.logaddexp(y, -y)


x, t, h = rng.standard_normal(d), 2.0, 1e-5
slopes = [(log_density(x + h * e, t) - log_density(x - h * e, t)) / (2 * h) for e in np.eye(d)]
error = np.abs(score(x, t) - slopes).max()
print(f"largest difference between score and slope: {error:.0e}")

# %% [markdown]
# ## The potential: one valley or two
#
# Run backwards, with $\tau$ growing as $t$ falls, the process is
#
# $$dx = \left(x + 2\,\nabla\log P_t(x)\right) d\tau + \sqrt{2}\, dW,$$
#
# where $dW$ is fresh noise. Multiply by $m/\sqrt{d}$, and only $q$ is left: it moves like a particle in a *potential* $V$, always downhill, and kicked by noise.
#
# $$dq = -V'(q, t)\, d\tau + \sqrt{2}\,\mu\, dW, \qquad V(q, t) = \frac{q^2}{2} - 2\mu^2 \log\cosh(\sqrt{d}\, e^{-t} q)$$


# %%
def potential(q, t):
    y = np.sqrt(d) * np.exp(-t) * q
    return q * q / 2 - 2 * mu**2 * (np.logaddexp(y, -y) - np.log(2))


t_S = 0.5 * np.log(d * mu**2)
t_wells = 0.5 * np.log(2 * d * mu**2)
print(f"speciation time t_S = 1/2 log(d mu^2) = {t_S:.3f}")
print(f"second valley opens at 1/2 log(2 d mu^2) = {t_wells:.3f}")

grid = np.linspace(-6, 6, 241)
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
for t, label in (
    (4.0, "$t = 4$"),
    (t_wells, "$t = 2.43$"),
    (t_S, "$t = t_S = 2.08$"),
    (1.7, "$t = 1.7$"),
):
    axis.plot(grid, potential(grid, t), label=label)
axis.set(xlabel="projection $q$", ylabel="potential $V(q, t)$", ylim=(-5, 10))
axis.legend()
plt.show()
# %% [markdown]
# At large $t$ there is one valley, and all particles sit in it. At $t = 2.43$ its floor is flat. After that, that is for smaller $t$, there are two valleys, and a hill between them that grows. A particle that has rolled into one of them stays.
#
# The time at which the choice is made is called the *speciation time* $t_S$. For this mixture it is $\frac12 \log(d\mu^2) = 2.079$: there the two centres $\pm e^{-t} m$ lie just one standard deviation from the origin. It is a little later on the way back than the opening of the second valley: the hill must first become higher than the kicks.
#
# ## Backward, by hand
#
# One step of the backward process takes three lines. We start from pure noise at $t = 5$ and take 250 steps of $0.02$.


# %%
dt, num_steps = 0.02, 250


def run(x, steps, until=0):
    """Takes x, with so many steps to go, down to `until` steps to go."""
    for left in range(steps, until, -1):
        drift = x + 2 * score(x, left * dt)
        x = x + drift * dt + np.sqrt(2 * dt) * rng.standard_normal(x.shape)
    return x


x, path = rng.standard_normal((1000, d)), []
for left in range(num_steps, 0, -1):
    path.append(project(x))
    x = run(x, left, left - 1)
path = np.array([*path, project(x)])
up = path[-1] > 0
print(f"{up.mean():.3f} of 1000 samples end in the class +")
print(f"there, q has mean {path[-1, up].mean():.2f} and deviation {path[-1, up].std():.2f}")

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
times = dt * np.arange(num_steps, -1, -1)
for one in path.T[:30]:
    axis.plot(times, one, color="C1" if one[-1] > 0 else "C0", linewidth=0.7)
axis.axvline(t_S, color="black", linestyle="--", label="$t_S$")
axis.set(xlabel="time $t$ (the process runs to the right)", ylabel="$q$", xlim=(5, 0))
axis.legend()
plt.show()
# %% [markdown]
# Thirty paths, coloured by where they end. Left of the dashed line the colours are mixed. Right of it they part. The samples are as they should be: about half in each class, around $q = 8$ with deviation 1, up to the error of the finite step.
#
# ## Clones: a choice that one can measure
#
# *When* is the choice made? Stop a path at time $t$, make a *clone* of it, and let both go on with noise of their own. If they always end in the same class, the choice had been made before $t$. If they agree half of the time, it had not. So we measure
#
# $$\phi(t) = \text{probability that two clones forked at time } t \text{ end in the same class.}$$

# %%
forks = np.array([20, 50, 70, 85, 95, 105, 115, 125, 140, 160, 190, 225])  # steps still to go
pairs = 1000
phi = []
for left in forks:
    trunk = run(rng.standard_normal((pairs, d)), num_steps, left)
    one, other = (project(run(trunk, left)) for _ in range(2))
    phi.append(np.mean((one > 0) == (other > 0)))
phi = np.array(phi)

# %% [markdown]
# Theory has a formula. Given $x_t$, the class is $+$ with probability $p = (1 + \tanh y)/2$, $y = e^{-t}\, m\cdot x_t$. Two clones agree with probability $p^2 + (1-p)^2 = (1 + \tanh^2 y)/2$. Over all $x_t$ of one class $y$ is normal, with mean and variance both equal to $s = d\mu^2 e^{-2t}$. So
#
# $$\phi(t) = \frac12\left(1 + \mathbb{E} \tanh^2(s + \sqrt{s}\, z)\right).$$


# %%
nodes = np.linspace(-10, 10, 2001)
weights = np.exp(-(nodes**2) / 2)
weights /= weights.sum()


def phi_theory(t):
    s = d * mu**2 * np.exp(-2 * np.asarray(t, float))[..., None]
    return 0.5 * (1 + np.tanh(s + np.sqrt(s) * nodes) ** 2 @ weights)


expected = phi_theory(forks * dt)
deviation = np.sqrt(expected * (1 - expected) / pairs)
print("   t   clones  theory")
for row in zip(forks * dt, phi, expected, strict=True):
    print("{:.2f}   {:.3f}   {:.3f}".format(*row))
print(f"theory at t_S: {phi_theory(t_S):.4f}")
within = np.abs(phi - expected) < 4 * np.maximum(deviation, 1 / pairs)
print(f"within 4 standard errors: {within.sum()} of {len(forks)}")

# %%
curve = np.linspace(0.1, 5, 200)
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
axis.plot(curve, phi_theory(curve), label="theory")
axis.errorbar(forks * dt, phi, 2 * deviation, fmt="o", markersize=4, label="clones, by hand")
axis.axvline(t_S, color="black", linestyle="--", label="$t_S$")
axis.axhline(phi_theory(t_S), color="grey", linewidth=0.7)
axis.set(xlabel="time of the fork $t$", ylabel=r"$\phi(t)$", ylim=(0.45, 1.02))
axis.legend()
plt.show()
# %% [markdown]
# The points lie on the curve. At $t_S$ the formula gives $\phi = 0.7752$ for every $d$, since there $s = 1$: about half way between the certainty of small $t$ and the coin toss of large $t$. That number is how this project finds $t_S$ in data for which no formula is known: it is the `t_S_phi` of the next notebook.
#
# ## The same with the library
#
# The library has the score as a *denoiser*, a function that predicts the noise in $x_t$, the steps of a noise schedule in place of $0.02$, and `dj.fork`, which forks a whole batch at many times. The same call forks a trained network.

# %%
import jax
import jax.numpy as jnp

import diffusion_jax as dj
from diffusion_jax.regimes.gaussian_mixture import GaussianMixture

schedule = dj.linear_schedule(1000)
denoiser = dj.GaussianMixtureDenoiser(schedule, jnp.asarray(m, jnp.float32), jnp.float32(1.0))
asked = np.array([4.0, 3.0, 2.5, 2.0, 1.5, 1.0])
steps = 1 + np.rint(schedule.step_of_time(asked)).astype(int)  # steps still to go, descending
found = dj.fork(
    dj.AncestralSampler(schedule), denoiser, jax.random.key(0), steps.tolist(), (d,), 0, pairs
)
one, other = (project(ends) > 0 for ends in found.pairs())
phi_library = (one == other).mean(axis=0)
times = np.asarray(schedule.time)[steps - 1]
mixture = GaussianMixture(dimension=d, mu=mu, sigma=1.0)
print("   t   clones  theory")
for row in zip(times, phi_library, mixture.phi(times), strict=True):
    print("{:.2f}   {:.3f}   {:.3f}".format(*row))
print(f"t_S of the library: {mixture.speciation_time:.3f}")

# %% [markdown]
# ## What to try
#
# - Set `d = 16` or `d = 256` above and run all cells: $t_S$ moves by $\frac12\log 4 = 0.69$, and the curve keeps its shape.
# - Make the clouds narrower. With a standard deviation $\sigma$ in place of 1, $\Gamma_t = \Delta_t + \sigma^2 e^{-2t}$, and $t_S = \frac12 \log(d\mu^2 + 1 - \sigma^2)$: `GaussianMixture` knows it.
# - Real data have no formula. `docs/regimes.md` has the definitions for them, and the notebook *The regimes of your own data* measures them.
