"""The times of a training set that figures mark: t_S and t_C of its exact score."""

from functools import cached_property

from diffusion_jax.data.images import ImageSet
from diffusion_jax.regimes import spectrum
from diffusion_jax.regimes.measures import level_of
from diffusion_jax.regimes.transitions import Regimes


class Marked:
    """Findings about a training set.

    Attributes:
      images: the training images.
      exact: curves and times of their exact score.
    """

    images: ImageSet
    exact: Regimes

    @cached_property
    def t_S(self) -> float:
        """1/2 log Lambda of the first channel."""
        return spectrum.speciation_time(spectrum.largest_eigenvalue(self.images.images))

    @property
    def marks(self) -> dict[str, float]:
        """The times that figures mark, by their labels."""
        times = {"$t_S$ (½ log Λ)": self.t_S}
        for name in ("t_S_phi", "t_C_phi"):
            if name in self.exact.times:
                times[level_of(name)[1].symbol] = self.exact.times[name].value
        return times
