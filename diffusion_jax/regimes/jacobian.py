"""The Jacobian of a denoiser: which directions of an image are open at a noise level.

With D(x) the denoised image, x_t = e^-t a + sqrt(Delta) z and Delta = 1 - e^-2t,

    M = e^-t dD/dx = 1 - sqrt(Delta) d eps/dx        (d x d, without units)

is the Jacobian of the signal that the denoiser keeps. A Gaussian mode of variance l has the
eigenvalue e^-2t l/(e^-2t l + Delta), which passes 1/2 at t = 1/2 log(1 + l): it is *open* above.
The trace is the number of degrees of freedom. For the score of any law M = g Cov(a | x_t),
g = e^-2t/Delta, is symmetric and not negative, and an eigenvalue may be over 1, between classes.
Networks, local and guided denoisers are no law's score: of theirs the eigenvalues are those of
(M + M')/2, and the asymmetry |J - J'|/|J + J'| (Frobenius) is reported.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from diffusion_jax.denoisers import (
    Denoiser,
    EmpiricalDenoiser,
    GaussianClassesDenoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    TrainedDenoiser,
    require_steps,
)
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import closed_jacobians
from diffusion_jax.regimes.closed_jacobians import Level, Modes
from diffusion_jax.regimes.jacobian_products import Work, by_products
from diffusion_jax.runtime.devices import few_sizes, fold_in_each, replicate, whole
from diffusion_jax.runtime.files import writing
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.schedule import NoiseSchedule

OPEN = 0.5


@dataclass(frozen=True)
class Spectra:
    """The leading modes of (M + M')/2 at N points of one step; see this module.

    Attributes:
      eigenvalues: the k largest, decreasing (N, k), float64.
      vectors: their unit vectors (N, k, *shape); None where they were not asked for.
      trace: of M (N,).
      trace_error: its standard error over probes (N,); 0 where it is exact.
      asymmetry: |J - J'|/|J + J'|, in Frobenius' norm (N,); 0 where J is symmetric by its form.
      residual: within which of each eigenvalue there is one of the matrix (N, k); 0 where exact.
      dimension: d.
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray | None
    trace: np.ndarray
    trace_error: np.ndarray
    asymmetry: np.ndarray
    residual: np.ndarray
    dimension: int

    def __len__(self) -> int:
        """Number of points N."""
        return len(self.trace)

    @property
    def open_modes(self) -> np.ndarray:
        """How many of the eigenvalues are above 1/2 (N,)."""
        return np.asarray(np.sum(self.eigenvalues > OPEN, axis=1))

    @property
    def at_least(self) -> np.ndarray:
        """Whether all k are, and others may be, so that the number is a lower bound (N,)."""
        count = self.eigenvalues.shape[1]
        return np.asarray((self.open_modes == count) & (count < self.dimension))

    def rows(self, first: int, last: int) -> "Spectra":
        """The spectra of the points in the places first..last-1."""
        return Spectra(**{n: _part(getattr(self, n), first, last) for n in _FIELDS})

    def save(self, path: Path) -> None:
        """Writes an .npz file; a kill leaves the whole of it or nothing.

        Raises:
          UserError: it cannot be written.
        """
        tables = {n: value for n in _FIELDS if (value := getattr(self, n)) is not None}
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, **tables)


_FIELDS = tuple(field.name for field in fields(Spectra))


def _part(value: Any, first: int, last: int) -> Any:
    return value[first:last] if isinstance(value, np.ndarray) else value


def load(path: Path) -> Spectra:
    """Reads what `Spectra.save` wrote.

    Raises:
      UserError: the file is damaged, or the system does not let it be read.
    """

    def read() -> Spectra:
        with np.load(path, allow_pickle=False) as file:
            tables = {n: file[n] for n in _FIELDS if n != "vectors"}
            vectors = file.get("vectors")
        tables["dimension"] = int(tables["dimension"])
        return Spectra(vectors=vectors, **tables)

    try:
        return patiently(path, read)
    except Exception as error:  # a damaged zip file raises almost anything
        if refusal(error) is not None:
            raise
        raise UserError(
            f"{path} is damaged ({error!s:.300}); remove it, and its modes are computed again"
        ) from error


def join(parts: Sequence[Spectra]) -> Spectra:
    """All parts, of one step and with as many modes each, as one."""

    def both(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]

    return Spectra(**{name: both(name) for name in _FIELDS})


_Closed = Callable[[Any, Level, np.ndarray, int, bool], Iterator[Modes]]


def _closed(denoiser: Denoiser) -> tuple[_Closed, tuple[int, ...]] | None:
    """The closed form of a denoiser's Jacobian, if it has one, and the shape of an example."""
    if isinstance(denoiser, EmpiricalDenoiser) and denoiser.group is None:
        return closed_jacobians.of_empirical, denoiser.points.shape[1:]
    if isinstance(denoiser, GaussianDenoiser):
        return closed_jacobians.of_gaussian, denoiser.mean.shape
    if isinstance(denoiser, GaussianClassesDenoiser):
        return closed_jacobians.of_classes, denoiser.means.shape[1:]
    if isinstance(denoiser, GaussianMixtureDenoiser):
        return closed_jacobians.of_mixture, denoiser.centre.shape
    return None


def spectra(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: np.ndarray,
    step: int,
    key: Array,
    leading: int = 32,
    probes: int = 8,
    vectors: bool = False,
    first: int = 0,
    tolerance: float = 1e-2,
    most_steps: int | None = None,
    batch_size: int = 16,
) -> Spectra:
    """The leading modes, the trace and the asymmetry of a denoiser's Jacobian at given x_t.

    In closed form for the exact score without a group, one Gaussian, Gaussians of classes and the
    mixture of two, on the host in float64 (see `closed_jacobians`). For any other denoiser it takes
    products with vectors: M v forwards, M' v backwards, for a batch of examples at a time on all
    devices, the denoiser itself being called once per batch; `lanczos` on the host in float64 gives
    the modes. The trace is that of M on their space, and over the rest Hutchinson's mean of v.(M v)
    over random signs v (Meyer et al. 2021, Hutch++); the asymmetry comes from the same products.
    With k = d all of it is exact up to rounding, and no probes are taken.

    Args:
      denoiser: a pytree that JAX differentiates forwards; of a trained UNet, see `forwards`.
      schedule: the denoiser's.
      x: x_t (N, *shape), floats.
      step: its step s in 0..L-1, one for all.
      key: typed PRNG key. What is random of an example comes from the key and its number alone.
      leading: number k of eigenvalues, 1..d.
      probes: number of probes per example; one gives no standard error (NaN).
      vectors: whether the eigenvectors are wanted.
      first: number of the first example.
      tolerance: residual r at which an eigenvalue is known, in units of M. One that lies alone is
        then wrong by r^2 over its distance from the others, and only among neighbours nearer than r
        by r itself.
      most_steps: products at most for the modes of an example; by default 4 k + 64. Where they do
        not suffice, `Spectra.residual` says how far it came.
      batch_size: examples at a time, rounded up to a multiple of the number of devices.

    Raises:
      UserError: x of another shape or not finite, a step that the schedule lacks, numbers out of
        range; a denoiser without a forward derivative, or one that predicts what is not finite.
    """
    x = _checked(denoiser, schedule, x, step, leading, probes)
    level = Level(float(schedule.alpha_bar[step]), float(schedule.noise_variance[step]))
    form = _closed(denoiser)
    if form is not None:
        function, shape = form
        if x.shape[1:] != tuple(shape):
            raise UserError(f"x of shape {x.shape} for a denoiser of examples of shape {shape}")
        flat = x.reshape(len(x), -1).astype(np.float64)
        found = list(function(denoiser, level, flat, leading, vectors))
        zeros = np.zeros(len(x))
        return _gathered(found, x.shape[1:], zeros, zeros)
    most = 4 * leading + 64 if most_steps is None else most_steps
    work = Work(leading, probes, vectors, tolerance, most)
    size = whole(few_sizes(len(x), batch_size))
    denoiser, parts = replicate(denoiser), []
    for start in range(0, len(x), size):
        part = x[start : start + size]
        keys = fold_in_each(key, first + start + np.arange(len(part)))
        found, *errors = by_products(denoiser, level, part, step, keys, size, work)
        parts.append(_gathered(found, x.shape[1:], *errors))
    return join(parts)


def _checked(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: np.ndarray,
    step: int,
    leading: int,
    probes: int,
) -> np.ndarray:
    """The points, and nothing wrong with them or the other arguments of `spectra`."""
    x = np.asarray(x)
    if x.ndim < 2 or x.size == 0 or x.dtype.kind != "f":
        raise UserError(
            f"x of shape {x.shape} and type {x.dtype}: give noisy examples (N, ...) in floats, one "
            f"at least"
        )
    finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if not finite.all():
        raise UserError(f"x[{int(np.argmin(finite))}] holds values that are not finite")
    require_steps(denoiser, schedule.num_steps)
    dimension = x[0].size
    bounds = {
        "step": (step, 0, schedule.num_steps - 1),
        "leading": (leading, 1, dimension),
        "probes": (probes, 1, 2**31),
    }
    for name, (value, low, high) in bounds.items():
        try:
            fits = low <= operator.index(value) <= high
        except TypeError:
            fits = False
        if not fits:
            raise UserError(f"{name} = {value!r} must be a whole number from {low} to {high}")
    return x


def _gathered(
    found: Sequence[Modes],
    shape: tuple[int, ...],
    trace_error: np.ndarray,
    asymmetry: np.ndarray,
) -> Spectra:
    """The modes of N points as one."""
    values = np.stack([each.values for each in found])
    vectors = None
    if found[0].vectors is not None:
        vectors = np.stack([each.vectors for each in found if each.vectors is not None])
        vectors = vectors.reshape(*values.shape, *shape)
    return Spectra(
        eigenvalues=values,
        vectors=vectors,
        trace=np.array([each.trace for each in found]),
        trace_error=trace_error,
        asymmetry=asymmetry,
        residual=np.stack([each.residuals for each in found]),
        dimension=int(np.prod(shape)),
    )


def forwards(denoiser: Any) -> Any:
    """The same denoiser, except for UNets in plain JAX, which has forward derivatives.

    A run's UNet carries its device's kernels, which are differentiated backwards alone.

    Args:
      denoiser: a pytree; the networks in it are found wherever they are.
    """

    def plain(node: Any) -> Any:
        if isinstance(node, TrainedDenoiser) and hasattr(node.model, "plain"):
            return TrainedDenoiser(node.params, node.model.plain())
        return node

    return jax.tree.map(plain, denoiser, is_leaf=lambda node: isinstance(node, TrainedDenoiser))
