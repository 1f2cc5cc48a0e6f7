"""What x_t says of its class, where the classes are put into groups: pairs, and a partition.

Given that the class is one of those named, x_t comes from their points and its posterior is that
over these points alone; a group's weight is that of all of its points. So I(c; x_t) and its rate
are those of `measures`, from the same draws, without those that start from other classes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from diffusion_jax.data.selection import Selection
from diffusion_jax.errors import UserError
from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.measures import OBSERVABLES
from diffusion_jax.regimes.observables import Ensemble
from diffusion_jax.regimes.posterior import Draws
from diffusion_jax.regimes.transitions import Regimes, summarize_some

MOST_PAIRED = 10  # classes
MEASURES = ("phi", "class_entropy", "class_information", "class_rate")
# dt by the differential of each clock: a rate has its peak where its clock puts it.
CLOCKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "per t": np.ones_like,
    "per log t": lambda t: t,
    "per log SNR": lambda t: -np.expm1(-2 * t) / 2,
}


@dataclass(frozen=True)
class Partition:
    """Classes in groups, and when x_t says which group it is of, given that it is of one of them.

    Attributes:
      groups: names of the classes in each group.
      weights: share of each group (G,).
      regimes: phi, class_entropy, class_information and class_rate of the groups, and their times.
    """

    groups: tuple[tuple[str, ...], ...]
    weights: np.ndarray
    regimes: Regimes

    @property
    def name(self) -> str:
        """The groups in words."""
        return " | ".join(", ".join(group) for group in self.groups)


def peaks(rate: Curve) -> dict[str, Estimate]:
    """The time of the peak of -dI/dt, and of -dI by the other clocks.

    -dI/d log t = t (-dI/dt), and with the signal-to-noise ratio g = 1/(e^2t - 1), of which
    d log g/dt = -2/Delta_t, dI/d log g = Delta_t/2 (-dI/dt).

    Args:
      rate: -dI/dt, in nats per unit of Ornstein-Uhlenbeck time.

    Returns:
      The times, by the names of the clocks in `CLOCKS`.
    """
    return {
        name: rate.map(partial(np.multiply, factor(rate.times))).peak()
        for name, factor in CLOCKS.items()
    }


def groups_named(
    partition: Iterable[str | Iterable[Any]], class_names: Sequence[str]
) -> list[list[int]]:
    """The labels of the classes that a partition names.

    Args:
      partition: groups of names of classes; a name alone is a group too. Classes that are in no
        group are left out.
      class_names: of the data set.

    Raises:
      UserError: fewer than two groups, a group without a class, a class that the data set does not
        have or that is named twice, a data set without two classes.
    """
    if len(class_names) < 2:
        raise UserError(
            "a partition is one of classes, and the data set does not have two: give it labels, or "
            "leave the partition out"
        )
    named = [
        [group] if isinstance(group, str) or not isinstance(group, Iterable) else list(group)
        for group in partition
    ]
    found: list[list[int]] = []
    for number, names in enumerate(named, 1):
        if not names:
            raise UserError(
                f"group {number} of the partition names no class; the classes are "
                f"{', '.join(class_names)}"
            )
        each = [Selection(classes=(str(name),)) for name in names]
        source = "the data set of the partition"
        found.append([label for one in each for label in one.of(source, class_names)])
    if len(found) < 2:
        raise UserError(f"a partition has two groups of classes at least, not {len(found)}")
    labels = [label for group in found for label in group]
    twice = [class_names[label] for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise UserError(
            f"the partition names class {', '.join(twice)} more than once: a class may be in one "
            f"group, and once"
        )
    return found


def merged(draws: Draws, groups: Sequence[Sequence[int]]) -> Draws:
    """The draws from the classes of some groups, each group as one class, the others left out.

    Args:
      draws: from the posterior engine; NaN marks what was not taken.
      groups: labels of the classes in each group, no class in two.

    Returns:
      The posterior given that the class is one of these; the entropy, the collision probability and
      the largest weight of that are not known, and NaN.
    """
    named = np.concatenate([np.asarray(group, np.int64) for group in groups])
    rows = np.isin(draws.labels, named)
    # The classes named, in the order of the groups.
    place = np.zeros(draws.log_evidence.shape[2], np.int64)
    place[named] = np.arange(len(named))
    unknown = np.broadcast_to(np.float32(np.nan), draws.entropy[rows].shape)
    inner = Draws(
        times=draws.times,
        index=draws.index[rows],
        labels=place[draws.labels[rows]],
        entropy=unknown,
        collision=unknown,
        log_own=unknown,
        largest=unknown,
        log_evidence=draws.log_evidence[rows][..., named],
        squared=draws.squared[rows][..., named],
    )
    log_weight, evidence, squared = inner.log_weight, [], []
    stops = np.cumsum([len(group) for group in groups])
    with np.errstate(invalid="ignore"):
        for stop, group in zip(stops, groups, strict=True):
            own = slice(stop - len(group), stop)
            evidence.append(np.logaddexp.reduce(inner.log_evidence[..., own], axis=2))
            inside = log_weight[..., own] - log_weight[..., own].max(axis=2, keepdims=True)
            share = np.exp(inside)
            squared.append(np.sum(share * inner.squared[..., own], axis=2) / share.sum(axis=2))
        log_own = -np.logaddexp.reduce(log_weight, axis=2)
    return Draws(
        times=draws.times,
        index=inner.index,
        labels=np.searchsorted(stops, inner.labels, side="right"),
        entropy=unknown,
        collision=unknown,
        log_own=log_own,
        largest=unknown,
        log_evidence=np.stack(evidence, axis=2),
        squared=np.stack(squared, axis=2),
    )


def part(
    draws: Draws,
    class_weights: np.ndarray,
    class_names: Sequence[str],
    groups: Sequence[Sequence[int]],
    seed: int = 0,
) -> Partition:
    """What x_t says of some groups of classes; see `Partition`.

    Args:
      draws: from the posterior engine; NaN marks what was not taken.
      class_weights: share of each class (C,).
      class_names: one name per class.
      groups: labels of the classes in each group, see `groups_named`.
      seed: of the bootstrap.
    """
    shares = np.array([class_weights[list(group)].sum() for group in groups])
    weights = shares / shares.sum()
    names = tuple(tuple(class_names[label] for label in group) for group in groups)
    ensemble = Ensemble(merged(draws, groups), np.nan, weights)
    some = {name: OBSERVABLES[name] for name in MEASURES}
    return Partition(names, weights, summarize_some(ensemble, some, seed))


def pairs(
    draws: Draws, class_weights: np.ndarray, class_names: Sequence[str]
) -> tuple[Partition, ...]:
    """What x_t says of each two classes; of three to ten, else nothing.

    With two classes it is the same as for all classes.
    """
    number = len(class_weights)
    if not 2 < number <= MOST_PAIRED:
        return ()
    return tuple(
        part(draws, class_weights, class_names, [[first], [second]])
        for first, second in combinations(range(number), 2)
    )
