"""Samples beside the training set and beside other samples: memorised, spurious or novel.

Seen as an associative memory, a trained model retrieves stored points while there are few, then
falls into states between them that many samples share and no training point is near, and at last
makes samples that are alone (Pham et al. 2025, arXiv:2505.21777).
"""

from dataclasses import dataclass

import numpy as np

from diffusion_jax.regimes.commitment import fraction
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.symmetry import Group


@dataclass(frozen=True)
class Novelty:
    """What each sample is, by three distances.

    Attributes:
      distance: to the nearest training point (N,).
      second: to the second nearest training point, another than the first (N,).
      generated: to the nearest other generated sample (N,).
    """

    distance: np.ndarray
    second: np.ndarray
    generated: np.ndarray

    @property
    def memorised(self) -> np.ndarray:
        """Whether distance < second/3 (N,)."""
        return self.distance < self.second / 3

    @property
    def spurious(self) -> np.ndarray:
        """Whether generated < distance/3, of what is not memorised (N,)."""
        return (self.generated < self.distance / 3) & ~self.memorised

    @property
    def novel(self) -> np.ndarray:
        """Neither (N,)."""
        return ~(self.memorised | self.spurious)

    def fractions(self) -> dict[str, Estimate]:
        """Fractions of the samples, by the names of the three, with Wilson's 95 % intervals.

        The intervals are those of fresh samples beside the same training set and the same second
        set. Where the samples were compared with each other they are too narrow: by sqrt(2) where
        they come in pairs, of which both are spurious or neither, and more where more share one.
        """
        kinds = {"memorised": self.memorised, "spurious": self.spurious, "novel": self.novel}
        return {name: fraction(int(each.sum()), len(each)) for name, each in kinds.items()}


def novelty(
    samples: np.ndarray,
    training: np.ndarray,
    generated: np.ndarray | None = None,
    group: Group | None = None,
) -> Novelty:
    """Which samples are memorised, which spurious, and which novel.

    With d_1 <= d_2 the Euclidean distances from a sample to its two nearest training points, and g
    that to the nearest of the second set of generated samples, all of them plain, not squared:

        d_1 < d_2/3    memorised
        g < d_1/3      spurious, where it is not memorised

    and a sample is novel where neither holds. The first line is the rule of
    `neighbours.Neighbours.memorised`, except for training points that are equal to the last bit:
    they count as one here, so that a copy of a point that has a copy is memorised. (There d_1 = d_2
    = 0 is not.) Training points that are nearly equal are left apart: a sample near both has d_1
    about d_2 and is not memorised by either rule. The second line is the same rule with the nearest
    training point in the place of the second nearest point: a state that three samples share has
    three samples at g = 0, so that a ratio of the two nearest generated ones would overlook just
    the states that attract most.

    The source's own code compares the two nearest distances, to the training set and to the other
    samples of the same set, with two fixed thresholds, of LPIPS or of Euclidean distance, in the
    same order of precedence. Fixed thresholds need an LPIPS network or a scale for each data set;
    the ratios need neither, but say less where the data are dense:

    **By chance.** Let training points, samples and second set be independent draws of one law, of D
    dimensions where the sample is, and n and M the numbers of the two sets. The volumes within the
    distances are then exponential with rates n and M, and that of d_1 is uniform in that of d_2:

        P(d_1 < d_2/3) = 3^-D,    P(g < d_1/3) = M/(M + 3^D n)        (derived here);

    in one dimension a third of perfectly novel samples is "memorised", in ten 2e-5 of them. A
    second set that is larger than the training set finds more that is "spurious" by chance; in ten
    dimensions that matters from M of a thousand n on.

    Args:
      samples: (N, ...).
      training: training points (n, ...), at least two that are not equal, in the same units.
      generated: a second set of generated samples (M, ...), M >= 2; the larger the better. None
        compares each sample with the other samples.
      group: with it every map of a training point or of a sample counts as that one; see
        `neighbours.nearest`. Training points that are maps of each other are not made one.

    Raises:
      UserError: fewer than two training points or generated samples, or see `neighbours.nearest`.
    """
    to_training = nearest(samples, _distinct(training), group)
    if generated is None:
        # Of the samples the nearest is the sample itself, or a copy of it.
        others = nearest(samples, samples, group).second
    else:
        others = nearest(samples, generated, group).distance
    return Novelty(to_training.distance, to_training.second, others)


def _distinct(points: np.ndarray) -> np.ndarray:
    """The points without later copies, in their order."""
    first: dict[bytes, int] = {}
    for place, point in enumerate(points):
        first.setdefault(point.tobytes(), place)
    return points if len(first) == len(points) else points[list(first.values())]
