"""How much a network resembles a theory: R^2, cosine and losses, with intervals over images.

D_net and D_theory are the denoised images of both at one time t, of the same noisy images:

    R^2 = 1 - E|D_net - D_theory|^2 / E|D_net - m|^2,    m = E D_net over the images of that t.

Without m the mean image alone would give an R^2 near 1 at large t. All is made of a few numbers per
image (`Sums`), so no more than these need be kept, and intervals resample whole images.

Beside it stand the measures of the literature: the correlation of two images, whose median over
images Kamb & Ganguli (2412.20292) give for samples from one seed and call r^2, though it is not
squared; and R^2 over the pixels of each image, as Lukoianov et al. (2509.09672) do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy.stats import norm, t

from diffusion_jax.regimes.curves import Estimate
from diffusion_jax.runtime.files import writing

REPLICATES = 1000
# A theory that is as close as the closest in a smaller share of the replicates is no rival.
_RIVAL = 0.025


@dataclass(frozen=True)
class Sums:
    """What is kept of N images at one time; d components per image.

    Attributes:
      error: |D_net - D_theory|^2 (N,).
      network: |D_net - m|^2 (N,); m of `draws` images, of which these are the first.
      theory: |D_theory - m|^2 (N,), the same m.
      contrast: |D_net - the mean of its own components|^2 (N,).
      network_loss: mean squared error of the noise that the network predicts (N,); NaN where the
        true noise is not known.
      theory_loss: that of the theory (N,).
      draws: how many images m is the mean of.
    """

    error: np.ndarray
    network: np.ndarray
    theory: np.ndarray
    contrast: np.ndarray
    network_loss: np.ndarray
    theory_loss: np.ndarray
    draws: int

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.error)

    def first(self, count: int) -> "Sums":
        """The sums of the first images alone; m stays what it was."""
        tables = {name: getattr(self, name)[:count] for name in _TABLES}
        return Sums(draws=self.draws, **tables)

    def save(self, path: Path) -> None:
        """Writes an .npz file; a kill leaves the whole of it or nothing.

        Raises:
          UserError: it cannot be written.
        """
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})


_TABLES = tuple(field.name for field in fields(Sums) if field.name != "draws")


def load(path: Path) -> Sums:
    """Reads what `Sums.save` wrote.

    Raises:
      Exception: whatever a damaged file makes NumPy raise, or ValueError.
    """
    with np.load(path, allow_pickle=False) as file:
        tables = {name: np.asarray(file[name], np.float64) for name in _TABLES}
        draws = int(file["draws"])
    lengths = {table.shape for table in tables.values()}
    if len(lengths) > 1 or not 0 < len(tables["error"]) <= draws:
        raise ValueError("its tables are of different images")
    return Sums(draws=draws, **tables)


def join(earlier: Sums, later: Sums) -> Sums:
    """The sums of some images, and of those that follow them."""
    both = ((name, (getattr(earlier, name), getattr(later, name))) for name in _TABLES)
    return Sums(draws=later.draws, **{name: np.concatenate(pair) for name, pair in both})


def sums(
    network: np.ndarray,
    theory: np.ndarray,
    mean: np.ndarray,
    draws: int,
    losses: tuple[np.ndarray, np.ndarray] | None = None,
) -> Sums:
    """The numbers of each image; see `Sums`.

    Args:
      network: D_net (N, ...).
      theory: D_theory (N, ...), of the same noisy images.
      mean: m, the mean of D_net (...).
      draws: of how many images.
      losses: of the network and of the theory, see `noise_losses`; None where the true noise is not
        known.
    """
    flat, other = (
        np.reshape(each, (len(each), -1)).astype(np.float64) for each in (network, theory)
    )
    centre = np.reshape(mean, (1, -1)).astype(np.float64)
    unknown = np.full(len(flat), np.nan)
    network_loss, theory_loss = losses or (unknown, unknown)
    return Sums(
        error=_squared(flat - other),
        network=_squared(flat - centre),
        theory=_squared(other - centre),
        contrast=_squared(flat - flat.mean(axis=1, keepdims=True)),
        network_loss=network_loss,
        theory_loss=theory_loss,
        draws=draws,
    )


def noise_losses(predicted: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Mean squared error of the predicted noise of each image (N,), for both (N, ...)."""
    difference = (predicted.astype(np.float64) - noise).reshape(len(noise), -1)
    return np.asarray(np.mean(difference**2, axis=1))


def _rows(images: np.ndarray) -> np.ndarray:
    return np.reshape(images, (len(images), -1)).astype(np.float64)


def _squared(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.sum(rows * rows, axis=1))


@dataclass(frozen=True)
class Resemblance:
    """A network and a theory at one time, with 95 % bootstrap intervals over whole images.

    NaN where there is no variance to explain; the losses, where the true noise is not known.

    Attributes:
      r_squared: 1 - E|D_net - D_theory|^2/E|D_net - m|^2; 1 where both are the same, negative where
        the mean of all images were nearer to the network than the theory is.
      cosine: E<D_net - m, D_theory - m>/sqrt(E|D_net - m|^2 E|D_theory - m|^2).
      image_r_squared: median over images of R^2 over the components of each.
      network_loss: mean squared error of the predicted noise, per component.
      theory_loss: the theory's.
      excess: network_loss - theory_loss, of the same images and noise.
      images: how many.
    """

    r_squared: Estimate
    cosine: Estimate
    image_r_squared: Estimate
    network_loss: Estimate
    theory_loss: Estimate
    excess: Estimate
    images: int


def resampled(count: int, seed: int = 0) -> np.ndarray:
    """Images of each bootstrap replicate (R, count); of equal counts and seeds, the same ones.

    The first replicate is the images themselves.
    """
    chosen = np.random.default_rng(seed).integers(0, count, (REPLICATES + 1, count))
    chosen[0] = np.arange(count)
    return chosen


def estimate(replicates: np.ndarray, count: int) -> Estimate:
    """The first replicate's value, with the 95 % interval of the others.

    Percentiles of few images are too narrow, as normal intervals are where Student's are due: they
    are taken further out, at Phi(-sqrt(n/(n - 1)) t_{0.975, n - 1}) (Hesterberg 2015, section 5.3).

    Args:
      replicates: (R + 1,); see `resampled`.
      count: number of images n, at least 2.
    """
    wide = math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1)
    tail = 100 * norm.cdf(-wide)
    low, high = np.percentile(replicates[1:], [tail, 100 - tail])
    return Estimate(float(replicates[0]), float(low), float(high))


def _r_squared(found: Sums, chosen: np.ndarray) -> np.ndarray:
    # m is itself a mean of these images: it lies nearer to them than the mean of the law.
    nearer = (found.draws - 1) / found.draws
    with np.errstate(invalid="ignore", divide="ignore"):
        share = nearer * found.error[chosen].sum(1) / found.network[chosen].sum(1)
    return np.where(np.isfinite(share), 1 - share, np.nan)


def summarize(found: Sums, seed: int = 0) -> Resemblance:
    """R^2, cosine and losses with their intervals; see `Resemblance`.

    E|D_net - m|^2 is estimated without bias: m of N images lies nearer to them than the mean of
    their law, by a share 1/N, for which it is made up. Where few images carry most of a sum, as
    where their norms differ by factors, intervals are too narrow: 85 % in place of 95 % were seen.

    Args:
      found: the sums of the images, at least two.
      seed: of the bootstrap; with one seed and number of images the replicates of different
        theories are the same images.
    """
    chosen = resampled(len(found), seed)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(values[chosen].mean(1))

    inner = (found.network + found.theory - found.error) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = mean(inner) / np.sqrt(mean(found.network) * mean(found.theory))
        each = 1 - found.error / found.contrast

    def interval(replicates: np.ndarray) -> Estimate:
        return estimate(replicates, len(found))

    return Resemblance(
        r_squared=interval(_r_squared(found, chosen)),
        cosine=interval(cosine),
        image_r_squared=median(np.where(np.isfinite(each), each, np.nan), seed),
        network_loss=interval(mean(found.network_loss)),
        theory_loss=interval(mean(found.theory_loss)),
        excess=interval(mean(found.network_loss - found.theory_loss)),
        images=len(found),
    )


def median(values: np.ndarray, seed: int = 0) -> Estimate:
    """The median over images (N,), with its bootstrap interval."""
    return estimate(np.median(values[resampled(len(values), seed)], axis=1), len(values))


@dataclass(frozen=True)
class Closest:
    """Which of several theories is the closest at one time.

    Attributes:
      name: that of the largest R^2.
      r_squared: its R^2.
      rivals: the others whose R^2 is no less than its in at least one of forty bootstrap
        replicates of the images: those that these images cannot rule out.
      images: how many decided.
    """

    name: str
    r_squared: Estimate
    rivals: tuple[str, ...]
    images: int


def closest(found: Mapping[str, Sums], seed: int = 0) -> Closest:
    """The theory of the largest R^2; see `Closest`.

    Those that were compared on the most images are compared with each other first. Their best then
    meets the others, on the images that all of these have, and gives way to one that is closer in
    39 of 40 replicates; one that is as close in one of forty or more is a rival.

    Args:
      found: the sums of each theory, of the same images in the same order; of some there may be
        fewer.
      seed: of the bootstrap.
    """
    most = max(map(len, found.values()))
    best = _closest({name: each for name, each in found.items() if len(each) == most}, seed)
    fewer = {name: each for name, each in found.items() if len(each) < most}
    if not fewer:
        return best
    among = _closest({best.name: found[best.name]} | fewer, seed)
    if best.name not in (among.name, *among.rivals):
        return among
    others = (name for name in (among.name, *among.rivals) if name != best.name)
    return replace(best, rivals=(*best.rivals, *others))


def _closest(found: Mapping[str, Sums], seed: int) -> Closest:
    """The theory of the largest R^2 on the images that all were compared on."""
    count = min(map(len, found.values()))
    chosen, names = resampled(count, seed), list(found)
    table = np.stack([_r_squared(each.first(count), chosen) for each in found.values()])
    table = np.nan_to_num(table, nan=-np.inf)
    best = int(np.argmax(table[:, 0]))
    share = np.mean(table[:, 1:] >= table[best, 1:], axis=1)
    rivals = [name for i, name in enumerate(names) if i != best and share[i] >= _RIVAL]
    return Closest(names[best], estimate(table[best], count), tuple(rivals), count)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the components of each pair of images (N,); NaN for a constant one.

    Args:
      a: images (N, ...).
      b: images (N, ...).
    """
    return _cosines(a, b, lambda rows: rows - rows.mean(axis=1, keepdims=True))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """<a, b>/(|a| |b|) of each pair of images (N,), from which nothing is removed."""
    return _cosines(a, b, lambda rows: rows)


def _cosines(
    a: np.ndarray, b: np.ndarray, centred: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    x, y = (centred(_rows(each)) for each in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sum(x * y, axis=1) / np.sqrt(_squared(x) * _squared(y)))
