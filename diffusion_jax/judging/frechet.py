"""Frechet distance of two sets of features, and what it is between two sets of one law."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.judging.quality import checked


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features, for `between`.

    Attributes:
      mean: (F,).
      root: R with R'R the covariance (min(N, F), F).
    """

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """The moments of features (N, F), N >= 2, finite."""
        mean = features.mean(axis=0)
        scaled = (features - mean) / np.sqrt(len(features) - 1)
        return cls(mean, np.asarray(np.linalg.qr(scaled, mode="r")))


@dataclass(frozen=True)
class SameLaw:
    """Frechet distances between disjoint random subsets of one set.

    Attributes:
      mean: over the draws.
      low: the 2.5 % quantile of the draws.
      high: the 97.5 % quantile.
    """

    mean: float
    low: float
    high: float


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the two sets' means and covariances.

    |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^{1/2})    (Frechet 1957, Dowson & Landau 1982)

    With A the real features minus their mean over sqrt(m - 1), and B those of the generated ones,
    S_x = A'A and S_y = B'B. The eigenvalues of S_x S_y = A'(A B' B) that are not zero are those of
    (A B')(A B')', and so

    tr (S_x S_y)^{1/2} = sum of the singular values of A B'.

    No root of a matrix is taken: the covariances may be singular, as they are of fewer samples than
    features. In place of A and B come the triangles of their QR decompositions, A = Q R, which
    leave the singular values as they are and have at most F rows.

    **It is biased.** Between two sets of one Gaussian law with variances l_i it is, to first order
    in 1/m and 1/n, for both well above F,

    (1/m + 1/n) sum_i l_i + (1/(m-1) + 1/(n-1)) (sum_ij l_i l_j/(2 (l_i + l_j)) + sum_i l_i/4),

    for F equal variances s^2 about (1/m + 1/n) s^2 F (F + 5)/4 (the second-order term of the
    Bures distance, 1/2 sum_ij E_ij^2/(l_i + l_j) for a change E, under Wishart's variances).
    So compare it at equal sizes only, and beside `frechet_of_one_law`; `quality.mmd2` has no bias.

    Args:
      real: features of real samples (m, F), m >= 2.
      fake: features of generated samples (n, F), n >= 2.

    Returns:
      The distance, in squared units of the features; not negative.

    Raises:
      UserError: fewer than two samples, features of unequal length, or some that are not finite.
    """
    real, fake = checked(real, fake, 2)
    return between(Moments.of(real), Moments.of(fake))


def between(a: Moments, b: Moments) -> float:
    """`frechet` of two sets whose moments are known: for one set against many."""
    overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    spread = np.sum(a.root * a.root) + np.sum(b.root * b.root) - 2 * overlap
    return float(np.sum((a.mean - b.mean) ** 2) + max(spread, 0.0))


def frechet_of_one_law(
    real: np.ndarray, sizes: tuple[int, int], seed: int, num_draws: int = 40
) -> SameLaw:
    """What `frechet` is between real samples and real samples, since it has no unbiased value.

    Each draw takes two random subsets that share no sample. A generated set of sizes[1] whose
    distance to sizes[0] real samples is within the draws cannot be told from the real ones by it.
    The draws share samples between them: where sizes[0] + sizes[1] is most of the set they scatter
    a little less than fresh sets would.

    Args:
      real: features of real samples (m, F).
      sizes: of the two subsets, 2 or more each and together no more than m.
      seed: of the subsets.
      num_draws: how many, at least 2.

    Raises:
      UserError: sizes that the set does not have, fewer than two draws, or see `frechet`.
    """
    first, second = sizes
    if min(sizes) < 2 or first + second > len(real) or num_draws < 2:
        raise UserError(
            f"{num_draws} draws of {first} and {second} of {len(real)} real samples: take two "
            f"draws or more, and subsets of two samples or more that the set has room for"
        )
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(real)) for _ in range(num_draws))
    values = [frechet(real[each[:first]], real[each[first : first + second]]) for each in orders]
    low, high = np.percentile(values, [2.5, 97.5])
    return SameLaw(float(np.mean(values)), float(low), float(high))
