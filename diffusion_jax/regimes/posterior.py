"""The posterior engine: the exact score's speciation and collapse from one pass over the data.

Draw mu uniformly among the n training points and x_t = e^-t a_mu + sqrt(Delta_t) z. The posterior
over the training points is

    p(nu | x_t) = softmax_nu(logit_nu),
    logit_nu = -(r^2/2) |a_mu - a_nu|^2 - r z.(a_mu - a_nu),    r = 1/sqrt(e^2t - 1),

which is -(|x_t - e^-t a_nu|^2 - |x_t - e^-t a_mu|^2)/(2 Delta_t). The same (mu, z) serves every
time: two matrix products give |a_mu - a_nu|^2 and z.(a_mu - a_nu), and a time costs one pass over n
numbers per draw. What two clones of a forked trajectory do then needs no trajectory: they end in
independent draws from p(. | x_t), so that

    phi_C(t) = E sum_nu p(nu | x_t)^2        (same training point)
    phi(t)   = E sum_c p(c | x_t)^2          (same class)
    f^e(t)   = E H(p(. | x_t))/d             (the excess entropy)

The last holds because P_t^e(x_t) = (1/n) (2 pi Delta_t)^(-d/2) e^(-|z|^2/2)/p(mu | x_t). The
average of log P_t^e that Biroli et al. (2024) take is thus that of -log p(mu | x_t), whose mean
given x_t is the posterior's entropy, and of |z|^2/2, which fluctuates and says nothing.

With a group of symmetries the training points are the orbit {g a_nu}, see `orbit`. Its law is
invariant, so that mu is drawn among the a_nu themselves; points that coincide because a map leaves
a_nu as it is are one point.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.errors import UserError
from diffusion_jax.regimes.training_set import TrainingSet, training_set
from diffusion_jax.runtime.devices import fold_in_each, in_batches, replicate, shard
from diffusion_jax.symmetry import Group

# Stands for the squared distance of a point left out: its weight underflows to zero at every time
# in this range, yet no product with it is infinite, which zero times would make NaN.
_LEFT_OUT = 1e30
_TIME_RANGE = (1e-6, 30.0)
# Neighbours whose differences are formed explicitly. |a|^2 + |b|^2 - 2 a.b has lost all digits
# where a and b nearly agree, and those are the points that matter at small t.
_NEIGHBOURS = 8


class _Chunk(NamedTuple):
    """What is computed at a time on one device.

    Attributes:
      bytes: that the arrays of the draws may take.
      draws: at most.
      logits: bytes that the logits of several times may take; at least one time is computed.
    """

    bytes: int
    draws: int
    logits: int


# The CPU's caches hold so much; a GPU wants to be filled.
_ON_CPU = _Chunk(bytes=2**25, draws=256, logits=0)
_ELSEWHERE = _Chunk(bytes=2**29, draws=4096, logits=2**30)


@dataclass(frozen=True)
class Draws:
    """What the posterior of each draw says at each time; N draws, T times, C classes.

    NaN marks the times at which a draw was not taken (see `transitions.measure`).

    Attributes:
      times: Ornstein-Uhlenbeck times (T,).
      index: the training point mu of each draw (N,).
      labels: its class (N,).
      entropy: H(p(. | x_t)) in nats (N, T).
      collision: sum_nu p(nu | x_t)^2 (N, T).
      log_own: log p(mu | x_t) (N, T).
      largest: max_nu p(nu | x_t) (N, T).
      log_evidence: log sum_{nu in c, nu != mu} e^logit_nu, (N, T, C): the evidence of each class
        with the source point left out; -inf where that leaves none.
      squared: E[|a_mu - a_nu|^2 | x_t, nu in c], (N, T, C): over the posterior of each class alone,
        the source among the points of its own.
    """

    times: np.ndarray
    index: np.ndarray
    labels: np.ndarray
    entropy: np.ndarray
    collision: np.ndarray
    log_own: np.ndarray
    largest: np.ndarray
    log_evidence: np.ndarray
    squared: np.ndarray

    @property
    def log_others(self) -> np.ndarray:
        """log((1 - p(mu | x_t))/p(mu | x_t)), (N, T): the leave-one-out excess entropy times d."""
        with np.errstate(invalid="ignore"):  # NaN marks what was not drawn
            return np.logaddexp.reduce(self.log_evidence, axis=2)

    @property
    def log_weight(self) -> np.ndarray:
        """The logarithm of sum_{nu in c} e^logit_nu, the source included, whose logit is 0."""
        own = np.arange(self.log_evidence.shape[2]) == self.labels[:, None]
        source = np.where(own, 0, -np.inf).astype(self.log_evidence.dtype)
        with np.errstate(invalid="ignore"):
            return np.logaddexp(self.log_evidence, source[:, None, :])

    @property
    def class_probability(self) -> np.ndarray:
        """p(c | x_t), (N, T, C): the weights of a class's points summed, the source included."""
        evidence = self.log_weight
        evidence -= evidence.max(2, keepdims=True)
        weight = np.exp(evidence)
        return weight / weight.sum(2, keepdims=True)


def _differences(
    training: TrainingSet, source: Array, noise: Array, maps: int
) -> tuple[Array, Array]:
    """|a_mu - a_nu|^2 and z.(a_mu - a_nu), (draws, n), of sources mu (draws,), z (draws, d).

    With a symmetry (draws, n |G|), a_nu in the place of which stands g a_nu; so many `maps` of the
    draws are made at once.
    """
    points, norms, orbit = training.points, training.squared_norms, training.orbit
    product = partial(jnp.matmul, precision="highest")
    chosen, own = points[source], source * training.maps
    if orbit is None:
        inner, projected = product(chosen, points.T), product(noise, points.T)
    else:
        inner, projected = (orbit.products(x, points, maps) for x in (chosen, noise))
    squared = norms[source][:, None] + jnp.repeat(norms, training.maps)[None, :] - 2 * inner
    overlap = jnp.take_along_axis(projected, own[:, None], 1) - projected
    nearness = -squared
    if orbit is not None and orbit.log_prior is not None:
        nearness += jnp.minimum(orbit.log_prior, 0)[None]  # copies are nobody's neighbours
    # The nearest are formed again from their differences, one neighbour at a time.
    _, nearest = jax.lax.top_k(nearness, min(_NEIGHBOURS + 1, nearness.shape[1]))
    rows = jnp.arange(len(source))

    def refine(i: Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
        neighbour = nearest[:, i]
        difference = chosen - (points[neighbour] if orbit is None else orbit.at(neighbour, points))
        place = (rows, neighbour)
        return (
            both[0].at[place].set(jnp.sum(difference * difference, axis=1)),
            both[1].at[place].set(jnp.sum(noise * difference, axis=1)),
        )

    squared, overlap = jax.lax.fori_loop(0, nearest.shape[1], refine, (squared, overlap))
    return jnp.maximum(squared, 0).at[rows, own].set(_LEFT_OUT), overlap


def _statistics(
    logits: Array, squared: Array, own: Array, alone: Array, offsets: tuple[int, ...]
) -> tuple[Array, ...]:
    """What `Draws` has of one time, from its entropy on: (draws,) or (draws, classes).

    Args:
      logits: (draws, n), with the source point weighing nothing: its logit, 0, is added here.
      squared: |a_mu - a_nu|^2 (draws, n).
      own: whether the source point is of the class (draws, classes).
      alone: whether leaving it out leaves the class empty (draws, classes).
      offsets: where each class begins, and n at the end.
    """
    top, sums = [], []
    for start, stop in pairwise(offsets):
        part = logits[:, start:stop]
        top.append(jnp.max(part, axis=1))
        # Without the barrier XLA takes the exponentials once for each sum.
        weight = jax.lax.optimization_barrier(jnp.exp(part - top[-1][:, None]))
        weighted = (weight, weight * part, weight * weight, weight * squared[:, start:stop])
        sums.append([jnp.sum(each, 1) for each in weighted])
    tops = jnp.stack(top, 1)
    zeroth, first, second, distance = (jnp.stack(each, 1) for each in zip(*sums, strict=True))
    evidence = jnp.where(alone, -jnp.inf, tops + jnp.log(zeroth))
    total = jnp.logaddexp(jax.nn.logsumexp(evidence, axis=1), 0.0)
    scale = jnp.exp(tops - total[:, None])
    entropy = total - jnp.sum(scale * first, axis=1)
    collision = jnp.exp(-2 * total) + jnp.sum(scale * scale * second, axis=1)
    largest = jnp.exp(jnp.maximum(jnp.max(jnp.where(alone, -jnp.inf, tops), axis=1), 0) - total)
    # The source, at distance 0, has the weight 1 beside e^evidence of the others of its class.
    others = jnp.where(own, jax.nn.sigmoid(evidence), 1)
    mean = jnp.where(alone, 0, others * distance / zeroth)
    return entropy, collision, -total, largest, evidence, mean


@partial(jax.jit, static_argnames=("num_times", "together", "maps"))
def _chunk(
    training: TrainingSet,
    source: Array,
    keys: Array,
    r: Array,
    active: Array,
    num_times: int,
    together: int,
    maps: int = 1,
) -> tuple[Array, ...]:
    """The statistics of some draws, each (draws, num_times, ...), at the first `active` times.

    So many times `together`, a divisor of num_times, are computed at once, and so many `maps` of a
    symmetry, a divisor of their number.
    """
    shape = (training.points.shape[1],)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
    squared, overlap = _differences(training, source, noise, maps)
    starts, stops = jnp.array(training.offsets[:-1]), jnp.array(training.offsets[1:])
    own = (source[:, None] >= starts[None]) & (source[:, None] < stops[None])
    alone = own & (jnp.array(training.sizes) == 1)[None]
    prior = None if training.orbit is None else training.orbit.log_prior
    offsets = tuple(training.maps * place for place in training.offsets)

    def at(i: Array) -> tuple[Array, ...]:
        logits = -(r[i] ** 2 / 2) * squared - r[i] * overlap
        if prior is not None:
            logits += prior[None] - prior[source * training.maps][:, None]
        return _statistics(logits, squared, own, alone, offsets)

    def body(i: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
        first = i * together
        if together == 1:  # on the CPU XLA takes twice as long for the batch of one
            rows = jax.tree.map(lambda leaf: leaf[None], at(first))
        else:
            rows = jax.vmap(at)(first + jnp.arange(together))
        return jax.tree.map(
            partial(jax.lax.dynamic_update_slice_in_dim, start_index=first, axis=0), out, rows
        )

    empty = jax.tree.map(
        lambda leaf: jnp.full((num_times, *leaf.shape), jnp.nan, leaf.dtype),
        jax.eval_shape(at, jnp.int32(0)),
    )
    tables = jax.lax.fori_loop(0, -(-active // together), body, empty)
    return jax.tree.map(lambda table: jnp.swapaxes(table, 0, 1), tables)


def stratified(key: Array, n: int, first: int, last: int) -> np.ndarray:
    """Source points of the draws first..last-1: permutations of 0..n-1 laid end to end.

    So every point is drawn equally often where the number of draws is a multiple of n.
    """
    epochs = range(first // n, (last - 1) // n + 1)
    order = [np.asarray(jax.random.permutation(jax.random.fold_in(key, e), n)) for e in epochs]
    return np.concatenate(order)[first - epochs[0] * n : last - epochs[0] * n]


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most so much, and 1 at least."""
    return max(k for k in range(1, min(max(most, 1), number) + 1) if number % k == 0)


def draw_from(training: TrainingSet, times: np.ndarray, key: Array, first: int, last: int) -> Draws:
    """The draws number first..last-1, see `draw`, from points that are on the devices already."""
    n, d = training.points.shape
    columns = n * training.maps
    devices = jax.device_count()
    # About eight arrays of (draws, columns) and four of (draws, d) live at once.
    most = _ON_CPU if jax.default_backend() == "cpu" else _ELSEWHERE
    per_device = int(np.clip(most.bytes // (4 * (8 * columns + 4 * d)), 1, most.draws))
    per_device = min(per_device, -(-(last - first) // devices))
    chunk = per_device * devices
    times = np.asarray(times, np.float64)
    if last <= first or not np.all((times >= _TIME_RANGE[0]) & (times <= _TIME_RANGE[1])):
        raise UserError(
            f"the posterior engine needs at least one draw, and times from {_TIME_RANGE[0]:g} to "
            f"{_TIME_RANGE[1]:g}"
        )
    active, padded = len(times), -(-len(times) // 16) * 16
    together = _divisor(padded, most.logits // (4 * per_device * columns))
    maps = _divisor(training.maps, most.bytes // (8 * per_device * d))
    r = np.ones(padded)
    r[:active] = 1 / np.sqrt(np.expm1(2 * times))
    key_source, key_noise = jax.random.split(key)
    source = stratified(key_source, n, first, -(-(last - first) // chunk) * chunk + first)
    constants = replicate((r.astype(np.float32), np.int32(active)))

    def batch(numbers: np.ndarray) -> tuple[Array, ...]:
        arguments = shard((source[numbers], fold_in_each(key_noise, first + numbers)))
        return _chunk(
            training, *arguments, *constants, num_times=padded, together=together, maps=maps
        )

    tables = in_batches(batch, last - first, min(chunk, last - first))
    entropy, *others = (table[:, :active] for table in tables)
    source = source[: last - first]
    index = np.asarray(training.order)[source]
    labels = np.searchsorted(training.offsets, source, side="right") - 1
    return Draws(times, index, labels, np.maximum(entropy, 0), *others)


def draw(
    points: np.ndarray,
    labels: np.ndarray | None,
    times: np.ndarray,
    key: Array,
    num_draws: int,
    group: Group | None = None,
) -> Draws:
    """Draws points and noise, and forms the posterior over the training points at every time.

    Draw i depends on `key` and i alone, not on the number of devices. Computed in float32; the
    differences to the nearest eight neighbours are formed explicitly, so that up to eight
    near-duplicates of a point keep their digits down to t = 1e-3. Each device holds all points:
    4 n d bytes, and with a group 32 n |G| for each draw of a chunk, of which there is one at least.

    Args:
      points: training points (n, ...); uint8 is scaled to [0, 1].
      labels: classes 0..C-1 (n,), or None.
      times: Ornstein-Uhlenbeck times (T,), from 1e-6 to 30.
      key: typed PRNG key.
      num_draws: number of draws, spread evenly over the points.
      group: symmetries, see `training_set`.

    Returns:
      See `Draws`.

    Raises:
      UserError: see `training_set`; times out of range; no draws.
    """
    return draw_from(training_set(points, labels, group), times, key, 0, num_draws)
