"""The projection of a denoiser onto those that are equivariant under a group."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from diffusion_jax.denoisers.protocol import Denoiser
from diffusion_jax.runtime import pytrees
from diffusion_jax.symmetry import Group, require_group


@pytrees.dataclass
class SymmetricDenoiser:
    """A denoiser averaged over a group G of linear maps that keep the norm.

    eps_sym(x, s) = 1/|G| sum_g g^-1 eps(g x, s)

    As the maps are linear, D_sym(x) = mean_g g^-1 D(g x) too, and so for the score. It is
    equivariant, eps_sym(h x) = h eps_sym(x) for every h of G, to rounding; an equivariant denoiser
    stays as it is. It is the orthogonal projection of Elesedy & Zaidi (2021, "Provably strict
    generalisation benefit for equivariant models"): where g a is as likely in the data as a,

    loss(eps) = loss(eps_sym) + E|eps - eps_sym|^2

    so that it is never the worse one there. On other data it may be.

    One call costs |G| calls of the denoiser, one after another, with the memory of one, in the
    reverse derivative too (which computes each again). The loop over the maps is for compiled code:
    called outside of `jax.jit` it is compiled at each call.

    Attributes:
      denoiser: what is averaged; see `Denoiser`.
      group: the maps, of the images that the denoiser takes.

    Raises:
      UserError: when it is called with images that the group does not map to such.
    """

    denoiser: Denoiser
    group: Group = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        require_group(self.group)

    @property
    def num_steps(self) -> int | None:
        """How many steps the denoiser knows; None where any number will do."""
        return getattr(self.denoiser, "num_steps", None)

    def __call__(self, x: Array, step: Array) -> Array:
        """See `Denoiser`: x is (batch, height, width, channels)."""
        self.group.require(x.shape[1:])

        def add(total: Array, index: Array) -> tuple[Array, None]:
            noise = self.denoiser(self.group(index, x), step)
            return total + self.group.inverse(index, noise), None

        # Not kept for the derivative, which would take the memory of all maps.
        body = jax.checkpoint(add, prevent_cse=False)
        total, _ = jax.lax.scan(body, jnp.zeros_like(x), jnp.arange(self.group.order))
        return total / self.group.order
