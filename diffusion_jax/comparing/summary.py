"""What all cells say together: each theory's resemblance, the closest one, and the best patch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_jax.comparing.cells import Found
from diffusion_jax.regimes import resemblance
from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.regimes.neighbours import nearest
from diffusion_jax.regimes.resemblance import Closest, Resemblance
from diffusion_jax.regimes.theories import Theory


@dataclass(frozen=True)
class Summary:
    """What all cells say, by the name of the source and in the order of the times.

    Attributes:
      resemblance: of each theory by its name, at each time.
      closest: of all theories, at each time.
      patches: of the theories of each family that has patches, at each time.
    """

    resemblance: dict[str, dict[str, list[Resemblance]]]
    closest: dict[str, list[Closest]]
    patches: dict[str, dict[str, list[Closest]]]


def summarize(
    tables: Mapping[str, Found],
    theories: Sequence[Theory],
    sources: Sequence[str],
    steps: Sequence[int],
    seed: int,
) -> Summary:
    """The numbers of all cells; see `Summary`.

    Args:
      tables: the cells of each theory by its name.
      theories: those of one table each, of all these sources.
      sources: names.
      steps: in the order of the times.
      seed: of the bootstrap.
    """
    families = dict.fromkeys(each.family for each in theories if each.patch is not None)
    groups = {
        family: names
        for family in families
        if len(names := [each.name for each in theories if each.family == family]) > 1
    }
    every = [each.name for each in theories]

    def best(names: Sequence[str], source: str) -> list[Closest]:
        return [
            resemblance.closest({name: tables[name][source, step] for name in names}, seed)
            for step in steps
        ]

    def alike(source: str) -> dict[str, list[Resemblance]]:
        return {name: along(tables[name], source, steps, seed) for name in every}

    return Summary(
        {source: alike(source) for source in sources},
        {source: best(every, source) for source in sources},
        {
            source: {family: best(names, source) for family, names in groups.items()}
            for source in sources
        },
    )


def along(table: Found, source: str, steps: Sequence[int], seed: int) -> list[Resemblance]:
    """The resemblance at each step."""
    return [resemblance.summarize(table[source, step], seed) for step in steps]


@dataclass(frozen=True)
class Row:
    """Samples beside those of the network from the same noise; medians over images.

    Attributes:
      correlation: of the pixels of each pair; what 2412.20292 calls r^2.
      squared: its square.
      image_r_squared: 1 - |x_net - x|^2/|x_net - mean of its pixels|^2 of each pair.
      cosine: of each pair, the training set's mean removed.
      neighbour_ratio: distance of a sample to its nearest training image over that to the second
        nearest.
      memorised: share of the samples for which that is under 1/3.
    """

    correlation: Estimate
    squared: Estimate
    image_r_squared: Estimate
    cosine: Estimate
    neighbour_ratio: float
    memorised: float


def row(network: np.ndarray, samples: np.ndarray, points: np.ndarray, seed: int) -> Row:
    """What samples say beside those of the network; see `Row`.

    Args:
      network: the network's samples (N, ...), mean removed.
      samples: others from the same noise (N, ...).
      points: training images of these others (n, ...).
      seed: of the bootstrap.
    """
    found, mean = nearest(samples, points), network.mean(axis=0)
    correlation = resemblance.correlations(network, samples)
    alike = resemblance.sums(network, samples, mean, len(network))
    return Row(
        resemblance.median(correlation, seed),
        resemblance.median(correlation**2, seed),
        resemblance.summarize(alike, seed).image_r_squared,
        resemblance.median(resemblance.cosines(network, samples), seed),
        float(np.median(found.ratio)),
        float(found.memorised.mean()),
    )


def to_nearest(
    samples: np.ndarray, points: np.ndarray, seed: int
) -> tuple[np.ndarray, Estimate, Estimate]:
    """The nearest training image of each sample, and the median correlation and cosine to it.

    Args:
      samples: (N, ...), mean removed.
      points: training images (n, ...), mean removed.
      seed: of the bootstrap.
    """
    images = points[nearest(samples, points).index]
    measures: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
        resemblance.correlations,
        resemblance.cosines,
    )
    correlation, cosine = (resemblance.median(each(samples, images), seed) for each in measures)
    return images, correlation, cosine
