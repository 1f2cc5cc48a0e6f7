"""Patches that the data's covariance gives each component of an image, and the mean under them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_jax.denoisers.streamed import in_blocks, softmax_mean

# Numbers in the arrays of a block: its products want larger ones than a core's cache holds.
_BLOCK = 2**21


def modes(points: np.ndarray) -> tuple[Array, Array]:
    """Eigenvalues (r,) and eigenvectors (d, r) of the covariance, as a sum over n images by n."""
    flat = np.asarray(points, np.float64).reshape(len(points), -1)
    _, singular, vectors = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    vectors[:, np.ptp(flat, axis=0) == 0] = 0  # else rounding, which W_ij/W_ii would blow up
    return jnp.asarray(singular**2 / len(flat), float), jnp.asarray(vectors.T, float)


class Filters:
    """W = V diag(f) V^T of each example, never whole: f (batch, r), V (d, r)."""

    def __init__(self, vectors: Array, factors: Array) -> None:
        self.vectors, self.factors = vectors, factors
        self.diagonal = jnp.einsum("br,ir->bi", factors, vectors**2, precision="highest")

    def ratios(self, rows: Array) -> Array:
        """|W_ij/W_ii|, 0 for 0/0, outputs j before components i (batch, j, i), of rows j of V."""
        scaled = self.factors[:, None] * rows[None]
        product = jnp.einsum("bjr,ir->bji", scaled, self.vectors, precision="highest")
        varies = (self.diagonal > 0)[:, None]
        return jnp.where(varies, jnp.abs(product) / jnp.where(varies, self.diagonal[:, None], 1), 0)


def mean_by_covariance(
    points: Array, filters: Filters, threshold: float, x: Array, signal: Array, variance: Array
) -> Array:
    """D where each component has the patch that the Gaussian's filter gives it."""
    batch, dimension = len(x), x[0].size
    images, flat = x.reshape(batch, 1, dimension), points.reshape(len(points), dimension)
    size = max(1, _BLOCK // max(1, batch * dimension))
    blocks = in_blocks(flat, min(size, len(flat)))
    present = in_blocks(jnp.ones(len(flat), bool), min(size, len(flat)))
    outputs = min(size, dimension)
    rows = in_blocks(filters.vectors, outputs)
    columns = in_blocks(blocks, outputs, axis=2)

    def largest(found: Array, rows: Array) -> tuple[Array, None]:
        return jnp.maximum(found, jnp.max(filters.ratios(rows), axis=(1, 2))), None

    least = threshold * jax.lax.scan(largest, jnp.zeros(batch, x.dtype), rows)[0]

    @partial(jax.checkpoint, prevent_cse=False)
    def of_outputs(some: tuple[Array, Array]) -> Array:
        rows, values = some  # (outputs, r), (blocks, size, outputs)
        patches = (filters.ratios(rows) >= least[:, None, None]).astype(x.dtype)

        def of_block(block: tuple[Array, Array, Array]) -> tuple[Array, Array, Any]:
            a, own, present = block
            squares = (images - signal[:, None, None] * a[None]) ** 2
            summed = jnp.einsum("bni,bji->bnj", squares, patches, precision="highest")
            logits = -summed / (2 * variance[:, None, None])
            own = jnp.stack([own, jnp.ones_like(own)], axis=-1)

            def weighed(weights: Array) -> Array:
                return jnp.sum(weights[..., None] * own[None], axis=1)

            return logits, present[None, :, None], weighed

        shape = (batch, outputs, 1)
        return softmax_mean(of_block, (blocks, values, present), shape, 1, x.dtype)[..., 0]

    means = jnp.moveaxis(jax.lax.map(of_outputs, (rows, columns)), 0, 1)
    return means.reshape(batch, -1)[:, :dimension].reshape(x.shape)
