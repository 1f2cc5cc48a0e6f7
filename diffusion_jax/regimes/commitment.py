"""What the forks of a backward process commit to: a class, a training point, and when.

Trunks and clones (see `cloning`) end in a class and nearest to a training point. Over the forks
that gives phi and phi_C; along each trunk it gives t_C_hat, the time after which the nearest
training point does not change any more. Batches are measured one by one and joined, so that memory
is bounded and a broken run is taken up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jax import Array
from scipy.stats import binomtest

from diffusion_jax.denoisers import Denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.cloning import Cloning, fork
from diffusion_jax.regimes.curves import Curve, Estimate, average
from diffusion_jax.regimes.measures import COLLAPSE_LEVEL
from diffusion_jax.regimes.neighbours import Neighbours, last_change, nearest
from diffusion_jax.runtime.files import writing
from diffusion_jax.runtime.patience import patiently, refusal
from diffusion_jax.sampling import Sampler, Start

# A fraction of so few trials has an interval too wide to mean anything.
LEAST_TRUNKS = 30
# Shares of classes that differ by chance once in a thousand experiments, at most.
SKEWED = 1e-3


@dataclass(frozen=True)
class Outcomes:
    """What trunks and clones ended in: N trunks, B forks, W places along the way.

    Attributes:
      trunk: the trunks' ends (N, ...), in the units of the training data.
      same_class: whether the two ends of each fork are of one class (N, B).
      same_point: whether they are nearest to the same training point (N, B).
      label: class of each trunk's end (N,); -1 throughout without classes.
      index: training point nearest to each trunk's end (N,).
      distance: Euclidean, to it (N,).
      second: to the second nearest (N,).
      path: training point nearest to the trunk along the way, x_t e^t compared with the points
        themselves, the end included (N, W + 1).
    """

    trunk: np.ndarray
    same_class: np.ndarray
    same_point: np.ndarray
    label: np.ndarray
    index: np.ndarray
    distance: np.ndarray
    second: np.ndarray
    path: np.ndarray

    @property
    def neighbours(self) -> Neighbours:
        """The two training points nearest to each trunk's end."""
        return Neighbours(self.index, self.distance, self.second)

    def rows(self, first: int, last: int) -> "Outcomes":
        """The outcomes of the trunks in the places first..last-1."""
        return Outcomes(**{f.name: getattr(self, f.name)[first:last] for f in fields(self)})

    def save(self, path: Path) -> None:
        """Writes an .npz file; a kill leaves the whole of it or nothing.

        Raises:
          UserError: it cannot be written.
        """
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})


def load(path: Path) -> Outcomes:
    """Reads what `Outcomes.save` wrote.

    Raises:
      UserError: the file is damaged, or the system does not let it be read.
    """

    def read() -> Outcomes:
        with np.load(path, allow_pickle=False) as file:
            return Outcomes(**{field.name: file[field.name] for field in fields(Outcomes)})

    try:
        return patiently(path, read)
    except Exception as error:  # a damaged zip file raises almost anything
        if refusal(error) is not None:
            raise
        raise UserError(
            f"{path} is damaged ({error!s:.300}); remove it, and its trunks are run again"
        ) from error


def join(batches: Sequence[Outcomes]) -> Outcomes:
    """All batches as one."""
    names = (field.name for field in fields(Outcomes))
    return Outcomes(**{n: np.concatenate([getattr(b, n) for b in batches]) for n in names})


def measure(
    sampler: Sampler,
    denoiser: Denoiser,
    key: Array,
    steps: Sequence[int],
    watch: Sequence[int],
    points: np.ndarray,
    classify: Callable[[np.ndarray], np.ndarray] | None,
    first: int,
    last: int,
    clones: int = 1,
    progress: Callable[[int], None] = lambda calls: None,
    start: Start | None = None,
) -> tuple[Outcomes, np.ndarray]:
    """Runs the trunks number first..last-1 with their clones, and says where they end.

    Args:
      sampler: see `cloning.fork`.
      denoiser: see `cloning.fork`.
      key: typed PRNG key.
      steps: steps to go at each fork, descending.
      watch: steps to go at which the trunk's nearest training point is looked up, descending.
      points: training points (n, ...), mean removed.
      classify: gives the classes of images (N, ...) as integers; None where there are none.
      first: number of the first trunk.
      last: number after that of the last trunk.
      clones: 1, the trunk is one of the two that are compared; 2, both are fresh.
      progress: see `cloning.fork`.
      start: see `cloning.fork`.

    Returns:
      The outcomes, and the two ends of each fork (N, B, 2, ...), to be looked at.

    Raises:
      UserError: see `cloning.fork` and `neighbours.nearest`.
    """
    shape = points.shape[1:]
    forks = fork(
        *(sampler, denoiser, key, steps, shape, first, last, clones),
        watch=watch,
        progress=progress,
        start=start,
    )
    pairs = np.stack(forks.pairs(), axis=2)
    if not (np.isfinite(forks.trunk).all() and np.isfinite(pairs).all()):
        raise UserError("trunks end in values that are not finite: the denoiser is broken")
    flat = pairs.reshape(-1, *shape)
    found = nearest(forks.trunk, points)
    ends = nearest(flat, points).index.reshape(pairs.shape[:3])
    labels = np.full(pairs.shape[:3], -1)
    own = np.full(len(forks.trunk), -1)
    if classify is not None:
        labels = classify(flat).reshape(pairs.shape[:3])
        own = classify(forks.trunk)
    growth = np.exp(np.asarray(sampler.schedule.time, np.float64))[np.asarray(watch, int) - 1]
    scaled = forks.path * growth.reshape(-1, *(1 for _ in shape)).astype(np.float32)
    by_the_way = nearest(scaled.reshape(-1, *shape), points).index if len(watch) else np.zeros(0)
    outcomes = Outcomes(
        trunk=forks.trunk,
        same_class=labels[:, :, 0] == labels[:, :, 1],
        same_point=ends[:, :, 0] == ends[:, :, 1],
        label=own,
        index=found.index,
        distance=found.distance,
        second=found.second,
        path=np.column_stack([by_the_way.reshape(len(forks.trunk), -1), found.index]).astype(int),
    )
    return outcomes, pairs


@dataclass(frozen=True)
class Commitment:
    """The curves and times of forked trajectories.

    Attributes:
      phi: pairs that ended in one class, at each fork; None without classes.
      phi_C: pairs that ended nearest to one training point.
      curves: both as curves of increasing time, with replicates of whole trunks.
      times: t_S_phi and t_C_phi, where these cross their levels; NaN where they do not.
      level: of phi at t_S_phi.
      changes: t_C_hat of each trunk whose nearest training point changed (M,).
      unchanged: trunks whose nearest training point never changed.
      mean_change: mean of `changes` with its bootstrap interval; NaN where there are none.
      phi_C_there: phi_C at the mean of `changes`.
      memorised: trunks that end within a third of the distance to the second nearest point.
      class_counts: trunks that ended in each class (C,).
    """

    phi: Cloning | None
    phi_C: Cloning
    curves: dict[str, Curve]
    times: dict[str, Estimate]
    level: float
    changes: np.ndarray
    unchanged: int
    mean_change: Estimate
    phi_C_there: float
    memorised: Estimate
    class_counts: np.ndarray


def fraction(count: int, trials: int) -> Estimate:
    """A fraction with Wilson's 95 % interval."""
    interval = binomtest(count, trials).proportion_ci(method="wilson")
    return Estimate(count / trials, float(interval.low), float(interval.high))


def skewed_class(ends: np.ndarray, training: np.ndarray) -> tuple[int, float] | None:
    """The class in which more trunks end, or fewer, than chance explains; None without one.

    Each class has an exact binomial test of the trunks that end in it against its share of the
    training set; its p-value, times the number of classes (Bonferroni), must be under 1e-3.

    Args:
      ends: trunks that end in each class, integers (C,).
      training: training images of each class, integers (C,).

    Returns:
      Of the classes that pass, the one whose share of the ends differs most from that of the
      training set, upwards if any does, and its corrected p-value.
    """
    count, shares = int(ends.sum()), training / training.sum()
    tests = [
        binomtest(int(end), count, float(p)).pvalue for end, p in zip(ends, shares, strict=True)
    ]
    values = len(ends) * np.array(tests)
    skewed = np.flatnonzero(values < SKEWED)
    if not len(skewed):
        return None
    each = int(max(skewed, key=lambda c: ends[c] / count - shares[c]))
    return each, float(values[each])


def summarize(
    outcomes: Outcomes,
    times: np.ndarray,
    watch_times: np.ndarray,
    num_classes: int,
    level: float,
    seed: int = 0,
) -> Commitment:
    """The curves, their crossings and t_C_hat; see `Commitment`.

    Forks of a trunk are correlated, trunks are not: the interval at each fork is Wilson's, that of
    a crossing a bootstrap over whole trunks.

    Args:
      outcomes: of all trunks.
      times: Ornstein-Uhlenbeck times of the forks (B,), descending.
      watch_times: of the places along the way (W,), descending.
      num_classes: number C of classes; fewer than two give no phi.
      level: value of phi at t_S.
      seed: of the bootstrap.

    Raises:
      UserError: fewer than 30 trunks, too few for an interval.
    """
    count = len(outcomes.trunk)
    if count < LEAST_TRUNKS:
        raise UserError(f"{count} trunks are too few for an interval: run at least {LEAST_TRUNKS}")
    tables = {"phi_C": outcomes.same_point}
    if num_classes > 1:
        tables["phi"] = outcomes.same_class
    clonings = {name: Cloning(times, table.sum(0), count) for name, table in tables.items()}
    increasing = [table[:, ::-1].astype(np.float64) for table in tables.values()]
    curves = dict(zip(tables, average(times[::-1], increasing, seed), strict=True))
    crossings = {"t_C_phi": curves["phi_C"].crossing(COLLAPSE_LEVEL)}
    if "phi" in curves:
        crossings["t_S_phi"] = curves["phi"].crossing(level)

    when = last_change(outcomes.path, np.append(watch_times, 0.0))
    changes = when[np.isfinite(when)]
    mean = Estimate(np.nan, np.nan, np.nan)
    if len(changes):
        rng = np.random.default_rng(seed)
        means = rng.choice(changes, (1000, len(changes))).mean(1)
        mean = Estimate(float(changes.mean()), *map(float, np.percentile(means, [2.5, 97.5])))
    phi_C = curves["phi_C"]
    inside = phi_C.times[0] <= mean.value <= phi_C.times[-1]
    there = float(np.interp(mean.value, phi_C.times, phi_C.mean)) if inside else np.nan
    return Commitment(
        phi=clonings.get("phi"),
        phi_C=clonings["phi_C"],
        curves=curves,
        times=crossings,
        level=level,
        changes=changes,
        unchanged=count - len(changes),
        mean_change=mean,
        phi_C_there=there,
        memorised=fraction(int(outcomes.neighbours.memorised.sum()), count),
        class_counts=np.bincount(outcomes.label, minlength=num_classes)
        if num_classes > 1
        else np.array([count]),
    )
