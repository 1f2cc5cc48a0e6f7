"""When the classes of data with only their first two moments speciate.

The data are replaced by a mixture of Gaussians, one per class, with the mean, the covariance and
the weight of each. What phi and H(c | x_t) of the mixture share with those of the data follows from
two moments; what they do not share, from higher ones.

Draw c with probability pi_c, a = m_c + sqrt(C_c) w, and x_t = e^-t a + sqrt(Delta) z; the same
(c, w, z) serve every time. A class's log density needs the components of x_t - e^-t m_c' along the
class's modes and the squared norm of the rest. At every time these are made of the components of
a - m_c' and of z, and of three inner products: a time costs k numbers per draw and class, not k d.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers import GaussianClassesDenoiser
from diffusion_jax.denoisers.low_rank import LowRankGaussian
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import average
from diffusion_jax.regimes.measures import SPECIATION_LEVEL
from diffusion_jax.regimes.transitions import TIMES, Regimes
from diffusion_jax.runtime.devices import few_sizes, fold_in_each, in_batches, replicate, shard

_BATCH_BYTES = 2**26
_LEAST_DRAWS = 100


@jax.jit
def _draw(
    classes: tuple[LowRankGaussian, Array], label: Array, keys: Array, levels: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Sum of p(c | x_t)^2 and H(c | x_t), each (draws, T), of draws from one class.

    Args:
      classes: the laws, and log pi_c (C,).
      label: the class.
      keys: one per draw.
      levels: e^-t and Delta, each (T,).
    """
    own: LowRankGaussian = jax.tree.map(lambda leaf: leaf[label], classes[0])
    shape = (2, own.mean.shape[0])
    noise = jax.vmap(lambda key: jax.random.normal(key, shape, own.mean.dtype))(keys)
    a, z = own.mean[None] + own.filtered(noise[:, 0], jnp.sqrt), noise[:, 1]

    def of_class(each: tuple[LowRankGaussian, Array]) -> Array:
        law, log_weight = each
        (data, data_left), (noise, noise_left) = law.split(a - law.mean[None]), law.split(z)
        inner = partial(jnp.einsum, "bd,bd->b", precision="highest")
        squares = inner(data_left, data_left), inner(noise_left, noise_left)
        cross = inner(data_left, noise_left)

        def at(level: tuple[Array, Array]) -> Array:
            signal, variance = level[0][None], level[1][None]
            sigma = jnp.sqrt(variance)
            squared = signal**2 * squares[0] + 2 * signal * sigma * cross + variance * squares[1]
            along = signal[:, None] * data + sigma[:, None] * noise
            excess = squared - law.across(signal, variance)
            return log_weight + law.log_density(along, excess, signal, variance)

        return jax.lax.map(at, levels)

    log_p = jax.nn.log_softmax(jax.lax.map(of_class, classes), axis=0)
    p = jnp.exp(log_p)
    return jnp.sum(p * p, axis=0).T, -jnp.sum(p * log_p, axis=0).T


def two_moments(
    denoiser: GaussianClassesDenoiser,
    key: Array,
    times: np.ndarray = TIMES,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Regimes:
    """The curves phi and H(c | x_t) of a mixture of Gaussians under its exact score, and its t_S.

    phi(t) = E sum_c p(c | x_t)^2,   H(c | x_t) = -E sum_c p(c | x_t) log p(c | x_t)

    Class c gets its share pi_c of the draws, rounded. Draw i depends on `key`, i, its class and the
    mixture, not on the number of devices. Computed in float32.

    Args:
      denoiser: the mixture, fitted to data with their classes; its schedule is not used.
      key: typed PRNG key.
      times: increasing Ornstein-Uhlenbeck times (T,), positive.
      num_draws: number N of draws; the standard error of phi is at most 1/4 sqrt(1/N) or so for
        two classes, 0.0025 at 10 000.
      seed: of the bootstrap.

    Returns:
      The curves "phi" and "class_entropy" (in nats), and the time "t_S_phi", where phi falls to
      floor + (1 - floor) SPECIATION_LEVEL, floor = sum_c pi_c^2: as `transitions.measure` and
      `summarize` name those of the data.

    Raises:
      UserError: a single class; times that are not positive, finite and increasing; fewer than 100
        draws.
    """
    weights = np.asarray(denoiser.weights, np.float64)
    times = np.asarray(times, np.float64)
    if len(weights) < 2:
        raise UserError("the moments of one class say nothing of speciation: give two classes")
    rises = times.ndim == 1 and len(times) > 0 and np.all(np.diff(times, prepend=0) > 0)
    if not (rises and times[-1] < np.inf):
        raise UserError("times must be positive and finite, and increase")
    if num_draws < _LEAST_DRAWS:
        raise UserError(f"num_draws = {num_draws} must be at least {_LEAST_DRAWS}")
    ends = np.rint(np.cumsum(weights) / weights.sum() * num_draws).astype(np.int64)
    d, rank = denoiser.laws.mean.shape[1], denoiser.modes.shape[1]
    per_draw = 4 * (8 * d + 4 * rank + 3 * len(weights) * len(times))
    most = max(1, _BATCH_BYTES // per_draw)
    levels = np.float32(np.exp(-times)), np.float32(-np.expm1(-2 * times))
    classes = denoiser.laws.astype(jnp.float32), np.float32(np.log(weights))
    constants = replicate((classes, levels))

    def of_class(label: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        def batch(numbers: np.ndarray) -> tuple[Array, Array]:
            keys = shard(fold_in_each(key, first + numbers))
            return _draw(constants[0], replicate(np.int32(label)), keys, constants[1])

        return in_batches(batch, count, few_sizes(count, most))

    firsts = np.concatenate([[0], ends[:-1]])
    tables = [
        of_class(label, int(first), int(end - first))
        for label, (first, end) in enumerate(zip(firsts, ends, strict=True))
        if end > first
    ]
    same, entropy = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    phi, class_entropy = average(times, (same, entropy), seed)
    floor = float(np.sum(weights**2))
    level = floor + (1 - floor) * SPECIATION_LEVEL
    return Regimes(
        {"phi": phi, "class_entropy": class_entropy},
        {"t_S_phi": phi.crossing(level)},
        {"t_S_phi": ("phi", level)},
        floor,
        np.full(len(times), len(same)),
    )
