"""The comparison itself, cell by cell: a few numbers per image (`resemblance.Sums`)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.comparing.kept import is_whole
from diffusion_jax.comparing.sources import Source
from diffusion_jax.comparing.table import Cell, Table
from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes import resemblance
from diffusion_jax.regimes.resemblance import Sums
from diffusion_jax.runtime.devices import batches, few_sizes, is_first_process, replicate, shard
from diffusion_jax.runtime.distributed import from_first
from diffusion_jax.runtime.files import write_npy
from diffusion_jax.schedule import NoiseSchedule

# The sums of a theory, by source and step.
Found = Mapping[tuple[str, int], Sums]


@jax.jit
def _predicted(denoiser: Denoiser, x: Array, step: Array) -> Array:
    return denoiser(x, jnp.full(len(x), step))


def noise_in(
    denoiser: Denoiser, x: np.ndarray, step: int, numbers: range, size: int
) -> Iterator[np.ndarray]:
    """The noise that a denoiser predicts in x_t, a batch at a time on all devices."""

    def predicted(index: np.ndarray) -> Array:
        return _predicted(denoiser, shard(x[np.minimum(index, len(x) - 1)]), jnp.int32(step))

    return batches(predicted, numbers, size)


def denoised(schedule: NoiseSchedule, noise: np.ndarray, x: np.ndarray, step: int) -> np.ndarray:
    """D = (x - sqrt(Delta) noise)/sqrt(alpha_bar) at one step, in float64."""
    signal, variance = float(schedule.alpha_bar[step]), float(schedule.noise_variance[step])
    return np.asarray((x - np.sqrt(variance) * noise.astype(np.float64)) / np.sqrt(signal))


@dataclass(frozen=True)
class Cells(Table[Sums]):
    """The cells of a network that is compared with theories; see `Table`.

    Attributes:
      network: the network's denoiser.
      batch_size: images at a time that the network is asked for.
    """

    work = "Comparing"
    network: Denoiser
    batch_size: int

    def load(self, path: Path) -> Sums:
        """See `Table`."""
        return resemblance.load(path)

    def holds(self, found: Sums, source: Source) -> bool:
        """See `Table`."""
        return found.draws == source.count

    def add(self, cell: Cell, denoiser: Denoiser, have: int, wanted: int) -> None:
        """See `Table`; the cell is kept after each batch of images."""
        each, source, step = cell
        x, noise = source.at(step)
        network_noise = self._network(source, step, x)
        network = denoised(self.schedule, network_noise, x, step)
        mean, path = network.mean(axis=0), self.path(each.name, source, step)
        kept = self.read(each.name, source, step) if have and is_first_process() else None
        size, at = few_sizes(wanted - have, each.batch_size), have
        for own in noise_in(denoiser, x, step, range(have, wanted), size):
            rows = slice(at, at + len(own))
            at += len(own)
            losses = None
            if noise is not None:
                losses = (
                    resemblance.noise_losses(network_noise[rows], noise[rows]),
                    resemblance.noise_losses(own, noise[rows]),
                )
            theory = denoised(self.schedule, own, x[rows], step)
            new = resemblance.sums(network[rows], theory, mean, source.count, losses)
            kept = new if kept is None else resemblance.join(kept, new)
            if is_first_process():
                kept.save(path)

    def _network(self, source: Source, step: int, x: np.ndarray) -> np.ndarray:
        """The noise that the network predicts, (count, ...), which is kept."""
        path = self.folder / f"network_{source.key}_{step:05d}.npy"

        if not from_first(lambda: "kept" if is_whole(path, x.shape) else ""):
            size = few_sizes(len(x), self.batch_size)
            parts = noise_in(replicate(self.network), x, step, range(len(x)), size)
            found = np.concatenate(list(parts))
            if not np.isfinite(found).all():
                raise UserError("the network predicts values that are not finite: it is broken")
            if is_first_process():
                write_npy(path, found)
        # The others make no use of it.
        return np.load(path, allow_pickle=False) if is_first_process() else np.zeros_like(x)
