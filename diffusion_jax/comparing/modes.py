"""The open modes of denoisers, cell by cell, and those that open along one trajectory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.comparing.cells import denoised, noise_in
from diffusion_jax.comparing.sources import Source
from diffusion_jax.comparing.table import Asked, Cell, Table
from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import jacobian
from diffusion_jax.regimes.jacobian import OPEN, Spectra
from diffusion_jax.regimes.newly_open import newly_open
from diffusion_jax.runtime.devices import few_sizes, is_first_process, replicate
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import writing
from diffusion_jax.runtime.patience import refusal

# Of a spectrum, beside its vectors.
_TABLES = tuple(field.name for field in fields(Spectra) if field.name != "vectors")
# Stops along a trajectory that are shown, at most.
STOPS = 8


@dataclass(frozen=True)
class Measured:
    """What a denoiser does to some noisy images of one time.

    Attributes:
      spectra: of e^-t dD/dx.
      loss: |eps - noise|^2, summed over components (N,); NaN where no one knows the noise.
      excess: |eps|^2 minus |noise|^2 (N,); NaN likewise.
    """

    spectra: Spectra
    loss: np.ndarray
    excess: np.ndarray

    def __len__(self) -> int:
        """How many images."""
        return len(self.loss)

    def first(self, count: int) -> "Measured":
        """The numbers of the first images alone."""
        return Measured(self.spectra.rows(0, count), self.loss[:count], self.excess[:count])

    def save(self, path: Path) -> None:
        """Writes an .npz file; a kill leaves the whole of it or nothing.

        Raises:
          UserError: it cannot be written.
        """
        tables = {name: getattr(self.spectra, name) for name in _TABLES}
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, loss=self.loss, excess=self.excess, **tables)


# By source and step.
Found = Mapping[tuple[str, int], Measured]


def join(earlier: Measured, later: Measured) -> Measured:
    """The numbers of some images, and of those that follow them."""
    return Measured(
        jacobian.join([earlier.spectra, later.spectra]),
        np.concatenate([earlier.loss, later.loss]),
        np.concatenate([earlier.excess, later.excess]),
    )


@dataclass(frozen=True)
class ModeTable(Table[Measured]):
    """The cells of some denoisers' leading modes; see `Table`.

    Attributes:
      leading: how many modes; cells of another number lie beside these.
      key: typed PRNG key of what is random of a spectrum.
    """

    work = "Modes"
    leading: int
    key: Array

    def path(self, name: str, source: Source, step: int) -> Path:
        """See `Table`."""
        return self.folder / f"{name}_{source.key}_{step:05d}_{self.leading}.npz"

    def load(self, path: Path) -> Measured:
        """See `Table`."""
        with np.load(path, allow_pickle=False) as file:
            tables: dict[str, Any] = {name: file[name] for name in _TABLES}
            loss, excess = file["loss"], file["excess"]
        tables["dimension"] = int(tables["dimension"])
        count = len(loss)
        shapes = [tables.pop("dimension"), *map(len, (*tables.values(), excess))]
        if set(shapes[1:]) != {count} or tables["eigenvalues"].shape != (count, self.leading):
            raise ValueError("its tables are of different images")
        return Measured(Spectra(vectors=None, dimension=shapes[0], **tables), loss, excess)

    def holds(self, found: Measured, source: Source) -> bool:
        """See `Table`."""
        return True

    def add(self, cell: Cell, denoiser: Denoiser, have: int, wanted: int) -> None:
        """See `Table`; the cell is kept after each batch of images."""
        each, source, step = cell
        x, noise = source.at(step)
        path = self.path(each.name, source, step)
        kept = self.read(each.name, source, step) if have and is_first_process() else None
        size = few_sizes(wanted - have, each.batch_size)
        for start in range(have, wanted, size):
            stop = min(start + size, wanted)
            found = self.of(denoiser, x[start:stop], step, start, size)
            eps = np.concatenate([*noise_in(denoiser, x, step, range(start, stop), size)])
            flat = eps.reshape(len(eps), -1).astype(np.float64)
            loss, excess = np.full((2, len(flat)), np.nan)
            if noise is not None:
                own = noise[start:stop].reshape(flat.shape).astype(np.float64)
                loss = np.sum((flat - own) ** 2, axis=1)
                excess = np.sum(flat**2 - own**2, axis=1)
            new = Measured(found, loss, excess)
            kept = new if kept is None else join(kept, new)
            if is_first_process():
                kept.save(path)

    def of(
        self,
        denoiser: Denoiser,
        x: np.ndarray,
        step: int,
        first: int,
        batch_size: int,
        vectors: bool = False,
    ) -> Spectra:
        """The spectra at some x_t, the first of which has this number."""
        key = jax.random.fold_in(self.key, step)
        return jacobian.spectra(
            *(denoiser, self.schedule, x, step, key),
            leading=self.leading,
            vectors=vectors,
            first=first,
            batch_size=batch_size,
        )


def require_derivative(denoiser: Denoiser, shape: tuple[int, ...]) -> None:
    """Refuses a denoiser without forward derivatives, before anything is computed.

    Args:
      denoiser: of images.
      shape: of an image.

    Raises:
      UserError: its parts have derivatives backwards alone.
    """

    def derivative(x: Array) -> Any:
        return jax.jvp(lambda y: denoiser(y, jnp.zeros(1, jnp.int32)), (x,), (x,))

    try:
        jax.jit(derivative).lower(jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise UserError(
            "the network has no forward derivative, which its Jacobian needs: some of its layers "
            "know how to go backwards alone (jax.custom_vjp)"
        ) from error


@dataclass(frozen=True)
class Stop:
    """A time along a trajectory.

    Attributes:
      step: of the schedule.
      state: x_t, the shape of an image.
      predicted: the predicted image D.
      open_modes: how many modes are open.
      eigenvalues: on the directions that newly opened since the stop before, decreasing (j,).
      directions: these directions (j, ...), see `newly_open`.
    """

    step: int
    state: np.ndarray
    predicted: np.ndarray
    open_modes: int
    eigenvalues: np.ndarray
    directions: np.ndarray


def stops_of(open_modes: Sequence[int], most: int) -> list[int]:
    """The places of a trajectory's stops, from large t down: where some modes are open, not all.

    Where all that were looked for are open, others may be, and what newly opens is not known.

    Args:
      open_modes: at increasing times (T,).
      most: number of modes that were looked for.
    """
    places = [i for i, count in enumerate(open_modes) if 0 < count < most][::-1]
    chosen = np.linspace(0, len(places) - 1, min(STOPS, len(places)))
    return [places[i] for i in sorted({round(float(c)) for c in chosen})]


def along(table: ModeTable, each: Asked, source: Source, found: Found) -> list[Stop]:
    """What opens along the first trajectory of a source, from stop to stop; all processes call it.

    Args:
      table: where the modes of each stop are kept.
      each: the denoiser.
      source: the trajectories.
      found: its cells there, in the first process.
    """

    def chosen() -> str:
        cells = [found[source.name, step].spectra for step in table.steps]
        return json.dumps(stops_of([int(c.open_modes[0]) for c in cells], table.leading))

    steps = [table.steps[i] for i in json.loads(from_first(chosen))]
    denoiser = replicate(each.make())
    stops: list[Stop] = []
    before: np.ndarray | None = None
    for step in steps:
        x = source.at(step)[0][:1]
        spectrum = _at(table, each.name, denoiser, x, source, step)
        (eps,) = noise_in(denoiser, x, step, range(1), 1)
        predicted = denoised(table.schedule, eps, x, step)
        if not is_first_process():
            continue
        assert spectrum is not None
        assert spectrum.vectors is not None
        values = spectrum.eigenvalues[0]
        vectors = spectrum.vectors[0][values > OPEN]
        values = values[values > OPEN]
        before = vectors[:0] if before is None else before
        new = newly_open(values, vectors, before)
        stops.append(Stop(step, x[0], predicted[0], len(values), *new))
        before = vectors
    return stops


def _at(
    table: ModeTable, name: str, denoiser: Denoiser, x: np.ndarray, source: Source, step: int
) -> Spectra | None:
    """The modes of the first trajectory with their vectors, kept; None but in the first process."""
    path = table.path(f"along_{name}", source, step)
    wanted = (1, table.leading, *x.shape[1:])

    def read() -> Spectra | None:
        try:
            found = jacobian.load(path)
        except UserError as error:  # missing or damaged
            if refusal(error) is not None:
                raise
            return None
        vectors = found.vectors
        return found if vectors is not None and vectors.shape == wanted else None

    if from_first(lambda: "" if read() is None else "kept"):
        return read() if is_first_process() else None
    found = table.of(denoiser, x, step, 0, 1, vectors=True)
    if is_first_process():
        found.save(path)
    return found
