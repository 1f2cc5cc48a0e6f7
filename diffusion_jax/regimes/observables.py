"""What is averaged over draws along time: how a measure is described.

A measure is an `Observable` and a line in `measures.OBSERVABLES`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from diffusion_jax.regimes.curves import Curve, Estimate
from diffusion_jax.regimes.posterior import Draws


@dataclass(frozen=True)
class Ensemble:
    """Draws, and what they were drawn from.

    Attributes:
      draws: from the posterior engine; N draws, T times, C classes.
      num_points: number n of all training points, see `TrainingSet.num_points`.
      class_weights: share pi_c of each class (C,); of length 1 without classes.
      label: the class that all of the draws start from; None where they start from all.
    """

    draws: Draws
    num_points: float
    class_weights: np.ndarray
    label: int | None = None

    @cached_property
    def class_probability(self) -> np.ndarray:
        """p(c | x_t), (N, T, C)."""
        return self.draws.class_probability

    @property
    def log_n(self) -> np.float64:
        """The logarithm of n, the prior's entropy; in float64, and so what is divided by it."""
        return np.float64(np.log(self.num_points))

    @property
    def class_entropy(self) -> float:
        """H(c) = -sum_c pi_c log pi_c in nats."""
        return float(-np.sum(self.class_weights * np.log(self.class_weights)))

    @property
    def floor(self) -> float:
        """What phi tends to at large t: sum_c pi_c^2, or pi_c for a single class."""
        if len(self.class_weights) == 1:
            return 1.0
        own = self.label
        return float(np.sum(self.class_weights**2) if own is None else self.class_weights[own])


@dataclass(frozen=True)
class Level:
    """A value of a curve, and the time at which the curve crosses it; or the time of its peak.

    Attributes:
      value: the value, or what gives it; NaN stands for the peak, see `Curve.peak`.
      meaning: what the printed table says of the time; {level} stands for the value.
      symbol: of the time, in figures.
      relative: what the table says where the classes shown have values of their own.
      defined: the symbol with the level, for figures that have room for it.
    """

    value: float | Callable[[Ensemble], float]
    meaning: str
    symbol: str = ""
    relative: str = ""
    defined: str = ""

    def of(self, ensemble: Ensemble) -> float:
        """The value for these draws."""
        return self.value(ensemble) if callable(self.value) else self.value

    def described(self, values: set[float]) -> str:
        """The meaning, where the level has these values."""
        if len(values) > 1 and self.relative:
            return self.relative
        return self.meaning.format(level=min(values))


def time_at(curve: Curve, level: float) -> Estimate:
    """The time at which a curve crosses a level; that of its peak where the level is NaN."""
    return curve.peak() if math.isnan(level) else curve.crossing(level)


@dataclass(frozen=True)
class Observable:
    """A quantity that is averaged over the draws at each time.

    Attributes:
      label: of the curve, in figures.
      values: what each draw contributes (N, T), NaN where it was not taken.
      falls: whether the curve falls along time; else it rises.
      needs_classes: whether it needs two classes or more.
      of_all: whether it is of all draws alone: those from a single class do not have it.
      link: a monotone function of the average, by default the average itself.
      accurate: whether draws are added until its standard error is what was asked for.
      times: the times that it defines by their names.
    """

    label: str
    values: Callable[[Ensemble], np.ndarray]
    falls: bool = False
    needs_classes: bool = False
    of_all: bool = False
    link: Callable[[Ensemble, np.ndarray], np.ndarray] | None = None
    accurate: bool = False
    times: Mapping[str, Level] = field(default_factory=dict)
