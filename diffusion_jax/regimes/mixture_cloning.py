"""Cloning experiments under the exact score of a Gaussian mixture, in d dimensions or in one.

Two clones forked at time t of the backward process end in the same class with probability phi(t).
The score of two Gaussians pulls along m alone: the component m.x/|m| closes on itself and follows
the backward process of the mixture N(+-|m|, sigma^2) in one dimension. The experiment in d
dimensions is therefore exactly one in one dimension (`clone` with a centre of one component).
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import norm

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.cloning import Cloning

FOUR_SIGMA = 2 * float(norm.sf(4))  # the two-sided level of "within 4 standard errors"


def backward_step(
    x: Array, noise: Array, signal: Array, gamma: Array, eta: Array, centre: Array
) -> Array:
    """One Euler-Maruyama step of the backward Ornstein-Uhlenbeck process of N(+-m, sigma^2 I).

    x <- x + eta (x + 2 score(x, t)) + sqrt(2 eta) z        (Biroli et al. 2024)
    score = m e^-t/Gamma tanh(e^-t m.x/Gamma) - x/Gamma

    Args:
      x: states at time t, (..., d).
      noise: standard normal z, the shape of x.
      signal: e^-t, a scalar.
      gamma: Gamma_t = 1 - e^-2t + sigma^2 e^-2t, a scalar.
      eta: the step in Ornstein-Uhlenbeck time, a scalar.
      centre: m, (d,).

    Returns:
      States at time t - eta, the shape of x.
    """
    centre = jnp.expand_dims(centre, range(x.ndim - 1))
    overlap = jnp.sum(x * centre, axis=-1, keepdims=True)
    score = (centre * (signal * jnp.tanh(signal * overlap / gamma)) - x) / gamma
    return x + eta * (x + 2 * score) + jnp.sqrt(2 * eta) * noise


@partial(jax.jit, static_argnames="pairs")
def _clone(
    key: Array, centre: Array, signal: Array, gamma: Array, eta: Array, forks: Array, pairs: int
) -> Array:
    """Number of pairs that end in the same class, for each fork; see `clone`."""
    rows = len(forks) + 1
    start, run = jax.random.split(key)
    first = jax.random.normal(start, (1, pairs, len(centre)), centre.dtype)

    def body(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        step, signal, gamma = inputs
        z = jax.random.normal(jax.random.fold_in(run, step), x.shape, x.dtype)
        # A row that has not forked yet moves with the trunk, which is the last row.
        forked = jnp.append(step >= forks, True)[:, None, None]
        z = jnp.where(forked, z, z[-1:])
        return backward_step(x, z, signal, gamma, eta, centre), None

    x = jnp.tile(first, (rows, 1, 1))
    x, _ = jax.lax.scan(body, x, (jnp.arange(len(signal)), signal, gamma))
    side = jnp.sum(x * centre[None, None], axis=-1) > 0
    return jnp.sum(side[:-1] == side[-1:], axis=1)


def clone(
    key: Array,
    centre: np.ndarray,
    sigma: float,
    times: Sequence[float] | np.ndarray,
    pairs: int = 10_000,
    end: float = 10.0,
    num_steps: int = 1000,
) -> Cloning:
    """Forks clones at many times of the backward process, all in one pass.

    One trunk per pair runs from N(0, I) at time `end` to 0. For each branch time one clone follows
    the trunk until then and has its own noise afterwards; the trunk itself is the other clone.
    Given the state at the fork the two are independent, as the experiment asks; phi at different
    times is correlated, since the trunk is shared.

    Args:
      key: typed PRNG key.
      centre: m, (d,). For the class alone, (|m|,) gives the same law at the cost of d = 1.
      sigma: standard deviation of each Gaussian.
      times: branch times in [0, end], rounded to the grid of the steps.
      pairs: pairs for each branch time; the default, `end` and `num_steps` are the values of Biroli
        et al. (2024).
      end: Ornstein-Uhlenbeck time at which the process starts.
      num_steps: steps of size end/num_steps.

    Raises:
      UserError: a branch time outside [0, end], sigma not positive, or fewer than one pair or step.
    """
    asked = np.asarray(times, np.float64).ravel()
    if not np.all((asked >= 0) & (asked <= end)):
        raise UserError(f"branch times must lie in [0, {end:g}], not {asked.tolist()}")
    if not sigma > 0 or pairs < 1 or num_steps < 1:
        raise UserError(
            f"cloning needs a positive sigma and at least one pair and one step, not {sigma}, "
            f"{pairs} and {num_steps}"
        )
    eta = end / num_steps
    forks = np.rint((end - asked) / eta).astype(np.int32)
    t = end - eta * np.arange(num_steps)
    gamma = -np.expm1(-2 * t) + sigma**2 * np.exp(-2 * t)
    dtype = jnp.result_type(float)
    floats = (jnp.asarray(a, dtype) for a in (centre, np.exp(-t), gamma, eta))
    same = _clone(key, *floats, jnp.asarray(forks), pairs=pairs)
    return Cloning(end - eta * forks, np.asarray(same), pairs)
