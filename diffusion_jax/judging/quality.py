"""Quality of samples in a feature space that needs no download.

The features are those of this project's own classifier (`classifier.TrainedClassifier.features`),
trained on the data at hand. So the numbers compare samples of one data set with each other; they
are not the published distances of the same form, which use a large pretrained network.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from diffusion_jax.errors import UserError

# Rows of a block of the kernel or of the distances.
_BLOCK = 512


@dataclass(frozen=True)
class KernelDistance:
    """Average of the squared kernel distance over disjoint subsets.

    Attributes:
      mean: over the subsets; unbiased, so that it can be negative.
      standard_error: of the mean.
    """

    mean: float
    standard_error: float


@dataclass(frozen=True)
class PrecisionRecall:
    """How far two sets of samples cover each other.

    Attributes:
      precision: fraction of the generated samples within the real samples' manifold.
      recall: fraction of the real samples within the generated samples' manifold.
    """

    precision: float
    recall: float


def mmd2(real: np.ndarray, fake: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with a cubic kernel, of whole sets.

    1/(m (m - 1)) sum_{i != j} k(x_i, x_j) + 1/(n (n - 1)) sum_{i != j} k(y_i, y_j)
        - 2/(m n) sum_{i, j} k(x_i, y_j),        k(x, y) = (x.y/F + 1)^3

    (Gretton et al. 2012, eq. 3; the kernel of Binkowski et al. 2018.) Its expectation, 0 where the
    two laws are one, is the squared distance of their moments of orders 1 to 3: in one dimension
    sum_j binom(3, j) (E x^j - E y^j)^2.

    Args:
      real: features of real samples (m, F), m >= 2.
      fake: features of generated samples (n, F), n >= 2.

    Raises:
      UserError: fewer than two samples, features of unequal length, or some that are not finite.
    """
    real, fake = checked(real, fake, 2)
    return _within(real) + _within(fake) - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))


def kid(
    real: np.ndarray, fake: np.ndarray, num_subsets: int, subset_size: int, seed: int
) -> KernelDistance:
    """`mmd2` on random subsets: its mean and standard error (Binkowski et al. 2018).

    The subsets share no sample. So their values are independent, and

    standard_error = (standard deviation of the values)/sqrt(num_subsets)

    is that of the mean about the value of the laws. (Of subsets that overlap the mean would tend to
    `mmd2` of the whole sets, and this number to zero, whatever the error of either.) `mmd2` of the
    whole sets has the same expectation and scatters less.

    Args:
      real: features of real samples (m, F).
      fake: features of generated samples (n, F).
      num_subsets: number of subsets, at least 2.
      subset_size: samples of either kind in each, at least 2; num_subsets subset_size <= m, n.
      seed: of the subsets.

    Raises:
      UserError: fewer than two subsets or two samples in each, too few samples for them, features
        of unequal length, or some that are not finite.
    """
    if num_subsets < 2 or subset_size < 2:
        raise UserError(
            f"num_subsets = {num_subsets} and subset_size = {subset_size} must be at least 2"
        )
    real, fake = checked(real, fake, num_subsets * subset_size)
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(len(each))[: num_subsets * subset_size].reshape(num_subsets, subset_size)
        for each in (real, fake)
    ]
    values = [mmd2(real[i], fake[j]) for i, j in zip(*chosen, strict=True)]
    return KernelDistance(
        float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(num_subsets))
    )


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    The manifold of a set is the union of the balls about its samples, each of the radius that
    reaches the k-th nearest other sample of the set. Precision is the fraction of the generated
    samples in the manifold of the real ones, recall that of the real ones in the manifold of the
    generated ones. Both depend on the sizes of the sets: compare them at equal sizes.

    Args:
      real: features of real samples (m, F), m > k.
      fake: features of generated samples (n, F), n > k.
      k: which neighbour sets the radius, at least 1.

    Raises:
      UserError: k < 1, no more than k samples, features of unequal length, or some that are not
        finite.
    """
    if k < 1:
        raise UserError(f"k = {k} must be at least 1")
    real, fake = checked(real, fake, k + 1)
    real_radius, fake_radius = _squared_radii(real, k), _squared_radii(fake, k)
    precise, recalled = 0, np.zeros(len(real), bool)
    for start in range(0, len(fake), _BLOCK):
        block = slice(start, start + _BLOCK)
        squared = cdist(fake[block], real, "sqeuclidean")
        precise += int((squared <= real_radius).any(axis=1).sum())
        recalled |= (squared <= fake_radius[block, None]).any(axis=0)
    return PrecisionRecall(precise / len(fake), float(recalled.mean()))


def checked(real: np.ndarray, fake: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of real and generated samples in float64, at least a given number of each.

    Raises:
      UserError: features of unequal length, too few samples, or some that are not finite.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise UserError(
            f"features of shapes {real.shape} and {fake.shape}: give (samples, F), the same F twice"
        )
    if min(len(real), len(fake)) < least:
        raise UserError(
            f"{len(real)} real and {len(fake)} generated samples: at least {least} of each are "
            f"needed"
        )
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise UserError("some features are not finite: look at the samples for NaN or infinity")
    return real, fake


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    blocks = (x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))
    return float(sum(np.sum((block @ y.T / x.shape[1] + 1) ** 3) for block in blocks))


def _within(x: np.ndarray) -> float:
    """Average of k(x_i, x_j) over i != j."""
    diagonal = np.sum((np.sum(x * x, axis=1) / x.shape[1] + 1) ** 3)
    return (_kernel_sum(x, x) - float(diagonal)) / (len(x) * (len(x) - 1))


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each sample to its k-th nearest other one (N,)."""
    blocks = (x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK))
    # The nearest of all is the sample itself, at distance zero.
    return np.concatenate(
        [np.partition(cdist(block, x, "sqeuclidean"), k, axis=1)[:, k] for block in blocks]
    )
