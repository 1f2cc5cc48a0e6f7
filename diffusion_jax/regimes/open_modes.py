"""What the spectrum of a denoiser's Jacobian says along time: open modes, dimension, identities.

See `jacobian` for M, its trace and what an open mode is. With x_t = e^-t a + sqrt(Delta) z and any
denoiser, Stein's lemma E z.eps(x_t) = sqrt(Delta) E div eps gives, averages over a and z,

    E|eps - z|^2 = 2 E tr M - d + E|eps|^2,

and E tr M alone for the optimal denoiser of the law that a is drawn from: the degrees of freedom
are its loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.regimes.curves import Curve, average
from diffusion_jax.regimes.jacobian import Spectra

# A gap over it is wider than all others together.
CLEAR = 0.5


def opening_times(variances: np.ndarray) -> np.ndarray:
    """The times 1/2 log(1 + l) at which the modes of a Gaussian are half open.

    Args:
      variances: eigenvalues l of the covariance divided by n, as `GaussianDenoiser` has them;
        `spectrum` divides by n - 1, with which times differ by up to 1/2 log(n/(n - 1)).
    """
    return np.asarray(0.5 * np.log1p(np.asarray(variances, np.float64)))


def local_dimension(spectra: Spectra) -> tuple[np.ndarray, np.ndarray]:
    """The dimension of the data about x_t, from the widest gap of the spectrum.

    About a k-plane M has k eigenvalues near 1, along it, and others near 0 (Stanczuk et al.
    2212.12611; Ventura et al. 2410.05898): the dimension is the number of those before the widest
    gap l_i - l_{i+1}. Eigenvalues are cut to [0, 1]; l_0 = 1 stands before them, so that a point
    has the dimension 0, and where the spectrum is whole l_{d+1} = 0 after them, so that a space
    that is full has d. All gaps then add up to 1, and one of more than 1/2 is wider than all others
    together, whatever else there may be beyond the k known ones: it is called clear. Then any level
    within it counts as many open modes. A plane with noise about it, of a variance below a ninth of
    that along it, has a clear gap at some t; the smooth spectrum of images has none.

    Args:
      spectra: of N points.

    Returns:
      The dimension (N,), NaN where no gap is clear, and the widest gap known (N,).
    """
    values = np.clip(spectra.eigenvalues, 0, 1)
    ends = [np.ones((len(values), 1)), values]
    if values.shape[1] == spectra.dimension:
        ends.append(np.zeros((len(values), 1)))
    gaps = -np.diff(np.concatenate(ends, axis=1), axis=1)
    widest = gaps.max(axis=1)
    place = gaps.argmax(axis=1).astype(np.float64)
    return np.where(widest > CLEAR, place, np.nan), widest


class Losses(NamedTuple):
    """Both sides of Stein's identity at N draws of one step, which are equal in the mean.

    Attributes:
      loss: |eps - z|^2, summed over components (N,).
      stein: 2 tr M - |z|^2 + |eps|^2 (N,): with |z|^2 in place of its mean d, which takes most of
        the noise away where eps is near z.
    """

    loss: np.ndarray
    stein: np.ndarray


def losses(spectra: Spectra, predicted: np.ndarray, noise: np.ndarray) -> Losses:
    """The loss of each draw, and what equals it in the mean; see this module.

    Args:
      spectra: of the x_t (N, ...) that noise of one's own has made.
      predicted: the denoiser's eps at them, the same shape.
      noise: z, the same shape.
    """
    eps, z = (each.reshape(len(each), -1).astype(np.float64) for each in (predicted, noise))
    loss = np.sum((eps - z) ** 2, axis=1)
    return Losses(loss, 2 * spectra.trace + np.sum(eps**2 - z**2, axis=1))


def curves(
    times: np.ndarray,
    spectra: Sequence[Spectra],
    compared: Sequence[Losses] | None = None,
    seed: int = 0,
) -> dict[str, Curve]:
    """Averages over the same N draws at each time, with intervals over draws.

    open_modes: the number of open modes, a lower bound where `Spectra.at_least` says so; trace;
    local_dimension: over those draws that have one; gap: the widest; asymmetry. With losses:
    noise_loss; stein; and difference, noise_loss minus stein draw by draw, whose mean is zero
    within its interval.

    Args:
      times: increasing Ornstein-Uhlenbeck times (T,).
      spectra: of the draws at each time.
      compared: `losses` at each time.
      seed: of the bootstrap.
    """
    found = [local_dimension(each) for each in spectra]
    tables = {
        "open_modes": [each.open_modes.astype(np.float64) for each in spectra],
        "trace": [each.trace for each in spectra],
        "local_dimension": [dimension for dimension, _ in found],
        "gap": [gap for _, gap in found],
        "asymmetry": [each.asymmetry for each in spectra],
    }
    if compared is not None:
        tables["noise_loss"] = [each.loss for each in compared]
        tables["stein"] = [each.stein for each in compared]
        tables["difference"] = [each.loss - each.stein for each in compared]
    columns = (np.stack(table, axis=1) for table in tables.values())
    return dict(zip(tables, average(times, columns, seed), strict=True))
