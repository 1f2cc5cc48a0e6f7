"""The leading modes of a denoiser's Jacobian by products with vectors: networks, and whatever else.

M = 1 - sqrt(Delta) d eps/dx of a batch of points, one x each, is known by M v forwards and M'v
backwards. Lanczos' method on (M + M')/2 runs on the host, in float64 and for each point by itself;
its loop is not compiled, since within one XLA's CPU backend takes five times as long for the UNet's
derivative (see `sampling.likelihood`). The denoiser is called once per batch: what its derivative
needs stays on the devices between the products, about as much as in a training step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.closed_jacobians import Level, Modes
from diffusion_jax.regimes.lanczos import Krylov
from diffusion_jax.runtime.devices import bytes_from_first, fetch, shard
from diffusion_jax.sampling.likelihood import rademacher_probes


@dataclass(frozen=True)
class Work:
    """How much is done for each point; see `jacobian.spectra`."""

    leading: int
    probes: int
    vectors: bool
    tolerance: float
    most_steps: int


@jax.jit
def _linearized(
    denoiser: Denoiser, x: Array, step: Array, deviation: Array
) -> tuple[Array, Callable[[Array], Array]]:
    """e^-t D(x) = x - sqrt(Delta) eps(x) of a batch, and its derivative, a pytree of arrays."""

    def signal(y: Array) -> Array:
        return y - deviation.astype(y.dtype) * denoiser(y, jnp.full(len(y), step))

    value, push = jax.linearize(signal, x)
    return value, push


@jax.jit
def _products(push: Callable[[Array], Array], v: Array) -> tuple[Array, Array]:
    """M v and M' v of a batch."""
    (back,) = jax.linear_transpose(push, v)(v)
    return push(v), back


@contextmanager
def _forwards() -> Iterator[None]:
    """What JAX says of a function that has its reverse derivative alone, as a UserError."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise UserError(
            "the denoiser has no forward derivative, which its Jacobian needs: of a UNet, take "
            "model.plain(), whose kernels, diffusion_jax.nn.plain.PLAIN, have it "
            "(regimes.jacobian.forwards does so)"
        ) from error


class _Products:
    """M at a batch of points, by its products with a vector for each of them."""

    def __init__(
        self, denoiser: Denoiser, level: Level, x: np.ndarray, step: int, size: int
    ) -> None:
        self.shape, self.size = x.shape, size
        deviation = jnp.asarray(np.sqrt(level.variance), float)
        with _forwards():
            value, self._push = _linearized(
                denoiser, self._on_devices(x), jnp.int32(step), deviation
            )
        self._require_finite(fetch(value))
        self.dtype = np.dtype(value.dtype)

    def __call__(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """M v and M' v for v (N, d), float64."""
        with _forwards():
            both = _products(self._push, self._on_devices(v.reshape(self.shape).astype(self.dtype)))
        forth, back = (
            fetch(each)[: len(v)].reshape(len(v), -1).astype(np.float64) for each in both
        )
        self._require_finite(forth, back)
        return forth, back

    def _on_devices(self, x: np.ndarray) -> Any:
        return shard(x[np.minimum(np.arange(self.size), len(x) - 1)])

    @staticmethod
    def _require_finite(*values: np.ndarray) -> None:
        if not all(np.isfinite(each).all() for each in values):
            raise UserError(
                "the denoiser, or its derivative, has values that are not finite: it is broken"
            )


def by_products(
    denoiser: Denoiser,
    level: Level,
    x: np.ndarray,
    step: int,
    keys: Array,
    size: int,
    work: Work,
) -> tuple[list[Modes], np.ndarray, np.ndarray]:
    """The modes of a batch of points.

    Args:
      denoiser: on all devices, see `jacobian.spectra`.
      level: of the step.
      x: x_t (N, *shape).
      step: its step.
      keys: a typed key for each point (N,).
      size: of the batch on the devices, at least N.
      work: see there.

    Returns:
      Those of each point, the standard errors of their traces (N,), and asymmetries (N,).
    """
    products = _Products(denoiser, level, x, step, size)
    count, dimension = len(x), x[0].size
    rounding = 8 * float(np.finfo(products.dtype).eps)
    spaces = [
        Krylov(
            *(dimension, work.leading, work.most_steps, work.tolerance, rounding),
            np.random.default_rng(seed),
        )
        for seed in np.asarray(jax.random.key_data(keys))
    ]
    # |(J - J')v|^2 and |(J + J')v|^2 over the space.
    squares = np.zeros((2, count))
    while (directions := _directions(spaces)) is not None:
        forth, back = products(directions)
        for i, space in enumerate(spaces):
            if not space.done:
                skew, even = forth[i] - back[i], forth[i] + back[i]
                squares[:, i] += np.sum(skew**2), np.sum(even**2)
                space.add(even / 2)
    leaders = [space.leaders() for space in spaces]
    if work.leading == dimension:
        trace = np.array([np.trace(space.projected) for space in spaces])
        error, asymmetry = np.zeros(count), _ratio(*squares)
    else:
        signs = np.asarray(rademacher_probes(keys, work.probes, (dimension,)), np.float64)
        both = [products(v) for v in signs]
        forth, back = (np.stack(each) for each in zip(*both, strict=True))
        trace, error = _traces(spaces, signs, (forth + back) / 2)
        asymmetry = _asymmetry(signs, forth, back)
    found = [
        Modes(values, rows if work.vectors else None, float(trace[i]), residuals)
        for i, (values, residuals, rows) in enumerate(leaders)
    ]
    return found, error, asymmetry


def _directions(spaces: Sequence[Krylov]) -> np.ndarray | None:
    """The next direction of each, or None once all are done.

    As the first process has them: where hosts round differently, each by itself would end its loop
    at another step, and wait for the others for ever.
    """

    def mine() -> bytes:
        if all(space.done for space in spaces):
            return b""
        return np.stack([space.direction for space in spaces]).tobytes()

    content = bytes_from_first(mine)
    return np.frombuffer(content).reshape(len(spaces), -1) if content else None


def _traces(
    spaces: Sequence[Krylov], signs: np.ndarray, products: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The trace on each space, and over the rest by probes v and A v, each (P, N, d).

    With u = v - Q Q'v the mean of u.(A u) is the rest's trace, u.(A u) = v.(A v) - 2 c.(Q'A v) +
    c.(Q'A Q) c, c = Q'v.
    """
    means, errors = [], []
    for i, space in enumerate(spaces):
        along, image = signs[:, i] @ space.basis.T, products[:, i] @ space.basis.T
        rest = np.sum(signs[:, i] * products[:, i], axis=1) - 2 * np.sum(along * image, axis=1)
        rest = rest + np.sum((along @ space.projected) * along, axis=1)
        means.append(np.trace(space.projected) + rest.mean())
        count = len(rest)
        errors.append(rest.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan)
    return np.array(means), np.array(errors)


def _asymmetry(signs: np.ndarray, forth: np.ndarray, back: np.ndarray) -> np.ndarray:
    """|J - J'|/|J + J'| of each example from M v and M'v of probes v, each (P, N, d).

    |(M - M')v|^2 has the mean |M - M'|^2 and, over that, the square of what rounding makes of
    (M - M')v. As u.(M - M')v = -v.(M - M')u for any two of the probes, their sum is rounding alone,
    whose mean square is twice that; it is taken away.
    """
    skew, even = forth - back, forth + back
    squares, total = (np.mean(np.sum(each**2, axis=2), axis=0) for each in (skew, even))
    pairs = np.einsum("pnd,qnd->npq", signs, skew)
    sums = (pairs + np.swapaxes(pairs, 1, 2))[:, *np.triu_indices(len(signs), 1)]
    if sums.shape[1]:
        squares = np.maximum(squares - np.mean(sums**2, axis=1) / 2, 0)
    return _ratio(squares, total)


def _ratio(skew: np.ndarray, even: np.ndarray) -> np.ndarray:
    """The root of a ratio of squares; 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(skew > 0, np.sqrt(skew / even), 0.0))
