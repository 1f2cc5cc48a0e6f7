"""The exact score if every pixel saw no more than a patch around it."""

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers.covariance_patches import Filters, mean_by_covariance, modes
from diffusion_jax.denoisers.patches import (
    PatchDenoiser,
    amplitudes,
    checked_patch,
    checked_points,
)
from diffusion_jax.denoisers.streamed import in_blocks, softmax_mean
from diffusion_jax.errors import UserError
from diffusion_jax.schedule import NoiseSchedule

# Numbers in the arrays of a block: about what a core's cache holds.
_BLOCK = 2**18


@jax.tree_util.register_pytree_node_class
class LocalDenoiser(PatchDenoiser):
    """The local score machine: at each pixel the training images are weighed by a patch alone.

    w_nu(p) = softmax_nu(-|x_P(p) - e^-t a_nu,P(p)|^2 / (2 Delta_t)),   D_p = sum_nu w_nu(p) a_nu,p

    P(p) is the square of `patch` x `patch` pixels around p, cut at the border, all channels in it
    (Kamb & Ganguli 2412.20292, Niedoba et al. 2411.19339). With `patch` = 2 max(height, width) - 1,
    or None, it is the exact score; at large t the mean image.

    patch = "covariance" gives each component j of the image its own patch and weights: those
    components i for which

    |W_ij/W_ii| >= threshold max_kl |W_kl/W_kk|,   W = V diag(e^-2t l/(e^-2t l + Delta_t)) V^T,

    l and V the eigenvalues and eigenvectors of the points' covariance (divided by n): W is the
    Wiener filter, so patches grow and shrink with t (Lukoianov et al. 2509.09672, who take 0.005
    for MNIST, 0.05 for CIFAR-10, 0.02 for CelebA). A component that never varies is in no patch;
    where a patch is empty all weights are 1/n.

    Weights are normalised over all n training images, whatever the batch. A batch of b images of d
    components costs b n d (height + width) multiplications, whatever the patch, and b n d
    exponentials; with the covariance's patches b (n + 2 min(n, d)) d^2. Blocks of points are gone
    through, which changes rounding only: beside points and images it needs a few arrays of 2^18
    numbers, with the covariance's patches of 2^21, or of b d if that is more. Logits are sums of
    squares, about half the patch's size for a noised training image: in float32 rounding is about
    1e-7 of that at any t, 1e-5 of D where 1 000 pixels are compared at once.

    Attributes:
      schedule: the noise schedule that gives each step its e^-t and Delta_t.
      points: training points a_nu (n, height, width, channels), in the units of x.
      patch: the patch's side, odd; None for all pixels; or "covariance".
      threshold: from 0 to 1, of the covariance's patches.
    """

    ARRAYS = ("schedule", "points", "_modes")
    STATIC = ("patch", "threshold")

    def __init__(
        self,
        schedule: NoiseSchedule,
        points: np.ndarray | Array,
        patch: int | Literal["covariance"] | None,
        threshold: float | None = None,
    ) -> None:
        """Checks what it is given.

        Raises:
          UserError: points that are no images, a patch that is even or too large, or a threshold
            without the covariance's patches, these without one, or one out of range.
        """
        self.schedule, self.points = schedule, checked_points(points)
        self.patch, self.threshold = patch, threshold
        self._modes: tuple[Array, Array] | None = None
        by_covariance = isinstance(patch, str) and patch == "covariance"
        if patch is not None and not by_covariance:
            largest = 2 * max(self.points.shape[1:3]) - 1
            others = 'None for all of them, and "covariance"'
            self.patch = checked_patch(patch, largest, others)
        if by_covariance != (threshold is not None):
            raise UserError(
                'patch = "covariance" and threshold, a share of the largest |W/diag W| such as '
                "0.005, belong together: give both, or neither"
            )
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise UserError(f"threshold = {threshold!r} must lie between 0 and 1")
            self._modes = modes(np.asarray(self.points))

    @classmethod
    def fit(
        cls,
        schedule: NoiseSchedule,
        points: np.ndarray,
        labels: np.ndarray | None,
        patch: int = 5,
    ) -> Self:
        """The machine of training points (n, ...), mean removed; labels change nothing."""
        return cls(schedule, points, patch)

    def mean(self, x: Array, step: Array) -> Array:
        """See `PatchDenoiser`."""
        mean: Array = _predict(self, x, step)
        return mean


@jax.jit
def _predict(denoiser: LocalDenoiser, x: Array, step: Array) -> Array:
    signal, variance = amplitudes(denoiser.schedule, step, x)
    points = denoiser.points.astype(x.dtype)
    if denoiser._modes is None:
        height, width = x.shape[1:3]
        half = max(height, width) if denoiser.patch is None else int(denoiser.patch) // 2
        return mean_by_squares(points, half, x, signal, variance)
    values, vectors = (each.astype(x.dtype) for each in denoiser._modes)
    assert denoiser.threshold is not None
    share = (signal**2 / variance)[:, None] * values[None]
    filters = Filters(vectors, share / (1 + share))
    return mean_by_covariance(points, filters, denoiser.threshold, x, signal, variance)


def _band(size: int, half: int, dtype: Any) -> Array:
    """Which pixels of a line lie in the patch of which (size, size), 1 or 0."""
    place = np.arange(size)
    return jnp.asarray(np.abs(place[:, None] - place[None]) <= half, dtype)


def mean_by_squares(points: Array, half: int, x: Array, signal: Array, variance: Array) -> Array:
    """D with square patches: two products with band matrices sum the squares, without cancelling.

    Args:
      points: training points (n, height, width, channels).
      half: how far patches reach from their pixel in each direction.
      x: noisy images (batch, height, width, channels).
      signal: e^-t of each (batch,).
      variance: Delta_t of each (batch,).
    """
    batch, height, width, channels = x.shape
    # Channels lie behind columns, so that one product sums both; rows go first, so that both
    # products are plain ones.
    down = _band(height, half, x.dtype)
    along = jnp.repeat(_band(width, half, x.dtype), channels, axis=0)
    images = jnp.moveaxis(x, 1, 0)[:, :, None]
    size = max(1, min(len(points), _BLOCK // max(1, batch * height * width)))
    rows = jnp.moveaxis(in_blocks(points, size), 2, 1)
    present = in_blocks(jnp.ones(len(points), bool), size)

    def of_block(block: tuple[Array, Array]) -> tuple[Array, Array, Any]:
        a, present = block  # (height, size, width, channels), (size,)
        squares = (images - signal[None, :, None, None, None] * a[:, None]) ** 2
        squares = squares.reshape(height, batch, size, width * channels)
        sums = jnp.einsum("hbnk,kv->hbnv", squares, along, precision="highest")
        sums = jnp.einsum("ij,jbnw->ibnw", down, sums, precision="highest")
        values = jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1)

        def summed(weights: Array) -> Array:
            return jnp.sum(weights[..., None] * values[:, None], axis=2)

        logits = -sums / (2 * variance[None, :, None, None])
        return logits, present[None, None, :, None], summed

    shape = (height, batch, width, channels)
    return jnp.moveaxis(softmax_mean(of_block, (rows, present), shape, 2, x.dtype), 0, 1)
