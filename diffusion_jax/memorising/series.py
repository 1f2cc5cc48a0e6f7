"""What the evaluations of one run say, update by update: copies, information, quality, modes."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from diffusion_jax.config import Config
from diffusion_jax.covariance import Rows, principal_modes
from diffusion_jax.data.images import ImageSet
from diffusion_jax.errors import UserError
from diffusion_jax.judging.features import FeatureMap
from diffusion_jax.judging.frechet import Moments, between, frechet
from diffusion_jax.judging.quality import mmd2
from diffusion_jax.memorising.cells import Cell
from diffusion_jax.regimes import training_times
from diffusion_jax.regimes.commitment import fraction
from diffusion_jax.regimes.learned_modes import LearnedModes, learned_modes
from diffusion_jax.regimes.loss_information import (
    Information,
    Losses,
    Resampled,
    Strata,
    information,
)
from diffusion_jax.regimes.novelty import Novelty, novelty
from diffusion_jax.regimes.training_times import Reached
from diffusion_jax.symmetry import Group
from diffusion_jax.training import evaluation, evaluations, memory
from diffusion_jax.training.evaluation import rows_of
from diffusion_jax.training.evaluations import Evaluation, Exact

# Modes whose variance is followed; bootstrap replicates of a Frechet distance, of which each takes
# a decomposition; how far above its lowest a distance may be for samples to be as good as they get,
# and above the training images' own for them to be good at all.
_MODES, _REPLICATES, _GOOD, _FAR = 8, 50, 2.0, 5.0
# The features by whose distance tau_gen is told.
TOLD_BY = "random_convolutions"


@dataclass(frozen=True)
class Kept:
    """What a run keeps.

    Attributes:
      cell: which run.
      drawn: evaluations by their updates, increasing.
      exact: what the exact score knows; None for a training set too large for it.
      strata: of the losses.
    """

    cell: Cell
    drawn: dict[int, Evaluation]
    exact: Exact | None
    strata: Strata

    @classmethod
    def load(cls, cell: Cell, config: Config) -> "Kept":
        """Reads it.

        Raises:
          UserError: nothing is kept yet, or something is damaged.
        """
        folder = config.output.run_dir
        steps = [step for step in evaluations.kept(folder) if step <= config.steps]
        if not steps:
            raise UserError(f"{folder} keeps no evaluation yet")
        drawn = {step: Evaluation.load(evaluations.path_of(folder, step)) for step in steps}
        path = evaluations.path_of(folder, evaluations.EXACT)
        exact = Exact.load(path) if path.exists() else None
        faithful = int(config.training.faithful)
        return cls(cell, drawn, exact, Strata(config.schedule.build(), first=faithful))

    @property
    def updates(self) -> np.ndarray:
        """Updates of the evaluations (T,)."""
        return np.array(list(self.drawn))

    @property
    def samples(self) -> list[np.ndarray]:
        """Samples of the evaluations, as many of each as the smallest one has."""
        count = min(len(each.samples) for each in self.drawn.values())
        return [each.samples[:count] for each in self.drawn.values()]

    @property
    def time(self) -> float:
        """Time down to which the exact score knows the training images; see `memory.time_of`."""
        return memory.time_of(self.exact)

    @property
    def known(self) -> Losses | None:
        """The exact score's losses."""
        return None if self.exact is None else self.exact.losses

    def information(self, above: np.ndarray) -> list[Information]:
        """U, G, K and M at each evaluation; see `loss_information.information`."""
        each = [drawn.both for drawn in self.drawn.values()]
        return [information(*both, above, self.known) for both in each]


@dataclass(frozen=True)
class Series:
    """One run, update by update.

    Attributes:
      cell: which run.
      updates: of its evaluations (T,).
      num_samples: of each evaluation.
      memorised: fraction of the samples that are memorised, with replicates (T,).
      ratio: median of nearest distance over second nearest (T,).
      time: down to which the information is taken.
      information: U, G, K and M down to it, of each evaluation.
      bands: those of each stratum of the log-SNR, of the last evaluation.
      edges: lower time of each stratum.
      gained: change of G since the lowest held-out U until then (T,).
      kinds: memorised, spurious and novel samples of each evaluation; None if not asked for.
      distances: Frechet and kernel distance to the held-out images, by their features (T,).
      own: the same distances of the training images.
      replicates: of the Frechet distance in the features that tell tau_gen (R, T).
      modes: variance of the samples along the training set's modes; None if not asked for.
    """

    cell: Cell
    updates: np.ndarray
    num_samples: int
    memorised: Resampled
    ratio: np.ndarray
    time: float
    information: list[Information]
    bands: Information
    edges: np.ndarray
    gained: Resampled
    kinds: list[Novelty] | None
    distances: dict[str, dict[str, np.ndarray]]
    own: dict[str, dict[str, float]]
    replicates: np.ndarray | None
    modes: LearnedModes | None

    @property
    def wilson(self) -> np.ndarray:
        """Ends of Wilson's 95 % interval of the memorised fraction (2, T)."""
        count = self.num_samples
        each = [fraction(round(float(value) * count), count) for value in self.memorised.value]
        return np.array([(one.low, one.high) for one in each]).T

    def tau_mem(self, level: float) -> Reached:
        """The update from which on a fraction of the samples is memorised."""
        found = self.memorised
        return training_times.when(self.updates, found.value, found.replicates, level)

    def tau_nats(self, nats: float) -> Reached:
        """The update from which on G has grown by some nats since the lowest held-out U."""
        return training_times.when(self.updates, self.gained.value, self.gained.replicates, nats)

    @cached_property
    def tau_gen(self) -> Reached | None:
        """The first update whose samples are at most twice as far as the nearest ever are.

        By the Frechet distance of random convolutions to the held-out images. Samples that end five
        times as far as the training images are never good. Resampling raises the distance, by a
        factor that is taken out of the replicates.
        """
        if self.replicates is None:
            return None
        value, replicates = self.distances[TOLD_BY]["frechet"], self.replicates
        if value.min() > _FAR * self.own[TOLD_BY]["frechet"]:
            return Reached(np.nan, np.full(len(replicates), np.nan), False)
        replicates = replicates * (value / replicates.mean(axis=0))

        def closeness(distance: np.ndarray) -> np.ndarray:
            """Above 0 from the first update on at which they are as good as that."""
            best = np.minimum.accumulate(distance, axis=-1)
            return np.asarray(np.log(_GOOD * best[..., -1:] / best))

        return training_times.when(self.updates, closeness(value), closeness(replicates), 0.0)


def series_of(
    kept: Kept,
    training: ImageSet,
    held_out: ImageSet,
    time: float,
    maps: Mapping[str, FeatureMap],
    with_kinds: bool,
    with_modes: bool,
    group: Group | None = None,
) -> Series:
    """Measures what a run keeps.

    Args:
      kept: of the run.
      training: its training images.
      held_out: those that are held out.
      time: down to which the information is taken.
      maps: features of images on the scale of [0, 1], by their names; none for no distances.
      with_kinds: tell memorised, spurious and novel samples apart.
      with_modes: follow the variance along the training set's modes.
      group: that of the symmetry with which the run was trained.

    Raises:
      UserError: an evaluation without held-out images.
    """
    points = training.centred()
    found = [novelty(samples, points, group=group) for samples in kept.samples]
    copies = np.stack([each.memorised for each in found], 1).astype(np.float64)
    ratio = np.array([np.median(_ratio(each)) for each in found])
    distances, own, replicates = _distances(kept, training, held_out, maps)
    last = kept.updates[-1]
    return Series(
        kept.cell,
        kept.updates,
        len(copies),
        Resampled.mean(copies, kept.cell.replica),
        ratio,
        time,
        kept.information(kept.strata.above(time)),
        information(*kept.drawn[last].both, kept.strata.bands, kept.known),
        kept.strata.times,
        _gained(kept, time),
        found if with_kinds else None,
        distances,
        own,
        replicates,
        _modes(kept, training) if with_modes else None,
    )


def _ratio(found: Novelty) -> np.ndarray:
    ones = np.ones_like(found.distance)
    return np.divide(found.distance, found.second, out=ones, where=found.second > 0)


def _gained(kept: Kept, time: float) -> Resampled:
    """The change of G since the lowest held-out U until then."""
    above, changes = kept.strata.above(time), list[Resampled]()
    sets = [each.both for each in kept.drawn.values()]
    held_out = [float(other.per_image(above).mean()) for _, other in sets]
    for i, (own, other) in enumerate(sets):
        best = int(np.argmin(held_out[: i + 1]))
        changes.append(information(own - sets[best][0], other - sets[best][1], above).gap)
    values = np.array([float(each.value) for each in changes])
    return Resampled(values, np.stack([each.replicates for each in changes], axis=-1))


def _distances(
    kept: Kept, training: ImageSet, held_out: ImageSet, maps: Mapping[str, FeatureMap]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, float]], np.ndarray | None]:
    """Of the samples, of the training images, and the replicates of the one that tells tau_gen."""
    distances, own, replicates = {}, {}, None
    for name, features in maps.items():
        real = features(held_out.images / np.float32(255))
        fake = [features(samples + training.mean) for samples in kept.samples]
        # Evenly spaced: the images may lie class after class.
        rows = rows_of(len(training.images), min(len(training.images), len(fake[0])))
        known = features(training.images[rows] / np.float32(255))
        measures: dict[str, Callable[[np.ndarray], float]] = {
            "frechet": partial(frechet, real),
            "kernel": partial(mmd2, real),
        }
        distances[name] = {
            kind: np.array([each(samples) for samples in fake]) for kind, each in measures.items()
        }
        own[name] = {kind: each(known) for kind, each in measures.items()}
        if name == TOLD_BY:
            rng = np.random.default_rng(kept.cell.replica)
            drawn = rng.integers(len(fake[0]), size=(_REPLICATES, len(fake[0])))
            fixed = Moments.of(real)
            replicates = np.array(
                [[between(fixed, Moments.of(each[i])) for each in fake] for i in drawn]
            )
    return distances, own, replicates


def _modes(kept: Kept, training: ImageSet) -> LearnedModes | None:
    if len(kept.drawn) < 2:
        return None
    rows = Rows(training.images, all_channels=True, dtype=np.float64)
    values, modes, _ = principal_modes(rows, _MODES)
    return learned_modes(kept.samples, kept.updates.tolist(), modes, values, kept.cell.replica)


def with_exact(kept: Kept, config: Config, training: ImageSet) -> Kept:
    """What a run keeps, with the exact score's part made again where it is lost."""
    if kept.exact is not None:
        return kept
    group = config.training.group(training.images.shape[1:])
    key = evaluation.key_of(config.seed)
    found = evaluation.exact_of(kept.strata.schedule, training, key, kept.strata, group)
    if found is not None:
        found.save(evaluations.path_of(config.output.run_dir, evaluations.EXACT))
    return dataclasses.replace(kept, exact=found)


def common_time(kept: list[Kept]) -> float:
    """The default t of a study: that of its largest training sets, for all."""
    largest = max(each.cell.size for each in kept)
    return min(each.time for each in kept if each.cell.size == largest)
